"""What calibration sees of a float TFLite model: histograms of the tensors that may become int8."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from mf_deploy.errors import MfDeployError
from mf_deploy.export.ranges import Histogram, Range
from mf_deploy.quantization import RangeMethod
from mf_deploy.runtimes.native_log import quiet_native

DEAD_RANGE = 1e-6
DEAD_RANGE_BECOMES = (0.0, 1.0)


@dataclass
class Observed:
    """By index of the tensor in the float model; ``largest``: of any float tensor's absolute values."""

    histograms: dict[int, Histogram]
    largest: float = 0.0
    _ranges: dict[tuple[int, RangeMethod], Range] = field(default_factory=dict)

    def range(self, tensor: int, method: RangeMethod) -> Range:
        """The range of the tensor; that of a dead unit, zero on every image, becomes one.

        A scale of nearly zero would overflow the integers of whoever reads it.
        """
        key = (tensor, method)
        if key not in self._ranges:
            low, high = self.histograms[tensor].range(method)
            self._ranges[key] = (low, high) if high - low > DEAD_RANGE else DEAD_RANGE_BECOMES
        return self._ranges[key]


def observe(model: bytes, tensors: Iterable[int], images: Iterable[np.ndarray]) -> Observed:
    """Run ``images``, each a batch of the model's input, and count the values of ``tensors``.

    One batch is in memory at a time.

    Raises:
        MfDeployError: there are no images.
    """
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    with quiet_native():
        interpreter = Interpreter(
            model_content=model,
            experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
            experimental_preserve_all_tensors=True,
        )
        interpreter.allocate_tensors()
    (taken,) = interpreter.get_input_details()
    observed = Observed({tensor: Histogram() for tensor in tensors})
    computed = _computed_floats(interpreter)
    seen = False
    for image in images:
        seen = True
        interpreter.set_tensor(taken["index"], image)
        interpreter.invoke()
        for tensor, histogram in observed.histograms.items():
            histogram.update(interpreter.get_tensor(tensor))
        largest = max(float(np.abs(interpreter.get_tensor(tensor)).max()) for tensor in computed)
        observed.largest = max(observed.largest, largest)
    if not seen:
        raise MfDeployError(
            "Cannot calibrate", "there are no calibration images", "Give at least one batch of images."
        )
    return observed


def _computed_floats(interpreter: object) -> list[int]:
    """Every float tensor that an operator of the main subgraph writes."""
    details = interpreter.get_tensor_details()  # type: ignore[attr-defined]
    floats = {each["index"] for each in details if each["dtype"] == np.float32}
    operators = interpreter._get_ops_details()  # type: ignore[attr-defined]
    return sorted({int(i) for operator in operators for i in operator["outputs"]} & floats)
