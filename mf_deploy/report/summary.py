"""One line an artifact, in words: what the page, the Markdown and the terminal show of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from mf_deploy.benchmarks.latency import Conditions
from mf_deploy.benchmarks.protocol import Protocol
from mf_deploy.report.collect import Collection, Entry, Setting
from mf_deploy.report.figures import digits, megabytes, points

if TYPE_CHECKING:
    from mf_deploy.evaluation.accuracy import AccuracyReport
    from mf_deploy.evaluation.statistics import Proportion

NONE = "–"


@dataclass(frozen=True)
class Cell:
    """A figure and, smaller, its interval or what it is about. ``tone`` is empty, good, bad or unsure."""

    text: str = NONE
    small: str = ""
    tone: str = ""


class Source(NamedTuple):
    """Where a figure comes from: what it is, what it is worth, and what ran the model."""

    figure: str
    kind: str
    engine: str


@dataclass(frozen=True)
class Summary:
    """The main table's row of one artifact."""

    number: int
    entry: Entry
    label: str
    top1: Cell
    drop: Cell
    agreement: Cell
    sqnr: Cell
    p50: Cell
    p90: Cell
    size: Cell
    gate: Cell
    provenance: list[Source]
    on_front: bool


def summarize(collection: Collection) -> list[Summary]:
    """A row for every artifact; latencies are those of the first setting, where most were measured."""
    setting = next(iter(collection.settings), None)
    front = pareto_front(collection.entries, setting) if setting else []
    return [
        _row(index + 1, entry, collection, setting, entry in front)
        for index, entry in enumerate(collection.entries)
    ]


def pareto_front(entries: Sequence[Entry], setting: Setting) -> list[Entry]:
    """The entries with p90 and top-1 in a setting, and right logits, that no other beats in both."""
    known = []
    for entry in entries:
        report = entry.latency.get(setting)
        if not (report and report.measurement and entry.accuracy and entry.accuracy.top1):
            continue
        if not entry.wrong_on(setting):
            known.append((report.measurement.statistics.p90_ms, -entry.accuracy.top1.percent, entry))
    front: list[Entry] = []
    best = 0.0
    for _, negative_top1, entry in sorted(known, key=lambda item: item[:2]):
        if not front or negative_top1 < best:
            front.append(entry)
            best = negative_top1
    return front


def protocol_of(protocol: Protocol) -> str:
    """What was asked for: "at least 1024 runs and 60 s"."""
    parts = [f"{protocol.min_runs} runs"] if protocol.min_runs > 1 or not protocol.min_seconds else []
    parts += [f"{protocol.min_seconds:g} s"] if protocol.min_seconds else []
    return f"at least {' and '.join(parts)}"


def conditions_of(conditions: Conditions) -> str:
    """Temperature, thermal state and battery, as far as the device told."""
    parts: list[str] = []
    if conditions.thermal_state:
        parts.append(conditions.thermal_state)
    if conditions.temperature_c is not None:
        parts.append(f"{digits(conditions.temperature_c)} °C")
    if conditions.battery_percent is not None:
        parts.append(
            f"battery {conditions.battery_percent:.0f} %{', charging' if conditions.charging else ''}"
        )
    if conditions.load_average is not None:
        parts.append(f"load {conditions.load_average:g}")
    return ", ".join(parts)


def _row(
    number: int, entry: Entry, collection: Collection, setting: Setting | None, on_front: bool
) -> Summary:
    accuracy = entry.accuracy
    report = entry.latency.get(setting) if setting else None
    times = report.measurement.statistics if report and report.measurement else None
    wrong = setting is not None and entry.wrong_on(setting)
    return Summary(
        number=number,
        entry=entry,
        label=collection.label(entry),
        top1=percent(accuracy.top1 if accuracy else None),
        drop=drop_cell(accuracy),
        agreement=percent(accuracy.agreement if accuracy else None),
        sqnr=Cell(f"{accuracy.sqnr_db:.1f}") if accuracy else Cell(),
        p50=_time(times.p50_ms, wrong) if times else Cell(),
        p90=_time(times.p90_ms, wrong) if times else Cell(),
        size=Cell(megabytes(entry.artifact.size_bytes)),
        gate=gate_cell(accuracy),
        provenance=_provenance(entry, setting),
        on_front=on_front,
    )


def _time(milliseconds: float, wrong: bool) -> Cell:
    return Cell(digits(milliseconds), "wrong logits" if wrong else "", "bad" if wrong else "")


def percent(value: "Proportion | None") -> Cell:
    """A percentage with its interval."""
    if value is None:
        return Cell()
    return Cell(f"{value.percent:.2f}", f"{value.low_percent:.1f} to {value.high_percent:.1f}")


def drop_cell(accuracy: "AccuracyReport | None") -> Cell:
    """The drop of top-1 against PyTorch with its interval."""
    if accuracy is None or accuracy.drop is None:
        return Cell()
    drop = accuracy.drop
    return Cell(points(drop.points), f"{points(drop.low_points)} to {points(drop.high_points)}")


def gate_cell(accuracy: "AccuracyReport | None") -> Cell:
    """The worst verdict of the gates, and which gate that was."""
    gates = accuracy.gates if accuracy else []
    for verdict, tone in (("fail", "bad"), ("undecided", "unsure"), ("pass", "good")):
        names = [gate.gate.replace("_", " ") for gate in gates if gate.verdict == verdict]
        if names:
            return Cell(verdict, ", ".join(names), tone)
    return Cell()


def _provenance(entry: Entry, setting: Setting | None) -> list[Source]:
    """What ran the artifact for its accuracy, and for its latency."""
    sources = []
    if entry.accuracy:
        ran_by = "; ".join(filter(None, (entry.accuracy.runtime, entry.accuracy.remark)))
        sources.append(Source("accuracy", entry.accuracy.kind, ran_by))
    report = entry.latency.get(setting) if setting else None
    if report and report.measurement:
        engine = report.measurement.engine
        sources.append(Source("latency", report.kind, f"{engine.name} {engine.version}"))
    return sources
