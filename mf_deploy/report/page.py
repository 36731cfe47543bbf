"""The report as one HTML page that needs nothing else: no script, no font, no picture from outside."""

from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import PurePath

from mf_deploy.benchmarks.latency import LatencyStatistics, Measurement
from mf_deploy.report import figures
from mf_deploy.report.baseline import Comparison
from mf_deploy.report.collect import Collection, Setting
from mf_deploy.report.curves import curve, placed, unit_counts
from mf_deploy.report.plots import Datum, Histogram, Scatter, histogram, scatter, shares
from mf_deploy.report.summary import Summary, conditions_of, percent, protocol_of, summarize
from mf_deploy.report.templates import environment


def render_page(collection: Collection, comparison: Comparison | None = None) -> str:
    """The HTML of the report; every text from outside is escaped."""
    templates = environment()
    templates.filters |= {
        "digits": figures.digits,
        "megabytes": figures.megabytes,
        "count": figures.count,
        "points": figures.points,
        "scientific": figures.scientific,
        "percent": percent,
        "protocol": protocol_of,
        "conditions": conditions_of,
        "file_name": lambda path: PurePath(path).name,
    }
    rows = summarize(collection)
    return templates.get_template("page.html.jinja").render(
        title=_title(collection),
        collection=collection,
        rows=rows,
        comparison=comparison,
        plots=_plots(collection, rows),
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
        curve=curve,
        placed=placed,
        unit_counts=unit_counts,
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


def _plots(collection: Collection, rows: Sequence[Summary]) -> list[Scatter]:
    """Accuracy against the latency in each setting, and against size.

    Of one model it is the change against PyTorch, of several models top-1 itself.
    """
    changes = len(collection.references) == 1
    by_latency = [
        (
            f"{'Drop of top-1' if changes else 'Accuracy'} against latency: {setting}",
            "p90 latency (whisker from p50), ms",
            [
                _datum(row, times.p90_ms, times.p50_ms, changes)
                for row in rows
                if (times := _times(row, setting)) is not None
            ],
        )
        for setting in collection.settings
    ]
    megabytes = [(row, row.entry.artifact.size_bytes / 1e6) for row in rows]
    sizes = [_datum(row, size, size, changes) for row, size in megabytes]
    by_size = f"{'Drop of top-1' if changes else 'Accuracy'} against size"
    y_label = "change of top-1 against PyTorch, points" if changes else "top-1, %"
    drawn = []
    for title, x_label, data in [*by_latency, (by_size, "model size, MB", sizes)]:
        present = [datum for datum in data if datum is not None]
        if present:
            drawn.append(scatter(title, x_label, y_label, present, 0.0 if changes else None))
    return drawn


def _times(row: Summary, setting: Setting) -> LatencyStatistics | None:
    """None also where the logits were wrong: such a time is no point of a plot."""
    report = row.entry.latency.get(setting)
    known = report is not None and not row.entry.wrong_on(setting)
    return report.measurement.statistics if known and report and report.measurement else None


def _datum(row: Summary, x: float, x_high: float, changes: bool) -> Datum | None:
    accuracy = row.entry.accuracy
    if accuracy is None or accuracy.top1 is None or (changes and accuracy.drop is None):
        return None
    top1, drop, manifest = accuracy.top1, accuracy.drop, row.entry.artifact.manifest
    y, low, high = top1.percent, top1.low_percent, top1.high_percent
    if changes and drop:
        y, low, high = -drop.points, -drop.high_points, -drop.low_points
    return Datum(row.number, row.label, manifest.target, manifest.scheme, x, x_high, y, low, high)
