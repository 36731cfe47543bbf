"""Run a Core ML artifact: with Apple's runtime on a Mac, with the MIL interpreter elsewhere."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Literal

import numpy as np
import torch
from PIL import Image

from mf_deploy.artifact import Artifact
from mf_deploy.errors import MfDeployError, require
from mf_deploy.mil import Interpreter, quiet_coremltools
from mf_deploy.mil.interpreter import Watch
from mf_deploy.runtimes.session import Session

ComputeUnits = Literal["ALL", "CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE"]


class CoremlSession(Session):
    """An open Core ML artifact.

    Off macOS nothing can run a Core ML model but an interpreter of its program (``mf_deploy.mil``): its
    logits check the conversion, and its times say nothing of a phone.

    Args:
        threads: CPU threads of the interpreter; Apple's runtime decides for itself.
        compute_units: where Apple's runtime may run the model.
    """

    def __init__(self, artifact: Artifact, threads: int = 1, compute_units: ComputeUnits = "ALL") -> None:
        manifest = artifact.manifest
        super().__init__(artifact.name, manifest.input, manifest.preprocessing)
        self.threads = threads
        outputs = [output.name for output in manifest.outputs]
        self._engine: _Interpreted | _Apple
        if sys.platform == "darwin":
            self._engine = _Apple(artifact, outputs, compute_units)
        else:
            self._engine = _Interpreted(artifact, outputs, threads)

    def _infer(self, prepared: np.ndarray) -> dict[str, np.ndarray]:
        return self._engine.run(prepared)

    def intermediates(self, batch: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        if not isinstance(self._engine, _Interpreted):
            yield from super().intermediates(batch)
            return
        for chunk in self._chunks(batch):
            tensors: dict[str, np.ndarray] = {}
            self._engine.run(chunk, partial(_keep, tensors))
            yield tensors


def _keep(tensors: dict[str, np.ndarray], name: str, value: torch.Tensor) -> None:
    tensors[name] = value.numpy()


class _Interpreted:
    def __init__(self, artifact: Artifact, outputs: list[str], threads: int) -> None:
        self.input, self.threads = artifact.manifest.input, threads
        self.interpreter = Interpreter(artifact.model_path, outputs)

    def run(self, prepared: np.ndarray, watch: Watch | None = None) -> dict[str, np.ndarray]:
        images = prepared.transpose(0, 3, 1, 2) if self.input.layout == "NHWC" else prepared
        with torch_threads(self.threads):
            return self.interpreter.run({self.input.name: images}, watch)


class _Apple:
    def __init__(self, artifact: Artifact, outputs: list[str], compute_units: ComputeUnits) -> None:
        require("coremltools", "coreml")
        self.input, self.outputs = artifact.manifest.input, outputs
        with quiet_coremltools():
            import coremltools as ct

            try:
                units = ct.ComputeUnit[compute_units]
                self.model = ct.models.MLModel(str(artifact.model_path), compute_units=units)
            except Exception as error:  # Core ML's compiler reports through several exception types
                reason = str(error).strip().splitlines()
                raise MfDeployError(
                    f"Core ML cannot load {artifact.folder}",
                    reason[0] if reason else type(error).__name__,
                    "It may need a newer macOS: export with an older --deployment-target.",
                ) from error

    def run(self, prepared: np.ndarray) -> dict[str, np.ndarray]:
        value = Image.fromarray(prepared[0]) if self.input.layout == "NHWC" else prepared
        predictions = self.model.predict({self.input.name: value})
        return {name: np.asarray(predictions[name], dtype=np.float32) for name in self.outputs}


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Run torch with ``threads`` threads, and put back what the process had.

    The number is global to the process: two sessions that run at once share the last one that was set,
    which changes their speed but not their results.
    """
    before = torch.get_num_threads()
    if before == threads:
        yield
        return
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
