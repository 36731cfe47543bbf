"""mf-bench: how long artifacts take on this machine or a phone, or how much work they are for one."""

import random
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mf_deploy.cli.bench_devices import print_devices
from mf_deploy.cli.bench_job import Job
from mf_deploy.cli.bench_options import Duration, Threads, protocol_of
from mf_deploy.cli.bench_table import notes, print_table, ratio_lines
from mf_deploy.cli.command import run_command
from mf_deploy.errors import MISSING_TOOL, MfDeployError

if TYPE_CHECKING:
    from mf_deploy.artifact import Artifact, Record
    from mf_deploy.benchmarks import Device
    from mf_deploy.benchmarks.devices.arm import Arm

PHONE_COOL_DOWN_S = 30.0

# Word after mf-bench -> where its command is; a model folder of that name is given as ./serve
SUBCOMMANDS = {
    "serve": ("mf_deploy.cli.bench_serve", "serve"),
    "import": ("mf_deploy.cli.bench_import", "import_results"),
    "bundle": ("mf_deploy.cli.bench_bundle", "bundle"),
}


EPILOG = """\b
Examples:
  mf-bench runs/mobile_former_294m
  mf-bench runs/mobile_former_294m/tflite-w8a8 --threads 1,2 --quick
  mf-bench runs/mobile_former_294m/onnx-w8a8 --vs runs/mobile_former_294m/onnx-fp32
  mf-bench runs/mobile_former_294m --device arm:cortex-a76 --per-op
  mf-bench runs/mobile_former_294m --device adb --cores 4-7 --threads 4
  mf-bench runs/mobile_former_294m/tflite-w8a8 --device adb --sustained 30m
  mf-bench runs/mobile_former_294m/onnx-w8a8 --device adb --app --accelerator nnapi
  mf-bench --devices
"""


@click.command("mf-bench", epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("runs", nargs=-1, metavar="RUN...", type=click.Path(path_type=Path))
@click.option("--threads", type=Threads(), default="1", show_default=True, help="Thread counts to time with.")
@click.option("--quick", is_flag=True, help="200 inferences in place of 1,024 and 60 s.")
@click.option("--sustained", type=Duration(), help="Time for so long, e.g. 30m: throttling shows.")
@click.option("--runs", "count", type=click.IntRange(1, 400_000), help="Time so many inferences.")
@click.option("--seconds", type=click.FloatRange(0.1, 86_400), help="Time for so many seconds.")
@click.option(
    "--cool-down",
    type=click.FloatRange(0, 3600),
    metavar="SECONDS",
    help="Rest between models (default 0, on a phone 30).",
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
    help="host, an Android phone: adb[:SERIAL], or an emulated CPU: arm:cortex-a72, arm:cortex-a76, arm:max.",
)
@click.option("--cores", metavar="LIST", help="Of a phone: run on these only, e.g. 4-7.")
@click.option(
    "--app", "use_app", is_flag=True, help="On a phone: in the Android app (make apk), not beside it."
)
@click.option(
    "--accelerator",
    type=click.Choice(["cpu", "xnnpack", "nnapi"]),
    help="What the app asks for (default cpu).",
)
@click.option("--devices", "list_devices", is_flag=True, help="List what --device can name now, and end.")
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
    cores: str | None,
    use_app: bool,
    accelerator: str | None,
    list_devices: bool,
    per_op: bool,
) -> int:
    """Time artifacts on this machine or a phone: load, first inference, percentiles, throughput, memory.

    RUN is an artifact folder, or a model folder with artifacts in it. Every artifact is timed in a
    process of its own. Results are kept in the model folder's results/, where mf-report finds them.

    After a warm-up, at least 1,024 inferences and 60 s are timed, as in MLPerf Mobile's single stream; the
    headline is the 90th percentile.

    With --vs, each artifact and the one at RUN (for a model folder: the one of the same name) also take
    turns in one process; the ratio of their medians comes with its 95 % interval.

    With --device adb, the engines' ARM64 builds run on the attached Android phone, with no app to install
    (mf-deploy setup adb prepares that); its temperature, battery and logits come with the times.

    With --device arm:..., nothing is timed: the engine's ARM build runs in emulation and its instructions
    are counted (mf-deploy setup arm prepares that).

    Times from elsewhere: mf-bench serve RUN... opens a page for phones' browsers, mf-bench bundle RUN...
    prepares models for the iPhone app, mf-bench import FILE takes the results that an app has written (see
    their --help).
    """
    from mf_deploy.artifact import find_artifacts
    from mf_deploy.benchmarks import open_device
    from mf_deploy.benchmarks.latency import BenchReport

    if list_devices:
        print_devices()
        return 0
    if not runs:
        raise click.UsageError("Missing argument 'RUN...'.")
    options = {"--quick": quick, "--sustained": sustained, "--runs": count, "--seconds": seconds}
    length = {name: value for name, value in options.items() if value}
    if device_name.startswith("arm:"):
        others = {"--cool-down": cool_down, "--cores": cores, "--threads": threads != (1,)}
        _refuse_options({**length, **others} | {"--runs": None}, device_name)
        return _count(runs, count, vs, json_file, device_name, per_op)
    if per_op:
        raise MfDeployError(
            "Cannot use --per-op here", "it counts instructions", "Add --device arm:cortex-a76."
        )
    if accelerator and not use_app:
        raise MfDeployError("Cannot use --accelerator here", "it is for the app", "Add --device adb --app.")
    protocol = protocol_of(length, cool_down or 0.0, seed)
    device = _open_app(device_name, accelerator, cores) if use_app else open_device(device_name, cores)
    if cool_down is None and device.kind == "device":
        protocol.cool_down_seconds = PHONE_COOL_DOWN_S
    for number in threads:
        device.check_threads(number)
    artifacts = list({a.folder: a for run in runs for a in find_artifacts(run.resolve())}.values())
    partners = _partners(artifacts, vs, device) if vs else {}
    _check_writable([artifact.folder.parent / "results" for artifact in artifacts], json_file)

    job = Job(device, protocol)
    turns = [(artifact, number) for artifact in artifacts for number in threads]
    by_turn = {}
    for turn in random.Random(seed).sample(range(len(turns)), len(turns)):
        artifact, number = turns[turn]
        by_turn[turn] = job.bench(artifact, number)
        if by_turn[turn].measurement and artifact.folder in partners:
            job.compare(artifact, partners[artifact.folder], number)
        if device.lost:
            break
    reports = [by_turn[turn] for turn in sorted(by_turn)]
    write_json(json_file, BenchReport(reports=reports, ratios=job.ratios))
    to_stderr = json_file == "-"
    print_table(reports, to_stderr)
    for line in [*ratio_lines(job.ratios), *notes(reports)]:
        click.echo(line, err=to_stderr)
    return max(job.exit_codes, default=0 if any(report.measurement for report in reports) else MISSING_TOOL)


