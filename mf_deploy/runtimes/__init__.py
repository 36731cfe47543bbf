"""Open an artifact, or a run's reference model, and run it."""

from pathlib import Path

from mf_deploy.artifact import Artifact
from mf_deploy.runtimes.session import Session

__all__ = ["Session", "open_reference", "open_session"]


def open_session(
    artifact: Artifact, device: str = "host", threads: int = 1, as_written: bool = False
) -> Session:
    """The artifact, loaded and ready to run on ``device`` with ``threads`` compute threads.

    Args:
        device: ``host``, or in emulation ``arm:<cpu>`` for the engine's ARM build, ``x86:<cpu>`` for older
            x86 processors.
        as_written: for timing: the file itself, also where this machine computes it inexactly.

    Raises:
        MfDeployError: an unknown device, a missing runtime, or a file that does not load.
    """
    if device.startswith("x86:"):
        from mf_deploy.runtimes import x86

        return x86.X86Session(artifact, x86.cpu_of(device), threads)
    if device != "host":
        from mf_deploy.runtimes.arm import cpu_of
        from mf_deploy.runtimes.arm.session import ArmSession

        return ArmSession(artifact, cpu_of(device), threads)
    if artifact.manifest.target == "onnx":
        from mf_deploy.runtimes.onnx import OnnxSession

        return OnnxSession(artifact, threads, as_written)
    if artifact.manifest.target == "tflite":
        from mf_deploy.runtimes.tflite import TfliteSession

        return TfliteSession(artifact, threads)
    from mf_deploy.runtimes.coreml import CoremlSession

    return CoremlSession(artifact, threads)


def open_reference(run: Path, batch: int = 1, threads: int = 1) -> Session:
    """The PyTorch reference model of the model folder ``run``."""
    from mf_deploy.models.stored import load_reference
    from mf_deploy.runtimes.torch import TorchSession

    model, record = load_reference(run)
    return TorchSession(model, record.preprocessing, batch, threads)
