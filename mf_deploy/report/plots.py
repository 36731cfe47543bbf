"""Coordinates of the report's plots; the page draws them as SVG, so that every text in them is escaped."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

CHARACTER_WIDTH = 6.7  # of the plots' bold 11-pixel text, on average
LINE_HEIGHT = 12.0
BINS = 48
MAX_NAMED_POINTS = 12


@dataclass(frozen=True)
class Datum:
    """One point of a scatter plot: x with the end of its spread, y with its interval.

    ``number`` is the artifact's in the table, ``scheme`` chooses the marker, ``target`` the colour.
    """

    number: int
    name: str
    target: str
    scheme: str
    x: float
    x_high: float
    y: float
    y_low: float
    y_high: float


@dataclass
class Axis:
    """A scale from values to pixels, with its ticks as (pixel, text)."""

    label: str
    low: float
    high: float
    start: float
    end: float
    log: bool = False
    ticks: list[tuple[float, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        values = _log_ticks(self.low, self.high) if self.log else _linear_ticks(self.low, self.high)
        self.ticks = [(self(value), f"{value:.10g}") for value in values]

    def __call__(self, value: float) -> float:
        """The pixel of ``value``, kept inside the axis."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(max(value, self.low))
        part = min(max((value - low) / (high - low), 0.0), 1.0)
        return round(self.start + part * (self.end - self.start), 1)


@dataclass(frozen=True)
class Point:
    """A datum in pixels, with the place of its label and that label's anchor."""

    datum: Datum
    x: float
    x_high: float
    y: float
    y_low: float
    y_high: float
    text: str
    text_x: float
    text_y: float
    anchor: str


@dataclass(frozen=True)
class Scatter:
    """Accuracy against a cost: axes, points, and the front that no other point beats in both."""

    title: str
    width: float
    height: float
    x: Axis
    y: Axis
    points: list[Point]
    front: str
    on_front: set[int]
    reference_y: float | None
    numbered: bool

    @property
    def targets(self) -> list[str]:
        return list(dict.fromkeys(point.datum.target for point in self.points))

    @property
    def schemes(self) -> list[str]:
        return list(dict.fromkeys(point.datum.scheme for point in self.points))


def scatter(
    title: str, x_label: str, y_label: str, data: Sequence[Datum], reference: float | None = None
) -> Scatter:
    """Lay out a scatter plot of at least one datum; ``reference`` draws a line across.

    More of y is better, less of x too. Beyond a dozen points, the labels are the numbers of the table.
    """
    width, height, left, right, top, bottom = 460.0, 346.0, 46.0, 14.0, 28.0, 44.0
    x = _cost_axis(x_label, [d.x for d in data] + [d.x_high for d in data], left, width - right)
    highs, lows = [d.y_high for d in data], [d.y_low for d in data]
    references = [] if reference is None else [reference]
    y = _accuracy_axis(y_label, min(lows + references), max(highs + references), height - bottom, top)
    numbered, front = len(data) > MAX_NAMED_POINTS, pareto_front(data)
    texts = [str(datum.number) if numbered else _shorten(datum.name) for datum in data]
    return Scatter(
        title=title,
        width=width,
        height=height,
        x=x,
        y=y,
        points=_place(data, texts, x, y, [] if reference is None else [_reference_box(x, y(reference))]),
        front=" ".join(f"{x(d.x)},{y(d.y)}" for d in front),
        on_front={datum.number for datum in front},
        reference_y=None if reference is None else y(reference),
        numbered=numbered,
    )


def pareto_front(data: Sequence[Datum]) -> list[Datum]:
    """The data that no other beats in both cost and accuracy, by rising cost."""
    front: list[Datum] = []
    for datum in sorted(data, key=lambda d: (d.x, -d.y)):
        if not front or datum.y > front[-1].y:
            front.append(datum)
    return front


@dataclass(frozen=True)
class Histogram:
    """Bars as (x, y, width, height) in a box of 420 by 100, and where percentiles lie."""

    bars: list[tuple[float, float, float, float]]
    marks: list[tuple[str, float, float]]
    low: float
    high: float
    beyond: int


def histogram(samples_ms: Sequence[float], marks_ms: dict[str, float]) -> Histogram:
    """Bin the samples from the fastest to somewhat past the 99th percentile; ``beyond`` counts the rest."""
    samples = np.asarray(samples_ms, np.float64)
    low = float(samples.min())
    high = max(float(np.percentile(samples, 99)) * 1.05, low * 1.02, low + 1e-4)
    counts, _ = np.histogram(samples, BINS, (low, high))
    width, height = 420.0, 100.0
    tallest = max(int(counts.max()), 1)
    bars = []
    for index, count in enumerate(counts.tolist()):
        if count:
            tall = round(count / tallest * height, 1)
            bars.append(
                (round(index * width / BINS, 2), round(height - tall, 1), round(width / BINS - 0.6, 2), tall)
            )
    marks = [
        (name, value, round((value - low) / (high - low) * width, 1))
        for name, value in marks_ms.items()
        if low <= value <= high
    ]
    return Histogram(bars, marks, low, high, int((samples > high).sum()))


