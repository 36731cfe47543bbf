"""The report as Markdown, for a README, and as CSV, for everything else."""

import csv
import io
import re
from pathlib import PurePath

from mf_deploy.benchmarks.latency import LatencyReport
from mf_deploy.report.baseline import Comparison
from mf_deploy.report.collect import Collection, Entry, Setting
from mf_deploy.report.figures import digits
from mf_deploy.report.summary import Cell, pareto_front, summarize
from mf_deploy.runtimes.arm import CPUS, DEVICE_PREFIX

HEADERS = (
    "artifact",
    "top-1 %",
    "drop, points",
    "agreement %",
    "SQNR dB",
    "p50 ms",
    "p90 ms",
    "size MB",
    "measured by",
)


def render_markdown(collection: Collection, comparison: Comparison | None = None) -> str:
    """A table of all artifacts, what was not run, every setting's latencies, and what the baseline had."""
    lines = [
        *_against_baseline(comparison),
        "| " + " | ".join(HEADERS) + " |",
        "|---|" + "---:|" * (len(HEADERS) - 2) + "---|",
    ]
    rows = summarize(collection)
    for row in rows:
        figures = (row.top1, row.drop, row.agreement, row.sqnr, row.p50, row.p90, row.size)
        by = "; ".join(f"{source.figure}: {source.kind}, {source.engine}" for source in row.provenance)
        name = f"{_plain(row.label)}{' ◆' if row.on_front else ''}"
        cells = [name, *(_with_interval(cell) for cell in figures), _plain(by or "not measured")]
        lines.append("| " + " | ".join(cells) + " |")
    settings = collection.settings
    if settings:
        what = "Intervals are 95 %. ◆: no other has both a lower p90 and a higher top-1."
        lines += ["", f"Latencies: {_plain(str(settings[0]))}. {what}"]
    for setting in settings[1:]:
        lines += ["", f"{_plain(str(setting))}:", "", "| artifact | p50 ms | p90 ms |", "|---|---:|---:|"]
        for row in rows:
            report = row.entry.latency.get(setting)
            if report and report.measurement:
                times = report.measurement.statistics
                lines.append(f"| {_plain(row.label)} | {digits(times.p50_ms)} | {digits(times.p90_ms)} |")
    counted = [
        f"| {_plain(row.label)} | {_plain(device)} | {count.instructions.total / 1e6:.1f} |"
        for row in rows
        for device, count in row.entry.instructions.items()
        if count.instructions
    ]
    if counted:
        title = "ARM instructions of one inference, emulated, 1 thread:"
        lines += ["", title, "", "| artifact | CPU | millions |", "|---|---|---:|", *counted]
    missing = [f"{row.label}: {reason}" for row in rows for reason in row.entry.not_run]
    missing += [f"left out: {problem}" for problem in collection.problems]
    if missing:
        lines += ["", "Not run, and why:", "", *(f"- {_plain(line)}" for line in missing)]
    return "\n".join(lines) + "\n"


def _against_baseline(comparison: Comparison | None) -> list[str]:
    if comparison is None:
        return []
    header = ("artifact", "figure", "baseline", "now", "change", "verdict")
    lines = ["| " + " | ".join(header) + " |", "|---|---|---:|---:|---:|---|"]
    for of in comparison.changes:
        change = f"{of.change} ({of.interval})" if of.interval else of.change
        figure = f"{of.figure}: {of.setting}" if of.setting else of.figure
        cells = (of.artifact, figure, of.old, of.new, change, of.verdict)
        lines.append("| " + " | ".join(_plain(cell) for cell in cells) + " |")
    return [
        *lines,
        *([""] if comparison.missing else []),
        *(f"- {_plain(m)}" for m in comparison.missing),
        "",
    ]


