"""The last step of every export: the written file against the reference model."""

import copy
import math

import numpy as np
import torch
from torch import nn

from mf_deploy.artifact import Artifact, Parity
from mf_deploy.errors import GATE_FAILED, MfDeployError
from mf_deploy.runtimes import open_session

# Largest |difference| of a logit over the range of the logits. What is quantized has no bound here:
# how much error is too much is a question of accuracy, which mf-check answers on real images.
TOLERANCE = {
    ("onnx", "fp32"): 1e-4,
    ("tflite", "fp32"): 1e-4,
    ("coreml", "fp32"): 1e-3,
    ("onnx", "fp16"): 5e-2,
    ("tflite", "fp16"): 5e-2,
    ("coreml", "fp16"): 5e-2,
}
ROUNDING_MARGIN = 4


def reference_logits(model: nn.Module, images: np.ndarray) -> tuple[np.ndarray, float]:
    """Logits in float64, and how far the model's own float32 logits are from them.

    The second number is what float32 rounding does to this model: no float32 export can be expected
    to come closer than a small multiple of it.
    """
    inputs = torch.from_numpy(images)
    with torch.inference_mode():
        exact = copy.deepcopy(model).double()(inputs.double()).numpy()
        rounded = model(inputs).double().numpy()
    return exact, float(np.abs(exact - rounded).max())


def measure_parity(artifact: Artifact, model: nn.Module, pictures: np.ndarray, inputs: str) -> Parity:
    """Run ``pictures`` (N, H, W, 3) uint8 through the artifact and through ``model``."""
    manifest = artifact.manifest
    expected, rounding = reference_logits(model, manifest.preprocessing.normalize(pictures))
    session = open_session(artifact)
    if session.remark is not None and session.remark not in manifest.remarks:
        manifest.remarks.append(session.remark)
    actual = session.run(pictures)[manifest.outputs[0].name].astype(np.float64)
    spread = float(np.ptp(expected))
    floor = ROUNDING_MARGIN * rounding / max(spread, 1e-12)
    tolerance = TOLERANCE.get((manifest.target, manifest.scheme), math.inf)
    noise = float(np.square(expected - actual).mean())
    return Parity(
        inputs=inputs,
        samples=len(pictures),
        max_abs_error=float(np.abs(expected - actual).max()),
        logits_range=spread,
        agreement=float((expected.argmax(1) == actual.argmax(1)).mean()),
        sqnr_db=10 * math.log10(float(np.square(expected).mean()) / max(noise, 1e-30)),
        tolerance=max(tolerance, floor) if math.isfinite(tolerance) else None,
    )


def gate_parity(name: str, parity: Parity) -> None:
    """Refuse an artifact that is not the reference model.

    Raises:
        MfDeployError: NaN or infinite logits, or a difference beyond the tolerance.
    """
    fix = "Export with --graph reference to see which step is wrong."
    if not math.isfinite(parity.max_abs_error):
        raise MfDeployError(f"{name} is wrong", "its logits are not finite", fix, GATE_FAILED)
    if parity.tolerance is not None and parity.relative_error > parity.tolerance:
        raise MfDeployError(
            f"{name} is not the reference model",
            f"logits differ by {parity.relative_error:.1e} of their range, allowed {parity.tolerance:.1e}",
            fix,
            GATE_FAILED,
        )


def seeded_pictures(count: int, side: int) -> np.ndarray:
    """(count, side, side, 3) uint8 pictures: smooth random colours with noise."""
    generator = np.random.default_rng(0)
    coarse = torch.from_numpy(generator.uniform(0, 255, (count, 3, 6, 6)))
    smooth = nn.functional.interpolate(coarse, size=(side, side), mode="bicubic").numpy()
    noisy = smooth + generator.normal(0, 12, smooth.shape)
    return noisy.clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
