"""mf-bench: how long artifacts take on this machine, or how much work they are for an emulated phone."""

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from mf_deploy.cli.command import run_command
from mf_deploy.errors import MfDeployError

if TYPE_CHECKING:
    from mf_deploy.artifact import Artifact, Record
    from mf_deploy.benchmarks import Device, LatencyReport, Protocol
    from mf_deploy.benchmarks.devices.arm import Arm
    from mf_deploy.benchmarks.latency import LatencyRatio, Measurement
    from mf_deploy.benchmarks.measure import Progress

Result = TypeVar("Result")

DEFAULT_RUNS = 200
MEGABYTE = 1e6


class Threads(click.ParamType):
    """Comma-separated thread counts, e.g. ``1,2``."""

    name = "N[,N...]"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in str(value).split(",")]
        if not all(part.isdecimal() and 1 <= int(part) <= 1024 for part in parts):
            raise MfDeployError(
                f"Bad --threads {value}", "not whole numbers of at least 1", "Write e.g. 1,2."
            )
        return tuple(dict.fromkeys(int(part) for part in parts))


EPILOG = """\b
Examples:
  mf-bench runs/mobile_former_294m
  mf-bench runs/mobile_former_294m/tflite-w8a8 --threads 1,2 --seconds 10
  mf-bench runs/mobile_former_294m/onnx-w8a8 --vs runs/mobile_former_294m/onnx-fp32
  mf-bench runs/mobile_former_294m --device arm:cortex-a76 --per-op
"""


@click.command("mf-bench", epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path(path_type=Path))
@click.option("--threads", type=Threads(), default="1", show_default=True, help="Thread counts to time with.")
@click.option(
    "--runs", "count", type=click.IntRange(1, 400_000), help=f"Timed inferences (default {DEFAULT_RUNS})."
)
@click.option("--seconds", type=click.FloatRange(0.1, 86_400), help="Time for so long instead of --runs.")
@click.option(
    "--vs", metavar="RUN", type=click.Path(path_type=Path), help="Also time each artifact against this one."
)
@click.option("--json", "json_file", metavar="FILE", help="Write every sample there; - is standard output.")
@click.option(
    "--device",
    "device_name",
    default="host",
    show_default=True,
    help="host, or an emulated ARM CPU: arm:cortex-a72, arm:cortex-a76, arm:max.",
)
@click.option("--per-op", is_flag=True, help="On ARM: also by operator.")
def bench(
    runs: tuple[Path, ...],
    threads: tuple[int, ...],
    count: int | None,
    seconds: float | None,
    vs: Path | None,
    json_file: str | None,
    device_name: str,
    per_op: bool,
) -> int:
    """Time artifacts on this machine: load, first inference, percentiles, throughput, memory.

    RUN is an artifact folder, or a model folder with artifacts in it. Every artifact is timed in a
    process of its own. Results are kept in the model folder's results/, where mf-report finds them.

    With --vs, each artifact and the one at RUN (for a model folder: the one of the same name) also take
    turns in one process; the ratio of their medians comes with its 95 % interval.

    With --device arm:..., nothing is timed: the engine's ARM build runs in emulation and its instructions
    are counted (mf-deploy setup arm prepares that).
    """
    from mf_deploy.artifact import find_artifacts
    from mf_deploy.benchmarks import Protocol, open_device
    from mf_deploy.benchmarks.latency import BenchReport

    if device_name.startswith("arm:"):
        return _count(runs, threads, count, seconds, vs, json_file, device_name, per_op)
    if per_op:
        raise MfDeployError(
            "Cannot use --per-op here", "it counts instructions", "Add --device arm:cortex-a76."
        )
    if count is not None and seconds is not None:
        raise MfDeployError("Cannot use --runs with --seconds", "each says when to stop", "Pass one of them.")
    protocol = Protocol(min_runs=count or (1 if seconds else DEFAULT_RUNS), min_seconds=seconds or 0.0)
    device = open_device(device_name)
    for number in threads:
        device.check_threads(number)
    artifacts = list({a.folder: a for run in runs for a in find_artifacts(run.resolve())}.values())
    partners = _partners(artifacts, vs, device) if vs else {}
    _check_writable([artifact.folder.parent / "results" for artifact in artifacts], json_file)

    job = _Job(device, protocol)
    for artifact in artifacts:
        for number in threads:
            report = job.time(artifact, number)
            if report.measurement and artifact.folder in partners:
                job.compare(artifact, partners[artifact.folder], number)
    write_json(json_file, BenchReport(reports=job.reports, ratios=job.ratios))
    to_stderr = json_file == "-"
    _print_table(job.reports, to_stderr)
    for line in [*_ratio_lines(job.ratios), *_notes(job.reports)]:
        click.echo(line, err=to_stderr)
    return max(job.exit_codes, default=0)


