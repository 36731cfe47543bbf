"""A quantized model that runs here may fail on a phone: ARM kernels are others. So they run it first."""

from contextlib import closing

import numpy as np

from mf_deploy.artifact import Artifact
from mf_deploy.errors import GATE_FAILED, MfDeployError
from mf_deploy.runtimes import open_session
from mf_deploy.runtimes.arm import CPUS, DEVICE_PREFIX
from mf_deploy.runtimes.arm.lab import find_lab
from mf_deploy.runtimes.arm.session import ArmSession

LARGEST_DIFFERENCE = 0.15
"""Of the logits' range, between ARM and this machine. Kernels round differently, and a code that falls to
the other side of a step moves a logit by a few percent; a kernel that saturates is off by far more."""


def prove_on_arm(artifact: Artifact, name: str, pictures: np.ndarray) -> list[str]:
    """Run one of ``pictures`` (N, H, W, 3) uint8 on every emulated ARM CPU, where the ARM lab is set up.

    Returns:
        the CPUs that ran it, as devices: none for Core ML, or without the lab.

    Raises:
        MfDeployError: a CPU refuses the model, dies on it, or gives other logits than this machine.
    """
    if artifact.manifest.target == "coreml" or find_lab() is None:
        return []
    output = artifact.manifest.outputs[0].name
    expected = open_session(artifact).run(pictures[:1])[output]
    ran_on = []
    for cpu in CPUS:
        device = DEVICE_PREFIX + cpu
        with closing(ArmSession(artifact, cpu)) as session:
            actual = session.run(pictures[:1])[output]
        difference = float(np.abs(expected - actual).max() / max(float(np.ptp(expected)), 1e-12))
        if not difference <= LARGEST_DIFFERENCE:
            raise MfDeployError(
                f"{name} is wrong on {device}",
                f"its logits differ from those of this machine by {difference:.0%} of their range",
                "Choose another --scheme, or report this model.",
                GATE_FAILED,
            )
        ran_on.append(device)
    return ran_on
