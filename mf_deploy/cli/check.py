"""mf-check: how accurate artifacts are, against PyTorch on the same images."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mf_deploy.cli.command import progress_bar, run_command
from mf_deploy.errors import GATE_FAILED, MfDeployError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from mf_deploy.artifact import Artifact, Record
    from mf_deploy.data.images import LabelledImages
    from mf_deploy.evaluation.accuracy import AccuracyReport
    from mf_deploy.evaluation.comparison import Subject
    from mf_deploy.evaluation.drift import DriftReport, LayerDrift
    from mf_deploy.evaluation.gates import GateResult, Gates
    from mf_deploy.evaluation.statistics import Proportion

EPILOG = """\b
Examples:
  mf-check runs/mobile_former_294m --data imagenet/val --limit 5000
  mf-check runs/mobile_former_294m --data val.tar --max-drop 1 --min-agreement 95
  mf-check runs/mobile_former_294m/tflite-w8a8 --data val.tar --layers
"""


@click.command("mf-check", epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path(path_type=Path))
@click.option(
    "--data", required=True, type=click.Path(path_type=Path), help="Folder, .tar, .zip or .parquet."
)
@click.option("--label-file", type=click.Path(path_type=Path), help="Text file, one 'image label' a line.")
@click.option("--limit", type=click.IntRange(1), help="Take this many of the images.")
@click.option("--seed", default=0, show_default=True, help="Which images --limit takes.")
@click.option("--max-drop", type=click.FloatRange(0, 100), metavar="PT", help="Largest top-1 drop, points.")
@click.option("--min-agreement", type=click.FloatRange(0, 100), metavar="PCT", help="Same top-1 as PyTorch.")
@click.option("--layers", is_flag=True, help="Show where each artifact first drifts from PyTorch instead.")
@click.option("--json", "json_file", metavar="FILE", help="Write the results there; - is standard output.")
@click.option("--threads", type=click.IntRange(1, 256), default=1, show_default=True, help="Of each session.")
@click.option(
    "--device",
    default="host",
    show_default=True,
    help="host, or an emulated CPU: arm:cortex-a72, arm:cortex-a76, arm:max, x86:haswell, x86:nehalem.",
)
def command(
    runs: tuple[Path, ...],
    data: Path,
    label_file: Path | None,
    limit: int | None,
    seed: int,
    max_drop: float | None,
    min_agreement: float | None,
    layers: bool,
    json_file: str | None,
    threads: int,
    device: str,
) -> int:
    """Check the accuracy of artifacts against their PyTorch reference on labelled images.

    RUN is an artifact folder, or a model folder: then all artifacts in it. All of them see the same
    images, read once. Intervals are 95 %. A gate passes when the whole interval keeps it; the exit code
    is 1 when a gate fails or cannot be decided with these images. Results are kept in the model folder's
    results/, where mf-report finds them.

    With --device arm:..., the engine's own ARM kernels run the artifacts in emulation, some pictures a
    second: take a --limit of 20 or so. mf-deploy setup arm prepares that. With --device x86:..., the kernels
    of an older x86 processor do.
    """
    from mf_deploy.artifact import find_artifacts
    from mf_deploy.data.images import open_images
    from mf_deploy.evaluation.accuracy import refuse_random_weights, refuse_unfit
    from mf_deploy.evaluation.gates import Gates
    from mf_deploy.evaluation.origin import refuse_orphans

    if layers and (max_drop is not None or min_agreement is not None):
        raise MfDeployError(
            "Cannot judge gates with --layers", "it measures no accuracy", "Leave out the gates, or --layers."
        )
    found = (artifact for run in runs for artifact in find_artifacts(run.resolve()))
    artifacts = list({artifact.folder: artifact for artifact in found}.values())
    if device != "host":
        artifacts = _emulated(artifacts, device, layers)
    if not layers:
        refuse_random_weights(artifacts)
    refuse_orphans(artifacts)
    images = open_images(data, limit, seed, label_file)
    _require_writable(json_file, [] if layers else artifacts)
    if layers:
        return _show_layers(artifacts, images, json_file, threads)
    gates = Gates(max_drop_points=max_drop, min_agreement_percent=min_agreement)
    refuse_unfit(artifacts, images, gates)
    return _check(artifacts, images, gates, json_file, threads, device)


def main() -> None:
    run_command(command)


def _check(
    artifacts: "Sequence[Artifact]",
    images: "LabelledImages",
    gates: "Gates",
    json_file: str | None,
    threads: int,
    device: str,
) -> int:
    from mf_deploy.evaluation.accuracy import AccuracyReports, check_all
    from mf_deploy.report.results import save_result

    subjects, problems = _open(artifacts, threads, device)
    with progress_bar(f"{len(subjects)} artifacts") as progress:
        reports = check_all(subjects, images, gates, progress)
    for subject, report in zip(subjects, reports, strict=True):
        where = "" if device == "host" else f"-{device}"
        save_result(subject.artifact.folder.parent, f"check-{report.artifact}{where}", report)
    _write_json(json_file, AccuracyReports(reports=reports))
    out = _console(json_file)
    for _, group in groupby(reports, key=lambda report: (Path(report.path).parent, report.images)):
        _print_table(out, list(group))
    _print_notes(out, reports, images)
    for problem in problems:
        _line(out, f"not checked: {problem}")
    for report in reports:
        for gate in report.gates:
            if gate.verdict != "pass":
                _line(out, _gate_line(report, gate))
    failed = not all(report.passed for report in reports)
    return GATE_FAILED if failed else max((problem.exit_code for problem in problems), default=0)


def _emulated(artifacts: "list[Artifact]", device: str, layers: bool) -> "list[Artifact]":
    """The artifacts that have an engine on the emulated ``device``, once that is known to be there."""
    from mf_deploy.runtimes import arm, x86
    from mf_deploy.runtimes.arm.lab import open_lab
    from mf_deploy.runtimes.arm.session import require_engine

    older_x86 = device.startswith(x86.DEVICE_PREFIX)
    (x86 if older_x86 else arm).cpu_of(device)
    if layers:
        raise MfDeployError(f"Cannot use --layers on {device}", "it runs on the host", "Leave out --device.")
    if older_x86:
        x86.X86()
    else:
        open_lab()
    fit = [artifact for artifact in artifacts if artifact.manifest.target != "coreml"]
    if not fit:
        require_engine(artifacts[0])
    return fit


def _open(
    artifacts: "Sequence[Artifact]", threads: int, device: str
) -> "tuple[list[Subject], list[MfDeployError]]":
    """Every artifact that opens, with its reference; an error only when none does."""
    from mf_deploy.evaluation.accuracy import BATCH_SIZE
    from mf_deploy.evaluation.comparison import Subject
    from mf_deploy.runtimes import Session, open_reference, open_session

    references: dict[Path, Session] = {}
    subjects: list[Subject] = []
    problems: list[MfDeployError] = []
    for artifact in artifacts:
        run = artifact.folder.parent
        if run not in references:
            references[run] = open_reference(run, BATCH_SIZE, threads)
        try:
            subjects.append(Subject(artifact, open_session(artifact, device, threads), references[run]))
        except MfDeployError as error:
            problems.append(error)
    if not subjects:
        raise problems[0]
    return subjects, problems


def _show_layers(
    artifacts: "Sequence[Artifact]", images: "LabelledImages", json_file: str | None, threads: int
) -> int:
    from mf_deploy.evaluation.drift import DriftReports

    reports: dict[Path, DriftReport] = {}
    out = _console(json_file)
    for artifact in artifacts:
        _print_layers(out, _find_drift(artifact, images, threads, reports))
    _write_json(json_file, DriftReports(reports=[reports[artifact.folder] for artifact in artifacts]))
    return 0


def _find_drift(
    artifact: "Artifact", images: "LabelledImages", threads: int, known: "dict[Path, DriftReport]"
) -> "DriftReport":
    """The drift of an artifact, seen beside the fp32 artifact of the same target where there is one."""
    from mf_deploy.artifact import MANIFEST_NAME, Artifact
    from mf_deploy.evaluation.drift import find_drift, first_pictures
    from mf_deploy.models.stored import load_reference
    from mf_deploy.runtimes import open_session

    if artifact.folder in known:
        return known[artifact.folder]
    in_fp32 = None
    target, scheme = artifact.manifest.target, artifact.manifest.scheme
    suffix = artifact.name.removeprefix(f"{target}-{scheme}")
    exact = artifact.folder.parent / f"{target}-fp32{suffix}"
    if exact != artifact.folder and (exact / MANIFEST_NAME).is_file():
        in_fp32 = _find_drift(Artifact.open(exact), images, threads, known)
    reference, _ = load_reference(artifact.folder.parent)
    session = open_session(artifact, threads=threads)
    pictures = first_pictures(images, session)
    known[artifact.folder] = find_drift(artifact, session, reference, pictures, in_fp32)
    return known[artifact.folder]


def _print_table(out: "Console", reports: "list[AccuracyReport]") -> None:
    from rich import box
    from rich.table import Table

    first = reports[0]
    _line(out, f"{first.model} on {Path(first.data).name}, {first.images:,} images, 95 % intervals")
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("artifact", no_wrap=True)
    headers = ("top-1 %", "top-5 %", "drop of top-1\npoints", "agree-\nment %", "SQNR\ndB", "max\n|Δlogit|")
    for header in (*headers, "mean\n|Δlogit|", "images\n/s"):
        table.add_column(header, justify="right", no_wrap=True)
    gated = any(report.gates for report in reports)
    if gated:
        table.add_column("gates", no_wrap=True)
    speed = f"{first.reference_images_per_s:.0f}"
    table.add_row("PyTorch", _rate(first.reference_top1), _rate(first.reference_top5), *[""] * 5, speed)
    for report in reports:
        drop = report.drop
        table.add_row(
            report.artifact,
            _rate(report.top1),
            _rate(report.top5),
            f"{drop.points:+.2f} ({drop.low_points:+.2f}…{drop.high_points:+.2f})" if drop else "",
            f"{report.agreement.percent:.2f}",
            f"{report.sqnr_db:.1f}",
            f"{report.max_abs_error:.2g}",
            f"{report.mean_abs_error:.2g}",
            f"{report.images_per_s:.0f}" if report.images_per_s else "",
            *([_verdict(report.gates)] if gated else []),
        )
    _print_whole(out, table)


def _print_whole(out: "Console", table: "Table") -> None:
    """Print a table with all its figures, also where it is wider than the terminal."""
    from rich.measure import Measurement

    needed = Measurement.get(out, out.options.update(max_width=1000), table).maximum
    out.width = max(out.width, needed)
    out.print(table, crop=False)


def _rate(rate: "Proportion | None") -> str:
    return f"{rate.percent:.2f} ({rate.low_percent:.1f}–{rate.high_percent:.1f})" if rate else ""


def _verdict(gates: "list[GateResult]") -> str:
    verdicts = [gate.verdict for gate in gates]
    return next((verdict for verdict in ("fail", "undecided") if verdict in verdicts), "pass")


def _gate_line(report: "AccuracyReport", gate: "GateResult") -> str:
    verdict: str = gate.verdict
    if verdict == "undecided":
        needed = f"take about {gate.images_needed:,}" if gate.images_needed else "it is at the limit"
        verdict = f"undecided at {report.images:,} images, {needed}"
    shown = {
        "max_drop": f"top-1 drop {gate.value:.2f} points ({gate.low:.2f} to {gate.high:.2f}), allowed",
        "min_agreement": f"agreement {gate.value:.2f} % ({gate.low:.2f} to {gate.high:.2f}), required",
        "finite_logits": f"{gate.value:g} images with NaN or infinite logits, allowed",
    }[gate.gate]
    return f"{verdict}: {report.model}/{report.artifact}: {shown} {gate.limit:g}"


def _print_notes(out: "Console", reports: "list[AccuracyReport]", images: "LabelledImages") -> None:
    engines = dict.fromkeys(report.runtime for report in reports)
    _line(
        out,
        f"Run by {', '.join(engines)}. Images/s are of sessions that share the cores: time with mf-bench.",
    )
    device = reports[0].device
    if device != "host":
        _line(
            out,
            f"On {device}, emulated: the results are those of the engines' kernels for it, the speed is not.",
        )
    elif any(report.kind == "emulated" for report in reports):
        _line(out, "Core ML is run by the MIL interpreter: it checks the program, not Apple's kernels.")
    for report in reports:
        if report.remark:
            _line(out, f"{report.artifact}: {report.remark}.")
    skipped = images.skipped
    if skipped:
        _line(out, f"Skipped {len(skipped)} files, the first is {skipped[0]}.")


def _print_layers(out: "Console", report: "DriftReport") -> None:
    from rich import box
    from rich.table import Table

    computed = [layer for layer in report.layers if layer.computed]
    _line(out, f"{report.model}/{report.artifact}, {report.images} images: SQNR of the layers, dB")
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for header, justify in (("block", "left"), ("layers", "right"), ("lowest", "right"), ("at", "left")):
        table.add_column(header, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    table.add_column("its output", justify="right", no_wrap=True)
    for block, group in groupby(computed, key=lambda layer: _block(layer.layer)):
        layers = list(group)
        lowest = min(layers, key=lambda layer: layer.sqnr_db)
        output = f"{layers[-1].sqnr_db:.1f}"
        table.add_row(block, str(len(layers)), f"{lowest.sqnr_db:.1f}", lowest.layer, output)
    _print_whole(out, table)
    _line(out, _drift_line(report, computed))


def _drift_line(report: "DriftReport", computed: "list[LayerDrift]") -> str:
    name = f"{report.model}/{report.artifact}"
    if report.first_drift is None:
        return f"{name}: no layer is below the {report.expected_db:g} dB expected of its scheme."
    index = next(i for i, layer in enumerate(computed) if layer.layer == report.first_drift)
    line = f"{name}: first drifts at {report.first_drift}, {computed[index].sqnr_db:.1f} dB"
    before = f" after {computed[index - 1].layer}, {computed[index - 1].sqnr_db:.1f} dB" if index else ""
    return f"{line}{before} (expected of its scheme: {report.expected_db:g} dB)."


def _block(layer: str) -> str:
    """The part of a model that a layer belongs to: features.3 of features.3.conv1.0, stem of stem.1."""
    parts = layer.partition("[")[0].split(".")
    numbered = (index for index, part in enumerate(parts) if part[0].isdigit())
    number = next(numbered, len(parts))
    inside = number < len(parts) - 1 or "[" in layer
    return ".".join(parts[: number + 1]) if inside else parts[0]


def _console(json_file: str | None) -> "Console":
    """Tables go to standard output, or beside it when that is taken by JSON."""
    from rich.console import Console

    return Console(stderr=json_file == "-", highlight=False)


def _line(out: "Console", text: str) -> None:
    out.print(text, markup=False, soft_wrap=True)


def _write_json(json_file: str | None, record: "Record") -> None:
    from mf_deploy.artifact import write_whole

    if json_file == "-":
        click.echo(record.model_dump_json(indent=2))
    elif json_file is not None:
        write_whole(Path(json_file), record.model_dump_json(indent=2).encode())


def _require_writable(json_file: str | None, artifacts: "Sequence[Artifact]") -> None:
    """Refuse what cannot be written before anything slow starts."""
    from mf_deploy.artifact import check_writable
    from mf_deploy.report.results import result_path

    for artifact in artifacts:
        check_writable(result_path(artifact.folder.parent, f"check-{artifact.name}"), force=True)
    if json_file not in (None, "-"):
        check_writable(Path(str(json_file)), force=True)


if __name__ == "__main__":
    main()
