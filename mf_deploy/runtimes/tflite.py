"""TFLite artifacts on LiteRT's CPU engine (XNNPACK)."""

import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from mf_deploy.artifact import Artifact
from mf_deploy.errors import MfDeployError, require
from mf_deploy.runtimes.native_log import quiet_native
from mf_deploy.runtimes.session import Session

if TYPE_CHECKING:
    from ai_edge_litert.interpreter import Interpreter


class TfliteSession(Session):
    """One LiteRT interpreter with ``threads`` compute threads.

    Inputs and outputs that the file keeps as quantized integers are floats outside of the session.
    """

    def __init__(self, artifact: Artifact, threads: int = 1) -> None:
        require("ai_edge_litert", "tflite")
        from ai_edge_litert.interpreter import Interpreter

        manifest = artifact.manifest
        self._path = str(artifact.model_path)
        super().__init__(artifact.name, manifest.input, manifest.preprocessing)
        try:
            with quiet_native():
                self._interpreter = Interpreter(model_path=str(artifact.model_path), num_threads=threads)
                self._interpreter.allocate_tensors()
                runner = self._interpreter.get_signature_runner()
            self._taken = runner.get_input_details()[manifest.input.name]
            given = runner.get_output_details()
            self._given = {output.name: given[output.name] for output in manifest.outputs}
        except KeyError as error:
            raise self._cannot("load", f"it has no tensor {error}") from None
        except (ValueError, RuntimeError) as error:
            raise self._cannot("load", str(error)) from None
        shape = tuple(int(size) for size in self._taken["shape"])
        if shape != manifest.input.shape:
            raise self._cannot("load", f"it takes {shape}, the manifest says {manifest.input.shape}")

    def _infer(self, prepared: np.ndarray) -> dict[str, np.ndarray]:
        if prepared.dtype != self._taken["dtype"]:
            prepared = quantized(prepared, self._taken)
        try:
            self._interpreter.set_tensor(self._taken["index"], prepared)
            self._interpreter.invoke()
        except (ValueError, RuntimeError) as error:
            raise self._cannot("run", str(error)) from None
        return {
            name: dequantized(self._interpreter.get_tensor(tensor["index"]), tensor)
            for name, tensor in self._given.items()
        }

    def intermediates(self, batch: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        with quiet_native(), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that every tensor is kept, which is the purpose
            interpreter = Interpreter(
                model_path=self._path,
                experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
                experimental_preserve_all_tensors=True,
            )
            interpreter.allocate_tensors()
        for chunk in self._chunks(batch):
            same = chunk.dtype == self._taken["dtype"]
            interpreter.set_tensor(self._taken["index"], chunk if same else quantized(chunk, self._taken))
            interpreter.invoke()
            yield dict(_real_tensors(interpreter))

    def _cannot(self, what: str, why: str) -> MfDeployError:
        return MfDeployError(f"Cannot {what} {self.name}", why, "Export it again.")


def _real_tensors(interpreter: "Interpreter") -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor that stands for real numbers, as float32."""
    for tensor in interpreter.get_tensor_details():
        if tensor["quantization"][0] or np.issubdtype(tensor["dtype"], np.floating):
            values = dequantized(interpreter.get_tensor(tensor["index"]), tensor)
            yield tensor["name"], np.asarray(values, np.float32)


def quantized(values: np.ndarray, tensor: dict[str, Any]) -> np.ndarray:
    """Real values as the integers of ``tensor``: round(values / scale) + zero point, saturating."""
    scale, zero_point = tensor["quantization"]
    limits = np.iinfo(tensor["dtype"])
    codes = np.rint(values / (scale or 1.0)) + zero_point
    return codes.clip(limits.min, limits.max).astype(tensor["dtype"])


def dequantized(values: np.ndarray, tensor: dict[str, Any]) -> np.ndarray:
    """The real values of an integer tensor; a float one as it is."""
    if not np.issubdtype(values.dtype, np.integer):
        return values
    scale, zero_point = tensor["quantization"]
    return (values.astype(np.float32) - zero_point) * np.float32(scale or 1.0)