def main() -> None:
    run_command(bench)


def _count(
    runs: tuple[Path, ...],
    threads: tuple[int, ...],
    count: int | None,
    seconds: float | None,
    vs: Path | None,
    json_file: str | None,
    device_name: str,
    per_op: bool,
) -> int:
    """Count instructions on an emulated ARM CPU."""
    from mf_deploy.artifact import find_artifacts
    from mf_deploy.benchmarks.devices.arm import Arm
    from mf_deploy.cli.bench_arm import DEFAULT_RUNS, count_all

    if seconds is not None or threads != (1,):
        option = "--threads" if seconds is None else "--seconds"
        raise MfDeployError(
            f"Cannot use {option} on {device_name}", "nothing is timed there", "Leave it out."
        )
    device = Arm(device_name)
    artifacts = list({a.folder: a for run in runs for a in find_artifacts(run.resolve())}.values())
    partners = _partners(artifacts, vs, device) if vs else {}
    _check_writable([artifact.folder.parent / "results" for artifact in artifacts], json_file)
    return count_all(artifacts, partners, device, count or DEFAULT_RUNS, per_op, json_file)


@dataclass
class _Job:
    """What one command measures; each result is kept as soon as it is there."""

    device: "Device"
    protocol: "Protocol"
    reports: "list[LatencyReport]" = field(default_factory=list)
    ratios: "list[LatencyRatio]" = field(default_factory=list)
    exit_codes: list[int] = field(default_factory=list)

    def time(self, artifact: "Artifact", threads: int) -> "LatencyReport":
        """Time one artifact alone; a failure becomes a report without a measurement, and an exit code."""
        from mf_deploy.benchmarks import bench
        from mf_deploy.benchmarks.latency import report_on

        device, protocol = self.device, self.protocol
        try:
            report = _with_progress(
                f"{artifact.name}, threads {threads}",
                lambda progress: bench(artifact, device, threads, protocol, progress),
            )
        except MfDeployError as error:
            self.exit_codes.append(error.exit_code)
            report = report_on(artifact, device.kind, device.info, threads, protocol, str(error))
        _keep(artifact.folder.parent, f"bench-{artifact.name}-{device.slug}-t{threads}", report)
        self.reports.append(report)
        return report

    def compare(self, artifact: "Artifact", partner: "Artifact", threads: int) -> None:
        """Time two artifacts in turns.

        Raises:
            MfDeployError: the partner cannot be timed here.
        """
        ratio = _with_progress(
            f"{artifact.name} in turns with {partner.name}, threads {threads}",
            lambda progress: self.device.compare(artifact, partner, threads, self.protocol, progress),
        )
        self.ratios.append(ratio)


