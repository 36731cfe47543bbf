"""Which readings of the clock belong to which operator of LiteRT."""

from collections.abc import Sequence
from typing import Any

import numpy as np

BEFORE = 3  # readings before the first operator: of "buffer registration" two, of "Invoke" the first
AFTER = 3  # and after the last: the second of "Invoke", of "buffer sync" two
MOST_LAPS = 32  # of one operator, more than that it has parts


def operator_laps(operators: Sequence[dict[str, Any]], times_ns: Sequence[int]) -> list[tuple[int, int]]:
    """The first and the last lap of each operator; each operator starts where the one before ended.

    XNNPACK reads the clock once before its first operator, and after each part of an operator: a
    concatenation has as many parts as inputs. It does not say how many parts there are, so they are chosen
    such that the times between laps are as close as can be to the times that the profiler gives
    (dynamic programming over the operators and the laps that are too many).

    Raises:
        ValueError: there are fewer laps than operators.
    """
    times = np.asarray(times_ns, np.float64) / 1e3
    opens = [int(operator["opens"]) for operator in operators]
    surplus = len(times) - BEFORE - AFTER - len(operators) - sum(opens)
    if surplus < 0 or not operators:
        raise ValueError(f"{len(operators)} operators, but the clock was read {len(times)} times")
    cost = np.full(surplus + 1, np.inf)  # by how many surplus laps the operators so far have used
    cost[0] = 0.0
    chosen: list[np.ndarray] = []
    starts: list[int] = []  # the first lap of an operator if none of the surplus was used before
    position = BEFORE - 1
    for operator, opening in zip(operators, opens, strict=True):
        starts.append(position + opening)
        position += opening + 1
        took, best, parts = (
            float(operator["elapsed_us"]),
            np.full_like(cost, np.inf),
            np.zeros(len(cost), int),
        )
        for extra in range(min(surplus, MOST_LAPS) + 1):
            used = np.arange(surplus + 1 - extra)
            start = starts[-1] + used
            candidate = cost[used] + np.abs(times[start + 1 + extra] - times[start] - took)
            better = candidate < best[extra:]
            best[extra:][better], parts[extra:][better] = candidate[better], extra
        cost = best
        chosen.append(parts)
    return _traced_back(starts, chosen, surplus)


def _traced_back(starts: list[int], chosen: list[np.ndarray], surplus: int) -> list[tuple[int, int]]:
    laps = []
    for start, parts in zip(reversed(starts), reversed(chosen), strict=True):
        extra = int(parts[surplus])
        surplus -= extra
        laps.append((start + surplus, start + surplus + 1 + extra))
    return laps[::-1]
