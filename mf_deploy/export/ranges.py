"""Ranges of activations from what calibration saw: streamed, in bounded memory, chosen per tensor."""

from dataclasses import dataclass, field

import numpy as np

from mf_deploy.quantization import RangeMethod

BINS = 2048
PERCENTILE_TAIL = 1e-4
"""Share of the values that ``percentile`` leaves out, half of it at each end."""

CANDIDATES = np.linspace(0.3, 1.0, 36)
"""What ``mse`` tries: the range seen, shrunk to so much of it at either end."""

Range = tuple[float, float]


@dataclass
class Histogram:
    """Values of one tensor over all calibration images, in 2048 bins.

    When a value falls outside, bins are merged in pairs until the histogram is wide enough: memory does not
    grow with the images. ``low`` and ``high`` are exact.
    """

    low: float = np.inf
    high: float = -np.inf
    width: float = 0.0
    first: int = 0
    counts: np.ndarray = field(default_factory=lambda: np.zeros(BINS, np.int64))

    def update(self, values: np.ndarray) -> None:
        """Count ``values``, of any shape; those that are not finite are left out."""
        flat = np.asarray(values, np.float32).ravel()
        flat = flat[np.isfinite(flat)]
        if not flat.size:
            return
        low, high = float(flat.min()), float(flat.max())
        self._widen(min(low, self.low), max(high, self.high))
        self.low, self.high = min(low, self.low), max(high, self.high)
        bins = np.floor(flat / self.width).astype(np.int64) - self.first
        self.counts += np.bincount(bins.clip(0, BINS - 1), minlength=BINS)

    def _widen(self, low: float, high: float) -> None:
        """Make the bins cover [low, high]; the bin edges stay multiples of the width."""
        if self.width == 0.0:
            spread = max(high - low, abs(high), abs(low), 1e-12)
            self.width = 2.0 ** np.ceil(np.log2(spread / (BINS // 4)))
            self.first = int(np.floor(low / self.width)) - BINS // 4
        merged = 0
        while (np.floor(high / self.width) - np.floor(low / self.width)) >= BINS:
            self.width *= 2
            merged += 1
        first = min(int(np.floor(low / self.width)), self.first >> merged)
        first = max(first, int(np.floor(high / self.width)) - BINS + 1)
        if merged or first != self.first:
            used = np.flatnonzero(self.counts)
            counts = np.zeros(BINS, np.int64)
            np.add.at(counts, ((self.first + used) >> merged) - first, self.counts[used])
            self.first, self.counts = first, counts

    def range(self, method: RangeMethod, levels: int = 255) -> Range:
        """The range to spread ``levels`` integer steps over; it always contains zero.

        Zero is padding and what a ReLU gives: it must have an exact code.
        """
        if method == "minmax" or not self.counts.any():
            found = (self.low, self.high) if self.counts.any() else (0.0, 0.0)
        elif method == "percentile":
            found = self._percentile()
        else:
            found = self._least_square(levels)
        return min(found[0], 0.0), max(found[1], 0.0)

    def _percentile(self) -> Range:
        share = np.cumsum(self.counts) / self.counts.sum()
        lowest = int(np.searchsorted(share, PERCENTILE_TAIL / 2, side="right"))
        highest = int(np.searchsorted(share, 1 - PERCENTILE_TAIL / 2, side="left"))
        low, high = (self.first + lowest) * self.width, (self.first + highest + 1) * self.width
        return max(low, self.low), min(high, self.high)

    def _least_square(self, levels: int) -> Range:
        """Of the ranges [a·low, b·high], the one whose codes differ least from the values, in mean square.

        The step's own error is step²/12 a value, except that a bin narrower than the step cannot tell more;
        clipped values contribute the square of their distance.
        """
        used = np.flatnonzero(self.counts)
        weights = self.counts[used].astype(np.float64)
        values = np.clip((self.first + used + 0.5) * self.width, self.low, self.high)
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        best, found = np.inf, (low, high)
        for a in CANDIDATES if low < 0 else (1.0,):
            for b in CANDIDATES if high > 0 else (1.0,):
                bottom, top = a * low, b * high
                clipped = values - np.clip(values, bottom, top)
                inside = weights[clipped == 0].sum()
                error = ((top - bottom) / levels) ** 2 / 12 * inside + (weights * clipped**2).sum()
                if error < best:
                    best, found = error, (bottom, top)
        return found
