"""One line an artifact, in words: what the page, the Markdown and the terminal show of it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

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


def summarize(collection: Collection) -> list[Summary]:
    """A row for every artifact; latencies are those of the first setting, where most were measured."""
    setting = next(iter(collection.settings), None)
    return [_row(index + 1, entry, collection, setting) for index, entry in enumerate(collection.entries)]


def _row(number: int, entry: Entry, collection: Collection, setting: Setting | None) -> Summary:
    accuracy = entry.accuracy
    report = entry.latency.get(setting) if setting else None
    times = report.measurement.statistics if report and report.measurement else None
    return Summary(
        number=number,
        entry=entry,
        label=collection.label(entry),
        top1=percent(accuracy.top1 if accuracy else None),
        drop=drop_cell(accuracy),
        agreement=percent(accuracy.agreement if accuracy else None),
        sqnr=Cell(f"{accuracy.sqnr_db:.1f}") if accuracy else Cell(),
        p50=Cell(digits(times.p50_ms)) if times else Cell(),
        p90=Cell(digits(times.p90_ms)) if times else Cell(),
        size=Cell(megabytes(entry.artifact.size_bytes)),
        gate=gate_cell(accuracy),
        provenance=_provenance(entry, setting),
    )


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
        sources.append(Source("accuracy", entry.accuracy.kind, entry.accuracy.runtime))
    report = entry.latency.get(setting) if setting else None
    if report and report.measurement:
        engine = report.measurement.engine
        sources.append(Source("latency", report.kind, f"{engine.name} {engine.version}"))
    return sources
