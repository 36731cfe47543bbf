"""Ranges of the maps that an ONNX file's integer convolutions read and give, from calibration images."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from mf_deploy.export.onnx_graph import FloatGraph
from mf_deploy.export.onnx_integer import LEVELS
from mf_deploy.export.ranges import PERCENTILE_TAIL, Histogram, Range
from mf_deploy.quantization import RangeMethod

PAIRS = 1 << 15
PAIRS_A_BATCH = 256
LOWS, HIGHS = np.linspace(0.1, 1.0, 16), np.linspace(0.4, 1.0, 13)


@dataclass
class LeakSample:
    """Random pairs (v, r) of a dynamic ReLU max(v, r·v), and the extremes of all v.

    What a range does to v cannot be told from v alone: its negative values leave the ReLU shrunk by r.
    """

    low: float = 0.0
    high: float = 0.0
    values: np.ndarray = field(default_factory=lambda: np.zeros((2, PAIRS), np.float32))
    seen: int = 0
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def update(self, scaled: np.ndarray, ratio: np.ndarray) -> None:
        """Take some pairs of (N, C, H, W) and (N, C, 1, 1); every batch has the same chance to stay."""
        self.low, self.high = min(self.low, float(scaled.min())), max(self.high, float(scaled.max()))
        places = self.random.integers(0, scaled.size, PAIRS_A_BATCH)
        found = np.stack([scaled.ravel()[places], np.broadcast_to(ratio, scaled.shape).flat[places]])
        first = self.seen
        self.seen += PAIRS_A_BATCH
        if self.seen <= PAIRS:
            self.values[:, first : self.seen] = found
        else:
            kept = self.random.random(PAIRS_A_BATCH) < PAIRS / self.seen
            self.values[:, self.random.integers(0, PAIRS, int(kept.sum()))] = found[:, kept]

    def range(self, method: RangeMethod) -> Range:
        """The range of v's codes; for ``mse`` the one with the least error behind the ReLU."""
        scaled, ratio = self.values[:, : min(self.seen, PAIRS)]
        if method == "percentile":
            ends = np.quantile(
                np.maximum(scaled, ratio * scaled), [PERCENTILE_TAIL / 2, 1 - PERCENTILE_TAIL / 2]
            )
            return min(float(ends[0]), 0.0), max(float(ends[1]), 0.0)
        if method == "minmax" or self.high == self.low:
            return self.low, self.high
        candidates = [(a * self.low, b * self.high) for a in LOWS for b in HIGHS]
        return min(candidates, key=lambda ends: leak_error(scaled, ratio, *ends))


def leak_error(scaled: np.ndarray, ratio: np.ndarray, low: float, high: float) -> float:
    """Mean square error of max(v, r·v) when v and r·v have codes in [low, high]."""
    step = max(high - low, 1e-9) / LEVELS
    bottom, top = round(low / step), round(high / step)
    codes = np.rint(scaled / step).clip(bottom, top)
    leaked = np.rint(codes * ratio).clip(bottom, top)
    return float(np.square(np.maximum(codes, leaked) * step - np.maximum(scaled, ratio * scaled)).mean())


@dataclass
class MapRanges:
    """Statistics of every map that may get codes, by the name of its tensor in the float graph."""

    graph: FloatGraph
    histograms: dict[str, Histogram] = field(default_factory=dict)
    leaks: dict[str, LeakSample] = field(default_factory=dict)
    extents: dict[str, Range] = field(default_factory=dict)
    """Smallest and largest values, and zero, of tensors that get as many codes as they need."""
    sources: dict[str, tuple[str, str]] = field(default_factory=dict)
    chosen: dict[tuple[str, RangeMethod], Range] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for node in self.graph.nodes:
            if node.op_type == "Conv" and node.input[1] in self.graph.constants:
                chain = self.graph.chain(node.output[0])
                self.histograms[self.graph.origin(node.input[0])] = Histogram()
                if chain.ratio:
                    scaled = self.graph.nodes[chain.skipped[0]].output[0]
                    self.sources[chain.end] = (scaled, chain.ratio)
                    self.leaks[chain.end] = LeakSample()
                else:
                    self.histograms[chain.end] = Histogram()
        for name in self.leaks:
            self.histograms.pop(name, None)

    def collect(self, inputs: Iterator[dict[str, np.ndarray]]) -> None:
        """Run the float model on ``inputs``, one batch after the other, and count what it computes."""
        import onnx
        import onnxruntime

        names = sorted(
            {*self.histograms, *self.extents, *(name for pair in self.sources.values() for name in pair)}
        )
        names = [name for name in names if name not in self.graph.constants]
        model = onnx.ModelProto()
        model.CopyFrom(self.graph.model)
        given = {value.name for value in (*model.graph.input, *model.graph.output)}
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in given)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        outputs = [name for name in names if name not in {value.name for value in model.graph.input}]
        for fed in inputs:
            values = dict(zip(outputs, session.run(outputs, fed), strict=True)) | fed
            for name, histogram in self.histograms.items():
                histogram.update(values[name])
            for name, (low, high) in self.extents.items():
                self.extents[name] = min(low, float(values[name].min())), max(high, float(values[name].max()))
            for name, (scaled, ratio) in self.sources.items():
                self.leaks[name].update(values[scaled], values[ratio])

    def range(self, name: str, method: RangeMethod) -> Range:
        """The range of the codes of ``name``."""
        key = (name, method)
        if key not in self.chosen:
            leak = self.leaks.get(name)
            self.chosen[key] = leak.range(method) if leak else self.histograms[name].range(method)
        return self.chosen[key]
