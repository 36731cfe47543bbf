"""Two artifacts timed in turns: the ratio of their medians and how sure it is."""

import numpy as np

RESAMPLES = 2000


def ratio_of_medians(
    blocks_ms: list[list[float]], against_ms: list[list[float]]
) -> tuple[float, float, float]:
    """Median of all ``blocks_ms`` over the median of all ``against_ms``, with its 95 % interval.

    The interval is a percentile bootstrap over pairs of blocks (Efron and Tibshirani 1993, ch. 13): times
    within a block depend on each other, so blocks are resampled whole, and with the one measured next to
    them, so that a slow spell of the machine falls on both.

    Args:
        blocks_ms, against_ms: equally many blocks (two or more), all of the same length.

    Returns:
        The ratio, and the lower and the upper end of its interval.
    """
    first, second = np.asarray(blocks_ms, np.float64), np.asarray(against_ms, np.float64)
    ratio = float(np.median(first) / np.median(second))
    generator = np.random.default_rng(0)
    ratios = np.empty(RESAMPLES)
    for index in range(RESAMPLES):
        chosen = generator.integers(0, len(first), len(first))
        ratios[index] = np.median(first[chosen]) / np.median(second[chosen])
    low, high = np.percentile(ratios, [2.5, 97.5])
    return ratio, min(float(low), ratio), max(float(high), ratio)
