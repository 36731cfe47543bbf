"""Artifacts on an emulated CPU."""

import numpy as np

from mf_deploy.artifact import Artifact
from mf_deploy.errors import MfDeployError
from mf_deploy.runtimes.arm import DEVICE_PREFIX
from mf_deploy.runtimes.arm.emulator import Emulator
from mf_deploy.runtimes.arm.lab import open_lab
from mf_deploy.runtimes.onnx import decoded
from mf_deploy.runtimes.session import Session
from mf_deploy.runtimes.tflite import dequantized, quantized


class EmulatedSession(Session):
    """An artifact in an emulated process: its outputs are those of the kernels, its times mean nothing."""

    def __init__(self, artifact: Artifact, device: str, emulator: Emulator) -> None:
        manifest = artifact.manifest
        super().__init__(artifact.name, manifest.input, manifest.preprocessing)
        self.device, self._emulator = device, emulator
        self._outputs = {output.name: output for output in manifest.outputs}

    def _infer(self, prepared: np.ndarray) -> dict[str, np.ndarray]:
        tensor = self._emulator.inputs[0]
        if prepared.dtype != tensor.dtype:
            prepared = quantized(prepared, tensor.details)
        given = zip(self._emulator.outputs, self._emulator.run([prepared]), strict=True)
        return {
            of.name: dequantized(decoded(value, self._outputs[of.name]), of.details)
            for of, value in given
            if of.name in self._outputs
        }

    def close(self) -> None:
        """End the emulated process."""
        self._emulator.close()


class ArmSession(EmulatedSession):
    """An artifact in the ARM build of its engine, in one process that lives as long as this does.

    Raises:
        MfDeployError: no ARM lab, no ARM engine for the target, or the engine refuses the model.
    """

    def __init__(self, artifact: Artifact, cpu: str, threads: int = 1) -> None:
        require_engine(artifact)
        emulator = Emulator(open_lab(), cpu, artifact.model_path, threads)
        super().__init__(artifact, DEVICE_PREFIX + cpu, emulator)


def require_engine(artifact: Artifact) -> None:
    """Raise an error for targets that have no engine on Linux."""
    if artifact.manifest.target == "coreml":
        raise MfDeployError(
            f"Cannot emulate {artifact.name}", "Core ML needs macOS", "Emulate onnx and tflite artifacts."
        )
