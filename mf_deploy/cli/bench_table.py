"""What mf-bench prints: a table of times, ratios, and what the figures are worth."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mf_deploy.benchmarks.latency import LatencyRatio, LatencyReport, Measurement

MEGABYTE = 1e6


def print_table(reports: "list[LatencyReport]", to_stderr: bool) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.measure import Measurement as Width
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    if reports[0].kind == "emulated":
        table.title = "Emulated times: not latency"
    several = len({report.model for report in reports}) > 1
    table.add_column("artifact", no_wrap=True)
    for header in (
        "thr",
        "load\nms",
        "first\nms",
        "p50\nms",
        "p90\nms",
        "p99\nms",
        "mean ± std\nms",
        "images\n/s",
    ):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("memory peak\n(+ model) MB", justify="right", no_wrap=True)
    table.add_column("size\nMB", justify="right", no_wrap=True)
    for report in reports:
        name = f"{report.model}/{report.artifact}" if several else report.artifact
        cells = _measured_cells(report.measurement) if report.measurement else ["not run", *[""] * 7]
        table.add_row(escape(name), str(report.threads), *cells, _figure(report.model_bytes / MEGABYTE))
    out = Console(stderr=to_stderr)
    needed = Width.get(out, out.options.update(max_width=1000), table).maximum
    out.width = max(out.width, needed)
    out.print(table, crop=False)


def _measured_cells(measured: "Measurement") -> list[str]:
    of = measured.statistics
    times = [measured.load_ms, measured.first_inference_ms, of.p50_ms, of.p90_ms, of.p99_ms]
    return [
        *(_figure(value) for value in times),
        f"{_figure(of.mean_ms)} ± {_figure(of.std_ms)}",
        _figure(measured.images_per_s),
        _memory(measured),
    ]


def _memory(measured: "Measurement") -> str:
    if measured.peak_rss_bytes is None:
        return ""
    peak = f"{measured.peak_rss_bytes / MEGABYTE:.0f}"
    if measured.rss_before_load_bytes is None:
        return peak
    return f"{peak} (+{(measured.peak_rss_bytes - measured.rss_before_load_bytes) / MEGABYTE:.0f})"


def _figure(value: float) -> str:
    """Three significant digits, never in exponents."""
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}" if value > 0 else "0"


def ratio_lines(ratios: "list[LatencyRatio]") -> list[str]:
    lines = []
    for found in ratios:
        verdict = "slower" if found.low > 1 else "faster" if found.high < 1 else "no difference seen"
        lines.append(
            f"{_short(found.artifact)} takes {found.ratio:.3f} × the time of {_short(found.against)}"
            f" (95 % interval {found.low:.3f} to {found.high:.3f}, {len(found.blocks_ms)} pairs of blocks,"
            f" threads {found.threads}): {verdict}"
        )
    return lines


def _short(folder: str) -> str:
    """The folder as seen from here, where it lies below."""
    path = Path(folder)
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


WORTH = {
    "host": "Times of this machine, not of a phone.",
    "device": "The headline is p90, as in MLPerf Mobile.",
    "emulated": "Emulated times are no latency: they show that it runs, not how fast a phone is.",
}


def notes(reports: "list[LatencyReport]") -> list[str]:
    """What could not be run, and where, how and with what the others were."""
    reasons = dict.fromkeys(f"{r.artifact}: not run: {r.not_run}" for r in reports if r.not_run)
    first, protocol = reports[0], reports[0].protocol
    device = first.device
    engines = {
        f"{r.measurement.engine.name} {r.measurement.engine.version}" for r in reports if r.measurement
    }
    if not engines:
        return list(reasons)
    runs = f"{protocol.min_runs} runs" if protocol.min_runs > 1 else ""
    seconds = f"{protocol.min_seconds:g} s" if protocol.min_seconds else ""
    bound = f", on cores {first.cores}" if first.cores else ""
    return [
        *reasons,
        *(line for report in reports for line in _doubts(report)),
        f"On {device.label}, {device.cores} cores{bound}, {device.os};"
        f" {', '.join(sorted(engines))}; {' and '.join(filter(None, (runs, seconds)))}"
        f" after at least {protocol.warmup_runs} runs and {protocol.warmup_seconds:g} s of warm-up.",
        f"Memory is the timing process's; + is what the model added. {WORTH.get(first.kind, '')}",
    ]


def _doubts(report: "LatencyReport") -> list[str]:
    """What to know of a measurement before its times are believed."""
    measured, lines = report.measurement, []
    if measured is None:
        return []
    if measured.partial:
        kept = f"{len(measured.samples_ms)} samples are kept"
        lines.append(f"{report.artifact}: ended early: {measured.partial}; {kept}.")
    if (found := measured.correctness) is not None:
        error = "not comparable" if found.max_abs_error is None else f"off by {found.max_abs_error:.2g}"
        verdict = "right" if found.passed else "WRONG"
        lines.append(
            f"{report.artifact}: its logits are {verdict}: {error} from {found.reference},"
            f" at most {found.tolerance:.2g} is allowed."
        )
    states = [(of.thermal_state or "", of.temperature_c) for of in (measured.before, measured.after)]
    if report.kind == "device" and any(state or degrees for state, degrees in states):
        told = [
            " ".join(filter(None, (state, f"{degrees:.0f} °C" if degrees is not None else "")))
            for state, degrees in states
        ]
        lines.append(f"{report.artifact}: thermal state {told[0] or '?'} before, {told[1] or '?'} after.")
    return lines
