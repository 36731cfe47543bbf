"""mf-bench: how long artifacts take on this machine, or how much work they are for an emulated phone."""

import random
import re
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mf_deploy.cli.bench_table import notes, print_table, ratio_lines
from mf_deploy.cli.command import run_command
from mf_deploy.errors import MfDeployError

if TYPE_CHECKING:
    from mf_deploy.artifact import Artifact, Record
    from mf_deploy.benchmarks import Device, LatencyReport, Protocol
    from mf_deploy.benchmarks.devices.arm import Arm
    from mf_deploy.benchmarks.latency import LatencyRatio
    from mf_deploy.benchmarks.measure import Progress

Result = TypeVar("Result")

# Word after mf-bench -> where its command is; a model folder of that name is given as ./serve
SUBCOMMANDS = {
    "serve": ("mf_deploy.cli.bench_serve", "serve"),
    "import": ("mf_deploy.cli.bench_import", "import_results"),
}


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


class Duration(click.ParamType):
    """Seconds, also as 90s, 30m or 1h."""

    name = "DURATION"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", str(value))
        seconds = float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2] or "s"] if found else 0.0
        if not 1 <= seconds <= 86_400:
            what = f"Bad {param.opts[0] if param else 'duration'} {value}"
            raise MfDeployError(what, "not a time of 1 s to 24 h", "Write e.g. 90s, 30m or 1h.")
        return seconds


EPILOG = """\b
Examples:
  mf-bench runs/mobile_former_294m
  mf-bench runs/mobile_former_294m/tflite-w8a8 --threads 1,2 --quick
  mf-bench runs/mobile_former_294m/onnx-w8a8 --vs runs/mobile_former_294m/onnx-fp32
  mf-bench runs/mobile_former_294m --device arm:cortex-a76 --per-op
"""


@click.command("mf-bench", epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path(path_type=Path))
@click.option("--threads", type=Threads(), default="1", show_default=True, help="Thread counts to time with.")
@click.option("--quick", is_flag=True, help="200 inferences in place of 1,024 and 60 s.")
@click.option("--sustained", type=Duration(), help="Time for so long, e.g. 30m: throttling shows.")
@click.option("--runs", "count", type=click.IntRange(1, 400_000), help="Time so many inferences.")
@click.option("--seconds", type=click.FloatRange(0.1, 86_400), help="Time for so many seconds.")
@click.option(
    "--cool-down", type=click.FloatRange(0, 3600), metavar="SECONDS", help="Rest before each model."
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the models' order and the input."
)
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
    quick: bool,
    sustained: float | None,
    count: int | None,
    seconds: float | None,
    cool_down: float | None,
    seed: int,
    vs: Path | None,
    json_file: str | None,
    device_name: str,
    per_op: bool,
) -> int:
    """Time artifacts on this machine: load, first inference, percentiles, throughput, memory.

    RUN is an artifact folder, or a model folder with artifacts in it. Every artifact is timed in a
    process of its own. Results are kept in the model folder's results/, where mf-report finds them.

    After a warm-up, at least 1,024 inferences and 60 s are timed, as in MLPerf Mobile's single stream; the
    headline is the 90th percentile.

    With --vs, each artifact and the one at RUN (for a model folder: the one of the same name) also take
    turns in one process; the ratio of their medians comes with its 95 % interval.

    With --device arm:..., nothing is timed: the engine's ARM build runs in emulation and its instructions
    are counted (mf-deploy setup arm prepares that).

    Times from elsewhere: mf-bench serve RUN... opens a page for phones' browsers, mf-bench import FILE
    takes the results that an app has written (see their --help).
    """
    from mf_deploy.artifact import find_artifacts
    from mf_deploy.benchmarks import open_device
    from mf_deploy.benchmarks.latency import BenchReport

    if device_name.startswith("arm:"):
        return _count(runs, threads, count, quick or sustained or seconds, vs, json_file, device_name, per_op)
    if per_op:
        raise MfDeployError(
            "Cannot use --per-op here", "it counts instructions", "Add --device arm:cortex-a76."
        )
    length = {"--quick": quick, "--sustained": sustained, "--runs": count, "--seconds": seconds}
    protocol = _protocol({name: value for name, value in length.items() if value}, cool_down, seed)
    device = open_device(device_name)
    for number in threads:
        device.check_threads(number)
    artifacts = list({a.folder: a for run in runs for a in find_artifacts(run.resolve())}.values())
    partners = _partners(artifacts, vs, device) if vs else {}
    _check_writable([artifact.folder.parent / "results" for artifact in artifacts], json_file)

    job = _Job(device, protocol)
    turns = [(artifact, number) for artifact in artifacts for number in threads]
    by_turn = {}
    for turn in random.Random(seed).sample(range(len(turns)), len(turns)):
        artifact, number = turns[turn]
        by_turn[turn] = job.bench(artifact, number)
        if by_turn[turn].measurement and artifact.folder in partners:
            job.compare(artifact, partners[artifact.folder], number)
    reports = [by_turn[turn] for turn in range(len(turns))]
    write_json(json_file, BenchReport(reports=reports, ratios=job.ratios))
    to_stderr = json_file == "-"
    print_table(reports, to_stderr)
    for line in [*ratio_lines(job.ratios), *notes(reports)]:
        click.echo(line, err=to_stderr)
    return max(job.exit_codes, default=0)


def main() -> None:
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    if word in SUBCOMMANDS:
        module, function = SUBCOMMANDS[word]
        run_command(getattr(import_module(module), function), sys.argv[2:])
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


def _protocol(length: "dict[str, Any]", cool_down: float | None, seed: int) -> "Protocol":
    """The protocol of the one option that says when to stop, or MLPerf Mobile's."""
    from mf_deploy.benchmarks import Protocol

    if len(length) > 1:
        first, second, *_ = length
        raise MfDeployError(
            f"Cannot use {first} with {second}", "each says when to stop", "Pass one of them."
        )
    rest: dict[str, float] = {"cool_down_seconds": cool_down or 0.0, "seed": seed}
    option, value = next(iter(length.items()), (None, 0))
    if option == "--quick":
        return Protocol.quick(**rest)
    if option == "--runs":
        return Protocol.quick(min_runs=value, **rest)
    if option:
        return Protocol.sustained(value, **rest)
    return Protocol.single_stream(**rest)


@dataclass
class _Job:
    """What one command measures; each result is kept as soon as it is there."""

    device: "Device"
    protocol: "Protocol"
    ratios: "list[LatencyRatio]" = field(default_factory=list)
    exit_codes: list[int] = field(default_factory=list)

    def bench(self, artifact: "Artifact", threads: int) -> "LatencyReport":
        """Time one artifact alone; a failure becomes a report without a measurement, and an exit code."""
        from mf_deploy.benchmarks import bench
        from mf_deploy.benchmarks.latency import report_on

        device, protocol = self.device, self.protocol
        time.sleep(protocol.cool_down_seconds)
        try:
            report = _with_progress(
                f"{artifact.name}, threads {threads}",
                lambda progress: bench(artifact, device, threads, protocol, progress),
            )
        except MfDeployError as error:
            self.exit_codes.append(error.exit_code)
            report = report_on(artifact, device.kind, device.info, threads, protocol, str(error))
        _keep(artifact.folder.parent, f"bench-{artifact.name}-{device.slug}-t{threads}", report)
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


if __name__ == "__main__":
    main()