def _with_progress(label: str, work: "Callable[[Progress], Result]") -> Result:
    """Do ``work`` with a progress bar on standard error, drawn only on a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    out = Console(stderr=True)
    with Progress(console=out, transient=True, disable=not out.is_terminal) as bar:
        task = bar.add_task(label, total=1.0)
        return work(lambda fraction: bar.update(task, completed=fraction))


def _keep(run_folder: Path, name: str, report: "LatencyReport") -> None:
    """Save a report; one without a measurement never replaces a measurement of the same file."""
    from mf_deploy.artifact import read_record
    from mf_deploy.benchmarks.latency import LatencyReport
    from mf_deploy.report.results import result_path, save_result

    path = result_path(run_folder, name)
    if report.measurement is None and path.exists():
        with suppress(MfDeployError):
            before = read_record(path, LatencyReport, "It is replaced.")
            if before.measurement is not None and before.model_sha256 == report.model_sha256:
                return
    save_result(run_folder, name, report)


def _partners(artifacts: "list[Artifact]", vs: Path, device: "Device | Arm") -> "dict[Path, Artifact]":
    """Artifact folder -> what to compare it with: the only artifact at ``vs``, or its namesake there."""
    from mf_deploy.artifact import find_artifacts

    others = find_artifacts(vs.resolve())
    by_name = {other.name: other for other in others}
    partners = {}
    for artifact in artifacts:
        other = others[0] if len(others) == 1 else by_name.get(artifact.name)
        if other is not None and other.folder != artifact.folder:
            partners[artifact.folder] = other
    timed = [other for other in partners.values() if not device.reason_not_to_run(other)]
    if not timed:
        raise MfDeployError(
            f"Nothing to compare with {vs}",
            "it holds no other artifact of the same name that can be timed here",
            "Give --vs an artifact folder, or a model folder with the same artifacts.",
        )
    return {folder: other for folder, other in partners.items() if other in timed}


def _check_writable(folders: list[Path], json_file: str | None) -> None:
    """Refuse what cannot be written before anything slow starts."""
    from mf_deploy.artifact import check_writable

    for folder in dict.fromkeys(folders):
        check_writable(folder / "bench", force=True)
    if json_file and json_file != "-":
        check_writable(Path(json_file), force=True)


def write_json(json_file: str | None, report: "Record") -> None:
    """Write a record to a file, or to standard output for ``-``."""
    from mf_deploy.artifact import write_whole

    if json_file == "-":
        click.echo(report.model_dump_json())
    elif json_file:
        write_whole(Path(json_file), report.model_dump_json().encode())


def _print_table(reports: "list[LatencyReport]", to_stderr: bool) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.measure import Measurement as Width
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
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
    peak, before = measured.peak_rss_bytes / MEGABYTE, measured.rss_before_load_bytes / MEGABYTE
    return [
        *(_figure(value) for value in times),
        f"{_figure(of.mean_ms)} ± {_figure(of.std_ms)}",
        _figure(measured.images_per_s),
        f"{peak:.0f} (+{peak - before:.0f})",
    ]


def _figure(value: float) -> str:
    """Three significant digits, never in exponents."""
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}" if value > 0 else "0"


def _ratio_lines(ratios: "list[LatencyRatio]") -> list[str]:
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


def _notes(reports: "list[LatencyReport]") -> list[str]:
    """What could not be run, and where, how and with what the others were."""
    reasons = dict.fromkeys(f"{r.artifact}: not run: {r.not_run}" for r in reports if r.not_run)
    device, protocol = reports[0].device, reports[0].protocol
    engines = {
        f"{r.measurement.engine.name} {r.measurement.engine.version}" for r in reports if r.measurement
    }
    length = f"{protocol.min_seconds:g} s" if protocol.min_seconds else f"{protocol.min_runs} runs"
    return [
        *reasons,
        f"On {device.cpu}, {device.cores} cores, {device.os}; {', '.join(sorted(engines)) or 'no engine'};"
        f" {length} after at least {protocol.warmup_runs} runs and {protocol.warmup_seconds:g} s of warm-up.",
        "Memory is the timing process's; + is what the model added. Times of this machine, not of a phone.",
    ]


if __name__ == "__main__":
    main()
