"""Intervals for counts, paired counts and logits: every figure comes with its uncertainty."""

from collections.abc import Callable
from math import erf, inf, log10, sqrt

import numpy as np
from pydantic import Field

from mf_deploy.artifact import Record

Z95 = 1.959963984540054
Z_POWER_80 = 0.8416212335729143
MAX_SQNR_DB = 200.0
MAX_IMAGES_NEEDED = 10_000_000


class Proportion(Record):
    """A count out of n with its 95 % Wilson score interval, in percent."""

    count: int
    n: int
    percent: float
    low_percent: float
    high_percent: float


class PairedDrop(Record):
    """How much worse an artifact is than the reference on the same images, in percentage points.

    The interval is Tango's score interval of the paired difference (Statistics in Medicine 17, 1998),
    ``mcnemar_p`` the exact two-sided McNemar test of "no difference".
    """

    points: float = Field(description="accuracy of the reference minus that of the artifact")
    low_points: float
    high_points: float
    lost: int = Field(description="images that only the reference gets right")
    gained: int = Field(description="images that only the artifact gets right")
    n: int
    mcnemar_p: float


def proportion(count: int, n: int, z: float = Z95) -> Proportion:
    """``count`` of ``n`` in percent, with the Wilson score interval of ±z standard errors."""
    from scipy.stats import binomtest

    interval = binomtest(count, n).proportion_ci(confidence_level=erf(z / sqrt(2)), method="wilson")
    return Proportion(
        count=count,
        n=n,
        percent=100 * count / n,
        low_percent=100 * float(interval.low),
        high_percent=100 * float(interval.high),
    )


def paired_drop(lost: int, gained: int, n: int) -> PairedDrop:
    """The drop of ``lost - gained`` out of ``n`` paired images, in points with its 95 % interval."""
    from scipy.stats import binomtest

    low, high = paired_interval(lost, gained, n)
    discordant = lost + gained
    return PairedDrop(
        points=100 * (lost - gained) / n,
        low_points=100 * low,
        high_points=100 * high,
        lost=lost,
        gained=gained,
        n=n,
        mcnemar_p=float(binomtest(lost, discordant).pvalue) if discordant else 1.0,
    )


def paired_interval(lost: int, gained: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Tango's score interval of (lost - gained) / n: the differences that a z-test does not reject."""
    from scipy.optimize import brentq

    edge = 1 - 1e-12

    def excess(difference: float, bound: float) -> float:
        return _tango_score(difference, lost, gained, n) - bound

    low = brentq(excess, -edge, edge, args=(z,)) if excess(-edge, z) > 0 else -1.0
    high = brentq(excess, -edge, edge, args=(-z,)) if excess(edge, -z) < 0 else 1.0
    return float(low), float(high)


def _tango_score(difference: float, lost: int, gained: int, n: int) -> float:
    """Standardised distance of the data from ``difference``, at the constrained maximum likelihood."""
    a = 2 * n
    b = (2 * n - lost + gained) * difference - lost - gained
    c = -gained * difference * (1 - difference)
    p_gained = (sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    variance = n * (2 * p_gained + difference * (1 - difference))
    distance = lost - gained - n * difference
    if variance <= 0:
        return 0.0 if distance == 0 else inf if distance > 0 else -inf
    return distance / sqrt(variance)


def images_needed(straddles: Callable[[int, float], bool], n: int) -> int | None:
    """How many images decide a gate four times in five, if the rates stay as they are at ``n``.

    Args:
        straddles: whether the interval of ±z standard errors at a given n includes the gate.

    Returns:
        The number, rounded up to two digits, or None when more than ten million are needed.
    """
    z = Z95 + Z_POWER_80
    low, high = n, 2 * n
    while straddles(high, z):
        low, high = high, 2 * high
        if high > MAX_IMAGES_NEEDED:
            return None
    while high - low > max(1, high // 200):
        middle = (low + high) // 2
        low, high = (middle, high) if straddles(middle, z) else (low, middle)
    step = 10 ** max(len(str(high)) - 2, 0)
    return -(-high // step) * step


class LogitError:
    """Sums over all logits of an artifact and its reference; memory does not grow with the images."""

    def __init__(self) -> None:
        self.values = 0
        self.signal = self.noise = self.absolute = self.max_abs = 0.0
        self.lowest, self.highest = inf, -inf

    def add(self, reference: np.ndarray, logits: np.ndarray) -> None:
        """Add (N, classes) finite logits of the same images."""
        if not reference.size:
            return
        error = np.abs(logits.astype(np.float64) - reference)
        self.values += error.size
        self.signal += float(np.square(reference, dtype=np.float64).sum())
        self.noise += float(np.square(error).sum())
        self.absolute += float(error.sum())
        self.max_abs = max(self.max_abs, float(error.max()))
        self.lowest = min(self.lowest, float(reference.min()))
        self.highest = max(self.highest, float(reference.max()))

    @property
    def mean_abs(self) -> float:
        return self.absolute / max(self.values, 1)

    @property
    def reference_range(self) -> float:
        return self.highest - self.lowest if self.values else 0.0

    @property
    def sqnr_db(self) -> float:
        return sqnr_db(self.signal, self.noise)


def sqnr_db(signal: float, noise: float) -> float:
    """10·log10(Σ reference² / Σ error²), within ±200 dB so that equal tensors stay a number in JSON."""
    if noise <= 0:
        return MAX_SQNR_DB
    if signal <= 0:
        return -MAX_SQNR_DB
    return max(-MAX_SQNR_DB, min(MAX_SQNR_DB, 10 * log10(signal / noise)))


def label_ranks(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many classes come before each label: 0 is a top-1 hit, below 5 a top-5 hit.

    Equal logits, common in int8, are ordered by class index, as argmax does; NaN comes last.

    Args:
        logits: (N, classes).
        labels: (N,) class indices.
    """
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    earlier = np.arange(logits.shape[1]) < labels[:, None]
    ranks = ((logits > own) | ((logits == own) & earlier)).sum(axis=1)
    return np.where(np.isfinite(logits).all(axis=1), ranks, logits.shape[1])
