"""What a target is: it writes a model file, quantizes one, and counts what a file holds."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from mf_deploy.artifact import Quantization, Target, TensorInfo
from mf_deploy.export.lower.graph import DeployGraph

INPUT_NAME = "image"
OUTPUT_NAME = "logits"

CalibrationBatches = Callable[[], Iterator[np.ndarray]]


@dataclass(frozen=True)
class ExportOptions:
    """``input``: normalised floats, or the uint8 RGB picture as a camera gives it."""

    input: Literal["float", "uint8"] = "float"
    deployment_target: str = "iOS16"


@dataclass(frozen=True)
class WrittenModel:
    """A model file or package that a target wrote into a folder."""

    model_file: str
    input: TensorInfo
    outputs: list[TensorInfo]
    tools: dict[str, str]


class TargetExporter(ABC):
    """One target format. Heavy imports belong inside the methods."""

    name: Target
    modules: tuple[str, ...] = ()  # importable names that the target needs; its extra provides them
    float_schemes: tuple[str, ...] = ("fp32", "fp16")
    quantized_schemes: tuple[str, ...] = ("w8a8", "w8", "fp16")

    @abstractmethod
    def write(self, graph: DeployGraph, scheme: str, options: ExportOptions, folder: Path) -> WrittenModel:
        """Write the float model of ``scheme`` into ``folder``."""

    @abstractmethod
    def quantize(
        self,
        graph: DeployGraph,
        scheme: str,
        options: ExportOptions,
        batches: CalibrationBatches,
        folder: Path,
    ) -> WrittenModel:
        """Write the model quantized by ``scheme`` into ``folder``.

        Args:
            batches: called for each pass over the calibration images; yields (batch, H, W, 3) uint8
                pictures, exactly ``graph.batch`` of them at a time, never all in memory.
        """

    @abstractmethod
    def count(self, model_path: Path) -> Quantization:
        """MACs and stored parameters by precision (``fp32``, ``fp16``, ``int8``...), read from the file."""