@dataclass(frozen=True)
class Share:
    """A part of a stacked bar: from ``start``, ``width`` wide, both in percent."""

    precision: str
    count: int
    start: float
    width: float


def shares(counts: dict[str, int]) -> list[Share]:
    """The parts of a bar that shows how much is held in which precision, coarse ones first."""
    total = sum(counts.values())
    parts, start = [], 0.0
    for precision in sorted(counts, key=lambda name: (_bits(name), name)):
        if total and counts[precision] > 0:
            width = 100 * counts[precision] / total
            parts.append(Share(precision, counts[precision], round(start, 3), round(width, 3)))
            start += width
    return parts


def _bits(precision: str) -> int:
    digits = "".join(character for character in precision if character.isdigit())
    return int(digits[:4] or 0)


def _cost_axis(label: str, values: list[float], start: float, end: float) -> Axis:
    """From zero, or logarithmic where the costs differ by more than a factor of 20."""
    low, high = min(values), max(values)
    if low > 0 and high / low > 20:
        return Axis(label, low / 1.3, high * 1.3, start, end, log=True)
    return Axis(label, 0.0, high * 1.1 or 1.0, start, end)


def _accuracy_axis(label: str, low: float, high: float, start: float, end: float) -> Axis:
    """Around the intervals, at least one point wide and inside what a percentage can be."""
    margin = max((high - low) * 0.12, 0.5)
    floor = -100.0 if low < 0 else 0.0
    return Axis(label, max(low - margin, floor), min(high + margin, 100.0), start, end)


def _linear_ticks(low: float, high: float) -> list[float]:
    rough = (high - low) / 5
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [
        round(index * step, 10)
        for index in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    ]


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(powers) < 5 else (1,)
    return [v for power in powers for factor in factors if low <= (v := factor * 10.0**power) <= high]


def _shorten(name: str) -> str:
    return name if len(name) <= 26 else f"{name[:12]}…{name[-13:]}"


def _reference_box(x: Axis, y: float) -> "Box":
    """Where the page writes the reference's name: at the right end of its line, above it."""
    return (x.end - len("PyTorch") * CHARACTER_WIDTH, y - LINE_HEIGHT - 2, x.end, y)


def _place(
    data: Sequence[Datum], texts: Sequence[str], x: Axis, y: Axis, covered: list["Box"]
) -> list[Point]:
    """Put each label where it covers no point, no other label and no ``covered`` box, else to the right."""
    taken = covered + [(x(d.x) - 5, y(d.y) - 5, x(d.x) + 5, y(d.y) + 5) for d in data]
    points = []
    for datum, text in zip(data, texts, strict=True):
        px, py, wide = x(datum.x), y(datum.y), len(text) * CHARACTER_WIDTH
        choices = [
            (px + dx, py + dy, anchor)
            for reach in (0, 12, 24, 36)
            for dx, dy, anchor in (
                (9, 4 - reach, "start"),
                (9, 4 + reach, "start"),
                (-9, 4 - reach, "end"),
                (-9, 4 + reach, "end"),
                (0, -10 - reach, "middle"),
                (0, 19 + reach, "middle"),
            )
        ]
        boxes = [(choice, _text_box(choice, wide)) for choice in choices]
        free = (pair for pair in boxes if _fits(pair[1], taken, x, y))
        (tx, ty, anchor), box = next(free, boxes[0])
        taken.append(box)
        points.append(
            Point(datum, px, x(datum.x_high), py, y(datum.y_low), y(datum.y_high), text, tx, ty, anchor)
        )
    return points


Box = tuple[float, float, float, float]


def _text_box(choice: tuple[float, float, str], width: float) -> Box:
    x, y, anchor = choice
    left = {"start": x, "end": x - width, "middle": x - width / 2}[anchor]
    return (left, y - LINE_HEIGHT + 3, left + width, y + 3)


def _fits(box: Box, taken: Sequence[Box], x: Axis, y: Axis) -> bool:
    inside = x.start <= box[0] and box[2] <= x.end + 12 and y.end - 8 <= box[1] and box[3] <= y.start
    return inside and not any(
        box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3] for other in taken
    )
