"""ONNX artifacts on onnxruntime's CPU engine."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from mf_deploy.artifact import Artifact, TensorInfo
from mf_deploy.errors import MfDeployError, require
from mf_deploy.runtimes.onnx_saturation import exact_form
from mf_deploy.runtimes.session import Session

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


INTEGER_SCHEMES = ("w8a8", "mixed")
JUDGED_BY_TWIN = (
    "its int8 weights saturate in this processor's kernels; results are of the same numbers as uint8, "
    "which are those of ARM bit for bit"
)


class OnnxSession(Session):
    """One onnxruntime session with ``threads`` compute threads.

    A file whose integer products this machine would saturate is run with the same weights as uint8.

    Args:
        as_written: run the file itself in any case, which is what a time is taken of.
    """

    def __init__(self, artifact: Artifact, threads: int = 1, as_written: bool = False) -> None:
        require("onnxruntime", "onnx")
        import onnxruntime

        manifest = artifact.manifest
        super().__init__(artifact.name, manifest.input, manifest.preprocessing)
        self._model: bytes | str = str(artifact.model_path)
        if manifest.scheme in INTEGER_SCHEMES and manifest.weight_type != "uint8" and not as_written:
            exact = exact_form(artifact.model_path)
            if exact is not None:
                self._model, self.remark = exact, JUDGED_BY_TWIN
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                self._model, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime raises its own types, which derive from Exception alone
            why = str(error).splitlines()[0]
            raise MfDeployError(f"Cannot load {artifact.model_path}", why, "Export it again.") from None
        self._outputs = [output.name for output in self._session.get_outputs()]
        self._described = {output.name: output for output in manifest.outputs}

    def _infer(self, prepared: np.ndarray) -> dict[str, np.ndarray]:
        values = self._session.run(self._outputs, {self.input.name: prepared})
        return {
            name: decoded(value, self._described.get(name))
            for name, value in zip(self._outputs, values, strict=True)
        }

    def intermediates(self, batch: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        session = _open_with_all_outputs(self._model)
        names = [output.name for output in session.get_outputs()]
        for chunk in self._chunks(batch):
            values = session.run(names, {self.input.name: chunk})
            yield {
                name: np.asarray(value, np.float32)
                for name, value in zip(names, values, strict=True)
                if isinstance(value, np.ndarray) and value.dtype.kind == "f"
            }


def decoded(codes: np.ndarray, described: TensorInfo | None) -> np.ndarray:
    """The real values that integer ``codes`` stand for; other values as they are."""
    if described is None or described.scale is None:
        return codes
    return (codes.astype(np.float32) - (described.zero_point or 0)) * np.float32(described.scale)


def _open_with_all_outputs(source: bytes | str) -> "InferenceSession":
    """A session that gives every tensor of the model and fuses nothing."""
    import onnx
    import onnxruntime

    model = onnx.load_from_string(source) if isinstance(source, bytes) else onnx.load(source)
    known = {output.name for output in model.graph.output}
    inner = [name for node in model.graph.node for name in node.output if name and name not in known]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
