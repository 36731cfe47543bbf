"""Quantized TFLite models of one graph: what a plan means for each operator, written and proven to run."""

import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from mf_deploy.errors import GATE_FAILED, MfDeployError
from mf_deploy.export.lower.graph import DeployGraph
from mf_deploy.export.target import ExportOptions, Quantizer, WrittenModel
from mf_deploy.export.tflite_graph import TfliteGraph
from mf_deploy.export.tflite_half import LARGEST, allow_half
from mf_deploy.export.tflite_interface import integer_output
from mf_deploy.export.tflite_quantize import WEIGHT_AXIS, Quantization, Treatment, layers, sources
from mf_deploy.export.tflite_ranges import Observed
from mf_deploy.export.tflite_write import MODEL_FILE, finish, written
from mf_deploy.quantization import QuantPlan, RangeMethod

PROBE_SECONDS = 300
BEST_RANGES: RangeMethod = "mse"


@dataclass(frozen=True)
class TfliteQuantizer(Quantizer):
    """Writes ``model``, the float TFLite model of ``graph``, by any plan.

    ``floats``: what layers get that the plan leaves in fp32; ``half`` stores their weights in float16.
    """

    graph: DeployGraph
    scheme: str
    options: ExportOptions
    model: bytes
    observed: Observed
    ranges: RangeMethod = BEST_RANGES
    floats: Treatment | None = None
    paths: Mapping[int, str] = field(init=False)

    def __post_init__(self) -> None:
        found = layers(TfliteGraph(self.model), self.graph.module)
        object.__setattr__(self, "paths", found)

    @property
    def modules(self) -> list[str]:
        return [path for path in self.paths.values() if path]

    def in_single_precision(self) -> "TfliteQuantizer":
        return replace(self, options=replace(self.options, half_precision=False))

    def write(self, plan: QuantPlan, folder: Path) -> WrittenModel:
        path = folder / MODEL_FILE
        why: str | None = None
        fits = self.options.half_precision and self.observed.largest < LARGEST
        for half in (True, False) if fits else (False,):
            path.write_bytes(self._rewritten(plan, half))
            why = why_it_fails(path)
            if why is None:
                model = written(self.graph, self.options, TfliteGraph(path.read_bytes()))
                return replace(model, half_precision=half)
        raise MfDeployError(
            f"Cannot quantize {self.graph.record.source.name} to TFLite {self.scheme}",
            why or "LiteRT does not run it",
            "Choose another --scheme.",
            GATE_FAILED,
        )

    def _rewritten(self, plan: QuantPlan, half: bool) -> bytes:
        graph = TfliteGraph(self.model)
        chosen = treatments(graph, self.paths, plan, half)
        if self.floats:
            chosen |= {position: self.floats for position in self.paths if position not in chosen}
        logits = sources(graph)(int(graph.main.outputs[0]))
        Quantization(graph, chosen, lambda tensor: self.observed.range(tensor, self.ranges)).apply()
        if self.options.output != "float":
            integer_output(graph, self.options.output, self.observed.range(logits, "minmax"))
        if half:
            allow_half(graph)
        return finish(graph, self.graph, self.scheme, self.options)


def treatments(
    graph: TfliteGraph, paths: Mapping[int, str], plan: QuantPlan, half: bool
) -> dict[int, Treatment]:
    """What happens to each weighted operator, by its position.

    int8 means what costs XNNPACK least and the accuracy little. Measured on Mobile-Former 294M, cortex-a76,
    and on the trained 52M:

    - convolutions: static. Dynamic ones would pack every pixel as it comes: 42 M instructions for 22 M.
    - depthwise convolutions: static between two others. Beside a dynamic ReLU float arithmetic, in half
      precision cheaper than int8 and more precise (1.5 dB, simulated), but not behind a padding.
    - linear layers: dynamic. Static ones cost 8 dB (simulated): one scale does not fit a token's channels.
      Where their result meets the feature map it is rounded to codes, because XNNPACK has the dynamic
      product in float32 only, and would compute all that follows from it in float32.
    """
    precisions = {position: plan.precision(path) for position, path in paths.items()}
    static = {p for p in paths if precisions[p] == "int8" and graph.kind(graph.operators[p]) == "CONV_2D"}
    meeting = meeting_maps(graph) if half else set()
    chosen: dict[int, Treatment] = dict.fromkeys(static, "static")
    for position, precision in precisions.items():
        kind = graph.kind(graph.operators[position])
        if precision == "w8":
            chosen[position] = "weights"
        elif precision == "int8" and kind == "FULLY_CONNECTED":
            chosen[position] = "rounded" if position in meeting else "dynamic"
        elif precision == "int8" and kind == "DEPTHWISE_CONV_2D":
            codes = paths[position] in plan.modules or _among_codes(graph, position, static)
            chosen[position] = "static" if codes else "weights"
    return chosen


def _among_codes(graph: TfliteGraph, position: int, static: set[int]) -> bool:
    """Whether a depthwise convolution stands right between two int8 convolutions, or behind a padding.

    XNNPACK computes a padding within an int8 convolution, but by itself in half precision.
    """
    operator = graph.operators[position]
    read, made = int(operator.inputs[0]), int(operator.outputs[0])
    writer = next((p for p, each in enumerate(graph.operators) if int(each.outputs[0]) == read), -1)
    if writer >= 0 and graph.kind(graph.operators[writer]) == "PAD":
        return True
    return writer in static and any(int(graph.operators[p].inputs[0]) == made for p in static)


def meeting_maps(graph: TfliteGraph) -> set[int]:
    """Positions of the linear layers whose result is combined with a feature map.

    A map is what a convolution gives, and all that is computed from it without another layer, up to the
    mean over its positions.
    """
    kinds = [graph.kind(operator) for operator in graph.operators]
    maps: set[int] = set()
    origins: dict[int, set[int]] = {}
    meeting: set[int] = set()
    for position, operator in enumerate(graph.operators):
        inputs = {int(index) for index in operator.inputs}
        outputs = {int(index) for index in operator.outputs}
        if kinds[position] in WEIGHT_AXIS:
            if kinds[position] != "FULLY_CONNECTED":
                maps |= outputs
            origins |= {index: {position} for index in outputs}
            continue
        linear = {each for index in inputs for each in origins.get(index, set())}
        if inputs & maps:
            maps |= outputs if kinds[position] != "MEAN" else set()
            meeting |= {each for each in linear if kinds[each] == "FULLY_CONNECTED"}
        else:
            origins |= {index: linear for index in outputs}
    return meeting


def why_it_fails(model_path: Path) -> str | None:
    """What goes wrong when LiteRT runs the model, in one line; None where nothing does."""
    probe = Path(__file__).with_name("tflite_probe.py")
    command = [sys.executable, "-P", str(probe), str(model_path)]  # -P: our onnx.py is not the package onnx
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_SECONDS)
    except subprocess.TimeoutExpired:
        return f"it did not finish in {PROBE_SECONDS} s"
    if done.returncode == 0:
        return None
    if done.returncode < 0:
        return f"LiteRT crashes on it with {signal.Signals(-done.returncode).name}"
    return (done.stderr.strip().splitlines() or ["LiteRT gave no reason"])[-1]
