"""What a target is: it writes a model file, quantizes one, and counts what a file holds."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mf_deploy.artifact import Quantization, Scheme, Target, TensorInfo
from mf_deploy.errors import MfDeployError
from mf_deploy.export.lower.graph import DeployGraph
from mf_deploy.quantization import Interface, QuantPlan, QuantPolicy
from mf_deploy.runtimes.onnx_saturation import WeightType

INPUT_NAME = "image"
OUTPUT_NAME = "logits"

CalibrationBatches = Callable[[], Iterator[np.ndarray]]


@dataclass(frozen=True)
class ExportOptions:
    """What the model takes and gives.

    ``input``: normalised floats, the uint8 RGB picture as a camera gives it, or the same minus 128 as int8.
    ``output``: float logits, or integers that the manifest's scale and zero point turn into logits.
    ``weight_type``: of ONNX files' integer products. ``uint8`` is exact on every processor; ``int8`` is
    cheaper on ARM cores without dot products, and saturates on x86 without VNNI.
    ``half_precision``: LiteRT may compute what is float in float16, on processors that have it.
    """

    input: Interface = "float"
    output: Interface = "float"
    deployment_target: str = "iOS16"
    weight_type: WeightType = "uint8"
    half_precision: bool = True


@dataclass(frozen=True)
class WrittenModel:
    """A model file or package that a target wrote into a folder."""

    model_file: str
    input: TensorInfo
    outputs: list[TensorInfo]
    tools: dict[str, str]
    half_precision: bool = False
    weight_type: WeightType | None = None


class Quantizer(ABC):
    """A float model with the ranges of its activations, ready to be written by any plan.

    Opening one converts and calibrates, once; ``write`` is quick, so that a search can call it often.
    """

    @property
    @abstractmethod
    def modules(self) -> list[str]:
        """Paths, in the reference model, of the layers that a plan can address in this target."""

    @abstractmethod
    def write(self, plan: QuantPlan, folder: Path) -> WrittenModel:
        """Write the model quantized by ``plan`` into ``folder``.

        Raises:
            MfDeployError: the engine cannot take the model in any of the forms that serve the plan.
        """

    def in_single_precision(self) -> "Quantizer":
        """The same, whose files keep an engine from computing in float16."""
        return self


class TargetExporter(ABC):
    """One target format. Heavy imports belong inside the methods."""

    name: Target
    modules: tuple[str, ...] = ()  # importable names that the target needs; its extra provides them
    float_schemes: tuple[str, ...] = ("fp32", "fp16")
    quantized_schemes: tuple[Scheme, ...] = ("w8a8", "w8", "mixed", "fp16")

    @abstractmethod
    def write(self, graph: DeployGraph, scheme: str, options: ExportOptions, folder: Path) -> WrittenModel:
        """Write the float model of ``scheme`` into ``folder``."""

    @abstractmethod
    def quantizer(
        self,
        graph: DeployGraph,
        policy: QuantPolicy,
        options: ExportOptions,
        batches: CalibrationBatches,
    ) -> Quantizer:
        """Convert ``graph`` and measure what quantizing it by ``policy`` needs to know.

        Args:
            batches: called for each pass over the calibration images; yields (batch, H, W, 3) uint8
                pictures, exactly ``graph.batch`` of them at a time, never all in memory.
        """

    def refuse(self, policy: QuantPolicy, options: ExportOptions) -> None:
        """Raise an error for a scheme, plan or interface that this target's engines have nothing for."""
        schemes = set(self.quantized_schemes)
        asked = {policy.scheme} | ({"w8a16"} & set(policy.plan.modules.values()) if policy.plan else set())
        for scheme in sorted(asked - schemes):
            raise MfDeployError(
                f"Cannot quantize to {scheme} for {self.name}",
                "its engine has no such arithmetic",
                f"Choose one of: {', '.join(self.quantized_schemes)}.",
            )

    @abstractmethod
    def count(self, model_path: Path) -> Quantization:
        """MACs and stored parameters by precision (``fp32``, ``fp16``, ``int8``...), read from the file."""
