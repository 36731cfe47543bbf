"""A quantized model that runs here may fail on a phone: ARM kernels are others. So they run it first."""

import math
from contextlib import closing

import numpy as np

from mf_deploy.artifact import Artifact, Parity
from mf_deploy.errors import GATE_FAILED, MfDeployError
from mf_deploy.export.parity import TOLERANCE
from mf_deploy.runtimes import open_session
from mf_deploy.runtimes.arm import CPUS, DEVICE_PREFIX
from mf_deploy.runtimes.arm.lab import find_lab
from mf_deploy.runtimes.arm.session import ArmSession

SAME = 1e-5
"""Of the logits' range: float32 sums in another order, and nothing else."""


ROUNDED_TWICE_DB = 10 * math.log10(2)
LEAST_DB = 6.0
"""However little quantization has left of a model: what ARM and this machine make of it is one model."""


class RefusedOnArm(MfDeployError):
    """An ARM CPU refuses a model, dies on it, or computes another one."""


def prove_on_arm(artifact: Artifact, name: str, pictures: np.ndarray) -> list[str]:
    """Run all ``pictures`` (N, H, W, 3) uint8 on every emulated ARM CPU, where the ARM lab is set up.

    Kernels round differently, so a quantized value beside a boundary may fall to its other side, and half
    precision rounds what is float. That may cost as much as quantization itself, and no more: where this
    machine's logits have noise N against PyTorch's, ARM's may have another N, and so 2 N against this
    machine's. Where the artifact has a tolerance (fp16), that holds instead, and what is left to half
    precision may use it as well.

    Args:
        artifact: with its parity on the same pictures.

    Returns:
        the CPUs that ran it, as devices: none for Core ML, or without the lab.

    Raises:
        RefusedOnArm: a CPU refuses the model, dies on it, or gives other logits than this machine.
    """
    if artifact.manifest.target == "coreml" or find_lab() is None:
        return []
    output = artifact.manifest.outputs[0].name
    expected = open_session(artifact).run(pictures)[output].astype(np.float64)
    ran_on = []
    for cpu in CPUS:
        device = DEVICE_PREFIX + cpu
        try:
            with closing(ArmSession(artifact, cpu)) as session:
                actual = session.run(pictures)[output].astype(np.float64)
        except MfDeployError as error:
            raise RefusedOnArm(error.what, error.why, error.fix, error.exit_code) from None
        why = difference(expected, actual, artifact.manifest.parity, artifact.manifest.half_precision)
        if why:
            fix = "Choose another --scheme, or report this model."
            raise RefusedOnArm(f"{name} is wrong on {device}", why, fix, GATE_FAILED)
        ran_on.append(device)
    return ran_on


def difference(expected: np.ndarray, actual: np.ndarray, parity: Parity, half: bool = False) -> str | None:
    """Why the logits (N, classes) of an ARM CPU are not those of this machine; None where they are.

    Args:
        half: whether the CPU may compute in half precision what is float.
    """
    error = float(np.abs(expected - actual).max()) / max(float(np.ptp(expected)), 1e-12)
    if error <= (TOLERANCE["tflite", "fp16"] if half else SAME):
        return None
    if parity.tolerance is not None:
        why = f"its logits are {error:.1e} of their range from this machine's, allowed {parity.tolerance:.1e}"
        return None if error <= parity.tolerance else why
    noise, power = float(np.square(expected - actual).mean()), float(np.square(expected).mean())
    sqnr_db = 10 * math.log10(power / noise) if math.isfinite(noise) else -math.inf
    allowed = max(parity.sqnr_db - ROUNDED_TWICE_DB, LEAST_DB)
    why = f"its logits are {sqnr_db:.1f} dB from this machine's, and rounding explains {allowed:.1f} dB"
    return None if sqnr_db >= allowed else why
