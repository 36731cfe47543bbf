"""The probe as files beside a model, for apps that run where the host's session is not at hand."""

import json
import shutil
from pathlib import Path

from mf_deploy.artifact import MANIFEST_NAME, Artifact, whole_folder, write_whole
from mf_deploy.benchmarks.probe import Probe

PROBE_FOLDER = "probe"
INPUTS, EXPECTED = "inputs.bin", "expected.json"


def write_probe(artifact: Artifact, folder: Path) -> Path:
    """Write the probe of ``artifact`` to ``folder``/probe and return that folder.

    ``inputs.bin`` holds the inputs one after another, each a whole batch in the model's own dtype and
    layout, little-endian. ``expected.json`` holds the host's logits of every sample, the largest allowed
    difference, and what ran them.

    Raises:
        MfDeployError: the host cannot run the artifact.
    """
    probe = Probe.of(artifact)
    expected = {
        "reference": probe.reference,
        "tolerance": probe.tolerance,
        "inputs": len(probe.inputs),
        "logits": probe.expected.astype(float).tolist(),
    }
    target = folder / PROBE_FOLDER
    write_whole(target / INPUTS, probe.inputs.astype(probe.inputs.dtype.newbyteorder("<")).tobytes())
    write_whole(target / EXPECTED, json.dumps(expected).encode())
    return target


def copy_with_probe(artifact: Artifact, folder: Path) -> None:
    """Copy an artifact to ``folder``, with its probe in it; whole or not at all.

    Raises:
        MfDeployError: the host cannot run the artifact, or ``folder`` cannot be written.
    """
    with whole_folder(folder, force=True) as part:
        for name in (MANIFEST_NAME, *(file.name for file in artifact.manifest.files)):
            copy = part / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(artifact.folder / name, copy)
        write_probe(artifact, part)
