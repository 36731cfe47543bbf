"""No artifact is judged against another model than the one it was made from."""

from collections.abc import Iterable

from mf_deploy.artifact import Artifact, read_record
from mf_deploy.errors import MfDeployError
from mf_deploy.models.stored import RECORD_NAME, ModelRecord


def refuse_orphans(artifacts: Iterable[Artifact]) -> None:
    """Raise an error when the reference beside an artifact is not the one that it was made from.

    That happens when a run gets new weights and not all of its artifacts are exported again.
    """
    for artifact in artifacts:
        manifest, run = artifact.manifest, artifact.folder.parent
        record = read_record(run / RECORD_NAME, ModelRecord, "Run mf-export again to write the reference.")
        weights = manifest.reference_sha256 or record.weights_sha256
        made_from = (manifest.model, manifest.preprocessing, weights)
        if made_from != (record.source, record.preprocessing, record.weights_sha256):
            raise MfDeployError(
                f"{artifact.folder} was made from another model",
                f"its weights or preprocessing are not those of {run / RECORD_NAME}",
                "Export or quantize it again with --force, or remove it.",
            )
