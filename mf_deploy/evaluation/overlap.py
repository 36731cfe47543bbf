"""No artifact is judged on images that it was calibrated on."""

from collections.abc import Sequence

from mf_deploy.artifact import Artifact
from mf_deploy.errors import MfDeployError


class OverlapGuard:
    """Counts the evaluation images that an artifact's calibration also used, by the files' digests."""

    def __init__(self, artifacts: Sequence[Artifact]) -> None:
        self._calibrations = [
            (artifact, calibration, frozenset(calibration.image_digests))
            for artifact in artifacts
            if (calibration := artifact.manifest.calibration) is not None
        ]
        self._counts = [0] * len(self._calibrations)
        self._images = 0

    @property
    def overlapping(self) -> bool:
        """Whether an image was found in a calibration set: no accuracy will come of this pass."""
        return any(self._counts)

    def add(self, digests: Sequence[str]) -> None:
        """Look the images of one batch up in every calibration set."""
        self._images += len(digests)
        for index, (_, _, known) in enumerate(self._calibrations):
            self._counts[index] += sum(digest in known for digest in digests)

    def refuse(self, data: str) -> None:
        """Raise an error that says how many images overlap, if any do."""
        for count, (artifact, calibration, _) in zip(self._counts, self._calibrations, strict=True):
            if count:
                raise MfDeployError(
                    f"No accuracy for {artifact.folder}",
                    f"{count} of the {self._images} images in {data} are among the {calibration.samples} "
                    f"from {calibration.source} that it was calibrated on",
                    "Give other images to --data, or quantize with others.",
                )
