"""No artifact is judged on images that it was calibrated on."""

from collections.abc import Iterable

from mf_deploy.artifact import Artifact
from mf_deploy.data.images import LabelledImages
from mf_deploy.errors import MfDeployError


def refuse_overlap(artifacts: Iterable[Artifact], images: LabelledImages) -> None:
    """Raise an error that says how many of ``images`` an artifact was calibrated on, if any.

    Images are the same when their files are: by digest, whatever their names. The files are read once,
    without decoding, and only when one of the artifacts was calibrated.
    """
    calibrated = [(a, a.manifest.calibration) for a in artifacts if a.manifest.calibration is not None]
    digests = images.digests() if calibrated else []
    for artifact, calibration in calibrated:
        known = frozenset(calibration.image_digests)
        count = sum(digest in known for digest in digests)
        if count:
            raise MfDeployError(
                f"No accuracy for {artifact.folder}",
                f"{count} of the {len(digests)} images in {images.path} are among the {calibration.samples} "
                f"from {calibration.source} that it was calibrated on",
                "Give other images to --data, or quantize with others.",
            )
