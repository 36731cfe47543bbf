"""ai-edge-quantizer on a float TFLite model: which operators, from which ranges, and does it run."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mf_deploy.errors import MfDeployError
from mf_deploy.export.quiet import quiet
from mf_deploy.export.target import INPUT_NAME
from mf_deploy.runtimes.native_log import quiet_native

SIGNATURE = "serving_default"

Ranges = dict[str, dict[str, np.ndarray]]  # tensor name -> {"min", "max"}

DEAD_RANGE = 1e-6
DEAD_RANGE_BECOMES = 1.0
PROBE_SECONDS = 300

CONVOLUTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D")
LINEAR = ("FULLY_CONNECTED",)


@dataclass(frozen=True)
class Recipe:
    """TFLite operators by what happens to them; the others stay in float.

    ``static``: int8 weights and activations, ranges from calibration. ``dynamic``: int8 weights and
    multiplications, activations quantized as they come, each by its own range. ``weights``: int8 weights,
    dequantized for float arithmetic. ``half``: float16 weights, likewise.
    """

    static: tuple[str, ...] = ()
    dynamic: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    half: tuple[str, ...] = ()


# Measured on a trained Mobile-Former 52M (1000 images, 256 for calibration; agreement with float, SQNR):
# everything static does not load; with its dead ranges widened, BATCH_MATMUL in int8 costs all accuracy
# (29 %, 4 dB). Convolutions static: 95 %, 23 dB. FULLY_CONNECTED static as well: 92 %, 20 dB; dynamic:
# 94 %, 22 dB, with the same 97 % of the multiplications in int8. CONCATENATION costs 2 dB more, MUL and
# ADD 6 dB. PAD before a convolution costs nothing and spares a float copy: 0.44 ms become 0.32 ms.
RECIPES: dict[str, tuple[Recipe, ...]] = {
    "w8a8": (
        Recipe(static=(*CONVOLUTIONS, "PAD"), dynamic=LINEAR),
        Recipe(static=CONVOLUTIONS, weights=LINEAR),
    ),
    "w8": (Recipe(weights=CONVOLUTIONS + LINEAR),),
    "fp16": (Recipe(half=CONVOLUTIONS + LINEAR),),
}


def apply_recipe(model: bytes, recipe: Recipe, ranges: Ranges | None = None) -> bytes:
    """The float TFLite ``model`` quantized by ``recipe``; a static recipe needs the activations' ranges."""
    from ai_edge_quantizer import quantizer, recipe_manager
    from ai_edge_quantizer.algorithm_manager import AlgorithmName
    from ai_edge_quantizer.qtyping import TFLOperationName

    manager = recipe_manager.RecipeManager()
    for name in recipe.static:
        manager.add_static_config(".*", TFLOperationName(name), activation_num_bits=8, weight_num_bits=8)
    for name in recipe.dynamic:
        manager.add_dynamic_config(".*", TFLOperationName(name), num_bits=8)
    for name in recipe.weights:
        manager.add_weight_only_config(".*", TFLOperationName(name), num_bits=8)
    for name in recipe.half:
        manager.add_weight_only_config(
            ".*", TFLOperationName(name), num_bits=16, algorithm_key=AlgorithmName.FLOAT_CASTING
        )
    with quiet_native(), quiet():
        tool = quantizer.Quantizer(model, manager.get_quantization_recipe())
        result = tool.quantize(ranges, enable_progress_bar=False, enable_progress_report=False)
    assert result.quantized_model is not None
    return bytes(result.quantized_model)


def activation_ranges(model: bytes, images: Iterable[np.ndarray]) -> Ranges:
    """Smallest and largest value of every tensor over all ``images``, each a batch of the model's input.

    One batch is in memory at a time. The tool's own default, a moving average, forgets: it costs 6 dB on
    Mobile-Former. A tensor that is zero on every image (a dead unit's) gets a range of one: its scale of
    nearly zero would overflow the integers of whoever reads it.

    Raises:
        MfDeployError: there are no images.
    """
    from ai_edge_quantizer import recipe_manager
    from ai_edge_quantizer.calibrator import CalibrationMode, Calibrator
    from ai_edge_quantizer.utils.qsv_utils import min_max_update

    with quiet_native():
        calibrator = Calibrator(
            model,
            num_threads=os.cpu_count() or 1,
            mode=CalibrationMode.CALIBRATION_PROFILER_BASED,
            qsv_update_func=min_max_update,
        )
    unused = recipe_manager.RecipeManager()
    for image in images:
        with quiet():
            calibrator.calibrate({SIGNATURE: [{INPUT_NAME: image}]}, unused)
    ranges: dict[str, Any] = calibrator.get_model_qsvs()
    if not ranges:
        raise MfDeployError(
            "Cannot calibrate", "there are no calibration images", "Give at least one batch of images."
        )
    for values in ranges.values():
        if max(np.abs(values["min"]).max(), np.abs(values["max"]).max()) < DEAD_RANGE:
            values["max"] = np.full_like(values["max"], DEAD_RANGE_BECOMES)
    return ranges


def why_it_fails(model_path: Path) -> str | None:
    """What goes wrong when LiteRT runs the model, in one line; None where nothing does."""
    probe = Path(__file__).with_name("tflite_probe.py")
    command = [sys.executable, "-P", str(probe), str(model_path)]  # -P: our onnx.py is not the package onnx
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_SECONDS)
    except subprocess.TimeoutExpired:
        return f"it did not finish in {PROBE_SECONDS} s"
    if done.returncode == 0:
        return None
    if done.returncode < 0:
        return f"LiteRT crashes on it with {signal.Signals(-done.returncode).name}"
    return (done.stderr.strip().splitlines() or ["LiteRT gave no reason"])[-1]