def render_csv(collection: Collection) -> str:
    """One line for every artifact and setting, numbers in full; an empty field was not measured."""
    lines = []
    for entry in collection.entries:
        not_run = {"not_run": "; ".join(entry.not_run)}
        reports: list[LatencyReport | None] = [*entry.latency.values()]
        for report in reports or [None]:
            on_front = {
                "on_pareto_front": report and entry in pareto_front(collection.entries, Setting.of(report))
            }
            lines.append(
                _accuracy_fields(entry)
                | _latency_fields(report)
                | on_front
                | _instruction_fields(entry)
                | not_run
            )
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]) if lines else ["artifact"], lineterminator="\n")
    writer.writeheader()
    for line in lines:
        writer.writerow({name: _inert(value) for name, value in line.items()})
    return text.getvalue()


def _accuracy_fields(entry: Entry) -> dict[str, object]:
    manifest, accuracy = entry.artifact.manifest, entry.accuracy
    top1, drop = (accuracy.top1, accuracy.drop) if accuracy else (None, None)
    top5 = accuracy.top5 if accuracy else None
    agreement = accuracy.agreement if accuracy else None
    return {
        "run": entry.artifact.folder.parent.name,
        "model": manifest.model.name,
        "artifact": entry.artifact.name,
        "target": manifest.target,
        "scheme": manifest.scheme,
        "graph": manifest.graph,
        "model_sha256": entry.artifact.sha256,
        "model_bytes": entry.artifact.size_bytes,
        "data": accuracy and PurePath(accuracy.data).name,
        "images": accuracy and accuracy.images,
        "top1_percent": top1 and top1.percent,
        "top1_low_percent": top1 and top1.low_percent,
        "top1_high_percent": top1 and top1.high_percent,
        "top5_percent": top5 and top5.percent,
        "drop_points": drop and drop.points,
        "drop_low_points": drop and drop.low_points,
        "drop_high_points": drop and drop.high_points,
        "agreement_percent": agreement and agreement.percent,
        "sqnr_db": accuracy and accuracy.sqnr_db,
        "max_abs_error": accuracy and accuracy.max_abs_error,
        "accuracy_kind": accuracy and accuracy.kind,
        "accuracy_runtime": accuracy and accuracy.runtime,
    }


def _latency_fields(report: LatencyReport | None) -> dict[str, object]:
    measured = report.measurement if report else None
    times = measured.statistics if measured else None
    return {
        "latency_kind": report and report.kind,
        "device": report and report.device.name,
        "device_model": report and report.device.model,
        "soc": report and report.device.soc,
        "browser": report and report.device.browser,
        "cpu": report and report.device.cpu,
        "os": report and report.device.os,
        "measured_by": report and report.measured_by,
        "measured": report and report.created,
        "accelerator_requested": measured and measured.accelerator_requested,
        "accelerator_used": measured and measured.accelerator_used,
        "logits_right": measured and measured.correctness and measured.correctness.passed,
        "ended_early": measured and measured.partial,
        "engine": measured and f"{measured.engine.name} {measured.engine.version}",
        "threads": report and report.threads,
        "runs": measured and len(measured.samples_ms),
        "load_ms": measured and measured.load_ms,
        "first_inference_ms": measured and measured.first_inference_ms,
        "p50_ms": times and times.p50_ms,
        "p90_ms": times and times.p90_ms,
        "p95_ms": times and times.p95_ms,
        "p99_ms": times and times.p99_ms,
        "mean_ms": times and times.mean_ms,
        "std_ms": times and times.std_ms,
        "images_per_s": measured and measured.images_per_s,
        "peak_rss_bytes": measured and measured.peak_rss_bytes,
        "rss_before_load_bytes": measured and measured.rss_before_load_bytes,
    }


def _instruction_fields(entry: Entry) -> dict[str, object]:
    counts = {device: count.instructions for device, count in entry.instructions.items()}
    totals = {device: count.total for device, count in counts.items() if count}
    return {f"instructions_{cpu}_emulated": totals.get(DEVICE_PREFIX + cpu) for cpu in CPUS}


def _with_interval(cell: Cell) -> str:
    return f"{cell.text} ({cell.small})" if cell.small else cell.text


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line: names come from outside."""
    return re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", " ".join(text.split()))


def _inert(value: object) -> object:
    """A spreadsheet runs text that begins like a formula, so such text gets an apostrophe."""
    return f"'{value}" if isinstance(value, str) and value[:1] in "=+-@\t\r" and value else value
