"""The report as one HTML page that needs nothing else: no script, no font, no picture from outside."""

from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path, PurePath

import jinja2

from mf_deploy.benchmarks.latency import Measurement
from mf_deploy.report import figures
from mf_deploy.report.collect import Collection, Setting
from mf_deploy.report.plots import Datum, Histogram, Scatter, histogram, scatter, shares
from mf_deploy.report.summary import Summary, percent, summarize


def render_page(collection: Collection) -> str:
    """The HTML of the report; every text from outside is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "digits": figures.digits,
        "megabytes": figures.megabytes,
        "count": figures.count,
        "points": figures.points,
        "scientific": figures.scientific,
        "percent": percent,
        "file_name": lambda path: PurePath(path).name,
    }
    rows = summarize(collection)
    return environment.get_template("page.html.jinja").render(
        title=_title(collection),
        collection=collection,
        rows=rows,
        plots=[plot for plot in _plots(collection, rows) if plot],
        measured=[
            (row, setting, row.entry.latency[setting])
            for setting in collection.settings
            for row in rows
            if setting in row.entry.latency
        ],
        main_setting=next(iter(collection.settings), None),
        references=collection.references,
        not_run=[(row.label, reason) for row in rows for reason in row.entry.not_run],
        shares=shares,
        latency_histogram=latency_histogram,
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=version("mf-deploy"),
    )


def latency_histogram(measurement: Measurement) -> Histogram:
    """Of the samples, marked at the percentiles that the table gives."""
    of = measurement.statistics
    return histogram(measurement.samples_ms, {"p50": of.p50_ms, "p90": of.p90_ms, "p99": of.p99_ms})


def _title(collection: Collection) -> str:
    names = list(dict.fromkeys(entry.model for entry in collection.entries))
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _plots(collection: Collection, rows: Sequence[Summary]) -> list[Scatter | None]:
    """Accuracy against the latency in each setting, and against size."""
    known = collection.references
    line = None
    if len(known) == 1 and known[0].accuracy and known[0].accuracy.reference_top1:
        line = known[0].accuracy.reference_top1.percent
    by_latency = [_latency_plot(setting, rows, line) for setting in collection.settings]
    sizes = [
        _datum(row, row.entry.artifact.size_bytes / 1e6, row.entry.artifact.size_bytes / 1e6) for row in rows
    ]
    return [*by_latency, _plot("Accuracy against size", "model size, MB", sizes, line)]


def _latency_plot(setting: Setting, rows: Sequence[Summary], line: float | None) -> Scatter | None:
    data = []
    for row in rows:
        report = row.entry.latency.get(setting)
        if report and report.measurement:
            times = report.measurement.statistics
            data.append(_datum(row, times.p50_ms, times.p90_ms))
    return _plot(f"Accuracy against latency: {setting}", "latency, p50 to p90, ms", data, line)


def _datum(row: Summary, x: float, x_high: float) -> Datum | None:
    accuracy = row.entry.accuracy
    if accuracy is None or accuracy.top1 is None:
        return None
    top1, manifest = accuracy.top1, row.entry.artifact.manifest
    return Datum(
        row.number,
        row.label,
        manifest.target,
        manifest.scheme,
        x,
        x_high,
        top1.percent,
        top1.low_percent,
        top1.high_percent,
    )


def _plot(title: str, x_label: str, data: Sequence[Datum | None], line: float | None) -> Scatter | None:
    present = [datum for datum in data if datum is not None]
    return scatter(title, x_label, "top-1, %", present, line) if present else None
