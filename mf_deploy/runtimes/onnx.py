"""ONNX artifacts on onnxruntime's CPU engine."""

import numpy as np

from mf_deploy.artifact import Artifact
from mf_deploy.errors import MfDeployError, require
from mf_deploy.runtimes.session import Session


class OnnxSession(Session):
    """One onnxruntime session with ``threads`` compute threads."""

    def __init__(self, artifact: Artifact, threads: int = 1) -> None:
        require("onnxruntime", "onnx")
        import onnxruntime

        manifest = artifact.manifest
        super().__init__(artifact.name, manifest.input, manifest.preprocessing)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                str(artifact.model_path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime raises its own types, which derive from Exception alone
            why = str(error).splitlines()[0]
            raise MfDeployError(f"Cannot load {artifact.model_path}", why, "Export it again.") from None
        self._outputs = [output.name for output in self._session.get_outputs()]

    def _infer(self, prepared: np.ndarray) -> dict[str, np.ndarray]:
        values = self._session.run(self._outputs, {self.input.name: prepared})
        return dict(zip(self._outputs, values, strict=True))
