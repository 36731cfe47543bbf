"""New results against old ones: what got worse by more than the noise."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import hypot
from pathlib import PurePath
from typing import Literal

import numpy as np

from mf_deploy.benchmarks.latency import Measurement
from mf_deploy.report.collect import Collection, Entry, Setting
from mf_deploy.report.figures import digits, points

RESAMPLES = 1000
BLOCKS = 24
MIN_SLOWDOWN = 0.03  # two runs of one file on one quiet machine differ by a few percent
MIN_GROWTH = 0.01

Verdict = Literal["worse", "better", "same", "not compared"]


@dataclass(frozen=True)
class Change:
    """One figure of one artifact, old and new; ``interval`` is the 95 % interval of the change."""

    artifact: str
    figure: str
    setting: str
    old: str
    new: str
    change: str
    interval: str
    verdict: Verdict


@dataclass
class Comparison:
    """Everything that both sides have, and what only one of them has."""

    changes: list[Change] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    @property
    def worse(self) -> list[Change]:
        return [change for change in self.changes if change.verdict == "worse"]


def compare(new: Collection, old: Collection) -> Comparison:
    """Match artifacts by run and name, and latencies by the setting that they were measured in.

    A latency is worse when the 95 % interval of the ratio of the p50s or p90s, from the raw samples, lies
    above 1.03. An accuracy is worse when the interval of the change of its drop lies above 0.
    A size is worse when it grew by more than 1 %.
    """
    before = {_key(entry): entry for entry in old.entries}
    found = Comparison()
    for entry in new.entries:
        earlier = before.pop(_key(entry), None)
        if earlier is None:
            found.missing.append(f"{new.label(entry)}: not in the baseline")
            continue
        label = new.label(entry)
        found.changes += [
            _size(label, earlier, entry),
            *_accuracy(label, earlier, entry),
            *_latencies(label, earlier, entry),
        ]
        gone = [str(setting) for setting in earlier.latency if setting not in entry.latency]
        found.missing += [f"{label}: latency on {setting} only in the baseline" for setting in gone]
        if earlier.accuracy and not entry.accuracy:
            found.missing.append(f"{label}: accuracy only in the baseline")
    found.missing += [f"{old.label(entry)}: only in the baseline" for entry in before.values()]
    return found


def latency_ratio(
    old_ms: Sequence[float], new_ms: Sequence[float], percentile: float
) -> tuple[float, float, float]:
    """A percentile of the new samples over that of the old, with its 95 % interval.

    A bootstrap over blocks of consecutive samples: times that follow each other depend on each other
    (Künsch, Annals of Statistics 17, 1989), so single samples would make the interval too narrow.
    """
    generator = np.random.default_rng(0)
    ratio = float(np.percentile(new_ms, percentile)) / max(float(np.percentile(old_ms, percentile)), 1e-9)
    parts = [_resampled(samples, percentile, generator) for samples in (new_ms, old_ms)]
    low, high = np.percentile(parts[0] / np.maximum(parts[1], 1e-9), [2.5, 97.5])
    return ratio, min(float(low), ratio), max(float(high), ratio)


def _resampled(samples: Sequence[float], percentile: float, generator: np.random.Generator) -> np.ndarray:
    """The percentile of RESAMPLES series, each put together from random blocks of ``samples``."""
    values = np.asarray(samples, np.float64)
    if len(values) > 20_000:  # every k-th of a long run: enough for a percentile
        values = values[:: -(-len(values) // 20_000)]
    length = max(1, len(values) // BLOCKS)
    blocks = values[: len(values) // length * length].reshape(-1, length)
    chosen = generator.integers(0, len(blocks), (RESAMPLES, len(blocks)))
    return np.array([np.percentile(blocks[row], percentile) for row in chosen])


def _key(entry: Entry) -> tuple[str, str]:
    return (entry.artifact.folder.parent.name, entry.artifact.name)


def _size(label: str, old: Entry, new: Entry) -> Change:
    before, after = old.artifact.size_bytes, new.artifact.size_bytes
    growth = after / before - 1
    verdict: Verdict = "worse" if growth > MIN_GROWTH else "better" if growth < -MIN_GROWTH else "same"
    was, now = (f"{digits(value / 1e6)} MB" for value in (before, after))
    return Change(label, "size", "", was, now, _percent(growth), "", verdict)


def _accuracy(label: str, old: Entry, new: Entry) -> Iterator[Change]:
    """The change of the drop against PyTorch on the same images."""
    if not (old.accuracy and new.accuracy and old.accuracy.drop and new.accuracy.drop):
        return
    before, after = old.accuracy.drop, new.accuracy.drop
    was, now = (f"{points(drop.points)} points" for drop in (before, after))
    images = [(PurePath(of.data).name, of.images) for of in (old.accuracy, new.accuracy)]
    if images[0] != images[1]:
        yield Change(label, "drop of top-1", "other images", was, now, "", "", "not compared")
        return
    change = after.points - before.points
    # MOVER (Donner and Zou, Statistical Methods in Medical Research 21, 2012): intervals of two figures
    # give that of their difference.
    low = change - hypot(after.points - after.low_points, before.high_points - before.points)
    high = change + hypot(after.high_points - after.points, before.points - before.low_points)
    verdict: Verdict = "worse" if low > 0 else "better" if high < 0 else "same"
    interval = f"{points(low)} to {points(high)}"
    setting = f"{new.accuracy.images} images"
    yield Change(label, "drop of top-1", setting, was, now, f"{_signed(change)} points", interval, verdict)


def _latencies(label: str, old: Entry, new: Entry) -> Iterator[Change]:
    for setting, report in new.latency.items():
        earlier = old.latency.get(setting)
        if earlier and earlier.measurement and report.measurement:
            yield from _latency(label, setting, earlier.measurement, report.measurement)


def _latency(label: str, setting: Setting, old: Measurement, new: Measurement) -> Iterator[Change]:
    for percentile in (50, 90):
        before, after = (getattr(of.statistics, f"p{percentile}_ms") for of in (old, new))
        ratio, low, high = latency_ratio(old.samples_ms, new.samples_ms, percentile)
        verdict: Verdict = "same"
        if low > 1 + MIN_SLOWDOWN:
            verdict = "worse"
        elif high < 1 / (1 + MIN_SLOWDOWN):
            verdict = "better"
        yield Change(
            label,
            f"p{percentile}",
            str(setting),
            f"{digits(before)} ms",
            f"{digits(after)} ms",
            _percent(ratio - 1),
            f"{_percent(low - 1)} to {_percent(high - 1)}",
            verdict,
        )
    wrong_before = old.correctness is not None and not old.correctness.passed
    if new.correctness is not None and not new.correctness.passed and not wrong_before:
        yield Change(label, "logits", str(setting), "not known as wrong", "wrong", "", "", "worse")


def _percent(part: float) -> str:
    return f"{_signed(100 * part, 1)} %"


def _signed(value: float, places: int = 2) -> str:
    return f"{value:+.{places}f}".replace("-", "\u2212")
