"""Artifacts on an emulated ARM CPU."""

import numpy as np

from mf_deploy.artifact import Artifact
from mf_deploy.errors import MfDeployError
from mf_deploy.runtimes.arm import DEVICE_PREFIX
from mf_deploy.runtimes.arm.emulator import Emulator
from mf_deploy.runtimes.arm.lab import open_lab
from mf_deploy.runtimes.onnx import decoded
from mf_deploy.runtimes.session import Session
from mf_deploy.runtimes.tflite import dequantized, quantized


class ArmSession(Session):
    """An artifact in the ARM build of its engine, in one emulated process that lives as long as this does.

    Its outputs are those of the engine's ARM kernels; its times mean nothing.

    Raises:
        MfDeployError: no ARM lab, no ARM engine for the target, or the engine refuses the model.
    """

    def __init__(self, artifact: Artifact, cpu: str, threads: int = 1) -> None:
        manifest = artifact.manifest
        super().__init__(artifact.name, manifest.input, manifest.preprocessing)
        self.device = DEVICE_PREFIX + cpu
        require_arm_engine(artifact)
        self._emulator = Emulator(open_lab(), cpu, artifact.model_path, threads)
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


def require_arm_engine(artifact: Artifact) -> None:
    """Raise an error for targets that have no engine on ARM Linux."""
    if artifact.manifest.target == "coreml":
        raise MfDeployError(
            f"Cannot emulate {artifact.name}", "Core ML needs macOS", "Emulate onnx and tflite artifacts."
        )
