"""How a latency changed while it was measured, and which part of a device ran what."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mf_deploy.benchmarks.latency import Conditions, Measurement, Placement

WIDTH, HEIGHT = 420.0, 100.0
MAX_SLICES = 120
MIN_SECONDS = 30.0
MIN_SAMPLES_A_SLICE = 8
WINDOW_S = 60.0
THERMAL_STATES = ("unknown", "nominal", "fair", "serious", "critical")  # from the coolest


@dataclass(frozen=True)
class Curve:
    """A run over time: SVG points in a box of 420 by 100, milliseconds at its edges, and the trend.

    ``band`` goes from the 10th to the 90th percentile of each slice of time. ``ratio`` is the median of the
    last ``window_s`` seconds over that of the first; ``thermal`` the hottest state that was seen.
    """

    median: str
    band: str
    low_ms: float
    high_ms: float
    lasted_s: float
    window_s: float
    ratio: float
    thermal: str | None


def curve(measurement: Measurement) -> Curve | None:
    """The curve of a run that lasted half a minute or more and told when its samples were taken."""
    if measurement.sampled_at_s is None or measurement.sampled_at_s[-1] < MIN_SECONDS:
        return None
    times = np.asarray(measurement.samples_ms, np.float64)
    at = np.asarray(measurement.sampled_at_s, np.float64)
    slices = min(MAX_SLICES, len(times) // MIN_SAMPLES_A_SLICE)
    if slices < 4:
        return None
    lasted = float(at[-1])
    edges = np.searchsorted(at, np.linspace(0, lasted, slices + 1)[1:-1])
    parts = [part for part in np.split(times, edges) if len(part)]
    middles = [float(part.mean()) for part in np.split(at, edges) if len(part)]
    low, median, high = (np.array([np.percentile(part, p) for part in parts]) for p in (10, 50, 90))
    bottom, top = _limits(float(low.min()), float(high.max()))
    x = [round(second / lasted * WIDTH, 1) for second in middles]

    def y(values: np.ndarray) -> list[float]:
        return [round(HEIGHT * (1 - (value - bottom) / (top - bottom)), 1) for value in values.tolist()]

    window = min(WINDOW_S, lasted / 4)
    return Curve(
        median=_points(x, y(median)),
        band=_points(x + x[::-1], y(high) + y(low)[::-1]),
        low_ms=bottom,
        high_ms=top,
        lasted_s=lasted,
        window_s=window,
        ratio=float(np.median(times[at > lasted - window]))
        / max(float(np.median(times[at <= window])), 1e-9),
        thermal=hottest([measurement.before, measurement.after])
        if not measurement.conditions_over_time
        else hottest([timed.conditions for timed in measurement.conditions_over_time]),
    )


def hottest(conditions: Sequence[Conditions]) -> str | None:
    """The hottest thermal state among them; None where no device told."""
    states = [of.thermal_state for of in conditions if of.thermal_state]
    return max(states, key=THERMAL_STATES.index) if states else None


@dataclass(frozen=True)
class Placed:
    """A kind of operator, and how many of them each unit runs."""

    operator: str
    counts: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.counts.values())


def placed(placement: Sequence[Placement]) -> list[Placed]:
    """By kind of operator, the most frequent first; each kind's units likewise."""
    kinds = Counter(operator.operator for operator in placement)
    units = Counter((operator.operator, operator.unit) for operator in placement)
    return [
        Placed(kind, {unit: count for (of, unit), count in units.most_common() if of == kind})
        for kind, _ in kinds.most_common()
    ]


def unit_counts(placement: Sequence[Placement]) -> dict[str, int]:
    """Operators on each unit, most first."""
    return dict(Counter(operator.unit for operator in placement).most_common())


def _limits(low: float, high: float) -> tuple[float, float]:
    margin = max((high - low) * 0.08, high * 0.02, 1e-6)
    return max(low - margin, 0.0), high + margin


def _points(x: Sequence[float], y: Sequence[float]) -> str:
    return " ".join(f"{a},{b}" for a, b in zip(x, y, strict=True))
