"""The engines that run artifacts on the host, and their versions."""

import importlib.metadata
from dataclasses import dataclass

from mf_deploy.artifact import Target
from mf_deploy.benchmarks.latency import EngineInfo
from mf_deploy.errors import require


@dataclass(frozen=True)
class Engine:
    """An engine's name, the module to load, and the distribution that has it."""

    name: str
    module: str
    distribution: str


ENGINES: dict[Target, Engine] = {
    "onnx": Engine("ONNX Runtime", "onnxruntime", "onnxruntime"),
    "tflite": Engine("LiteRT", "ai_edge_litert.interpreter", "ai-edge-litert"),
    "coreml": Engine("Core ML", "coremltools", "coremltools"),
}


def engine_of(target: Target) -> EngineInfo:
    """The installed engine of a target.

    Raises:
        MfDeployError: it is not installed.
    """
    engine = ENGINES[target]
    require(engine.module.partition(".")[0], target)
    return EngineInfo(name=engine.name, version=importlib.metadata.version(engine.distribution))