def _open_app(device_name: str, accelerator: str | None, cores: str | None) -> "Device":
    """The Android app on a phone.

    Raises:
        MfDeployError: it is no phone, or the app cannot be used.
    """
    from mf_deploy.benchmarks.devices.adb_app import AdbApp

    if device_name.partition(":")[0] != "adb":
        raise MfDeployError(f"Cannot use --app on {device_name}", "it is for phones", "Add --device adb.")
    if cores is not None:
        why, fix = "Android gives an app its cores", "Leave --cores or --app out."
        raise MfDeployError("Cannot use --cores with --app", why, fix)
    return AdbApp(device_name, accelerator or "cpu")


def main() -> None:
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    if word in SUBCOMMANDS:
        module, function = SUBCOMMANDS[word]
        run_command(getattr(import_module(module), function), sys.argv[2:])
    run_command(bench)


def _refuse_options(given: dict[str, Any], device_name: str) -> None:
    """An error for the first of the options that was given: name -> its value."""
    for option, value in given.items():
        if value:
            what = f"Cannot use {option} on {device_name}"
            raise MfDeployError(what, "nothing is timed there", "Leave it out.")


def _count(
    runs: tuple[Path, ...],
    count: int | None,
    vs: Path | None,
    json_file: str | None,
    device_name: str,
    per_op: bool,
) -> int:
    """Count instructions on an emulated ARM CPU."""
    from mf_deploy.artifact import find_artifacts
    from mf_deploy.benchmarks.devices.arm import Arm
    from mf_deploy.cli.bench_arm import DEFAULT_RUNS, count_all

    device = Arm(device_name)
    artifacts = list({a.folder: a for run in runs for a in find_artifacts(run.resolve())}.values())
    partners = _partners(artifacts, vs, device) if vs else {}
    _check_writable([artifact.folder.parent / "results" for artifact in artifacts], json_file)
    return count_all(artifacts, partners, device, count or DEFAULT_RUNS, per_op, json_file)


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
