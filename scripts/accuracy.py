"""What the exported models get right, on real images: the figures that the README quotes.

    python -m scripts.accuracy [--runs DIR] [--only mobile_former_52m]

Exports a trained Mobile-Former and EfficientNet-Lite0 to every target, quantizes both (the latter with small
images of other photographs, upscaled), and checks every artifact with mf-check. The data and the checkpoint
lie in the folder ``shared`` beside the checkout. Writes ``results/accuracy.json`` and its ``.md``; the exit
code is 1 when PyTorch does not get the published counts, or an fp32 artifact does not agree with PyTorch
on 99.9 % of the images.
"""

import platform
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import click

from mf_deploy.artifact import read_record, write_whole
from mf_deploy.cli.command import run_command
from mf_deploy.errors import GATE_FAILED, MfDeployError
from mf_deploy.evaluation.accuracy import AccuracyReport, AccuracyReports
from mf_deploy.evaluation.statistics import Proportion
from scripts.artifacts import RESULTS, ROOT, SHARED

COMMANDS = Path(sys.executable).parent
MIN_AGREEMENT = 99.9


@dataclass(frozen=True)
class Subject:
    """One model: how it is exported, what it is checked on, and the counts that PyTorch must reach."""

    name: str
    export: tuple[str, ...]
    data: Path
    top1: int
    top5: int
    give: int
    calibration: Path | None = None
    schemes: tuple[str, ...] = ()


SUBJECTS = (
    Subject(
        name="mobile_former_52m",
        export=(
            "mobile_former_52m",
            *("--checkpoint", str(SHARED / "reference" / "mobile_former_52m_tiny_imagenet.pth")),
            *("--input-size", "96", "--crop-fraction", "1", "--labels", "tiny-imagenet-200"),
        ),
        data=SHARED / "data" / "tiny-imagenet-val.tar",
        top1=2280,
        top5=3556,
        give=2,
        calibration=SHARED / "data" / "tiny-imagenet-calibration.tar",
        schemes=("w8a8", "w8"),
    ),
    Subject(
        name="efficientnet_lite0",
        export=(
            *("--model", "examples.efficientnet_lite0:create", "--input-size", "224"),
            *("--interpolation", "bicubic"),
            *("--mean", ",".join([str(127 / 255)] * 3), "--std", ",".join([str(128 / 255)] * 3)),
        ),
        data=SHARED / "data" / "imagenet-sample-1k.tar",
        top1=868,
        top5=973,
        give=0,
        calibration=SHARED / "data" / "tiny-imagenet-calibration.tar",
        schemes=("w8a8", "w8"),
    ),
)


def measure(subject: Subject, runs: Path) -> list[AccuracyReport]:
    """Export, quantize and check one model with the commands that users type."""
    run = runs / subject.name
    _run("mf-export", *subject.export, "--target", "all", "--out", str(runs), "--force")
    for scheme in subject.schemes:
        calibration = ("--calibration", str(subject.calibration), "--samples", "256")
        _run("mf-quantize", str(run), "--scheme", scheme, *calibration, "--force")
    with tempfile.TemporaryDirectory() as scratch:
        results = Path(scratch) / "check.json"
        _run("mf-check", str(run), "--data", str(subject.data), "--json", str(results))
        return read_record(results, AccuracyReports, "Measure again.").reports


def _run(command: str, *arguments: str) -> None:
    click.echo(f"$ {command} {' '.join(arguments)}")
    done = subprocess.run([str(COMMANDS / command), *arguments], cwd=ROOT, check=False)
    if done.returncode:
        raise MfDeployError(f"{command} failed", f"exit code {done.returncode}", "See its message above.")


def problems(subject: Subject, reports: list[AccuracyReport]) -> list[str]:
    """What is not as it must be, a line each."""
    found = []
    for wanted, actual in (
        (subject.top1, reports[0].reference_top1),
        (subject.top5, reports[0].reference_top5),
    ):
        if actual is None or abs(actual.count - wanted) > subject.give:
            found.append(f"{subject.name}: PyTorch gets {actual and actual.count}, not {wanted}")
    for report in reports:
        if report.scheme == "fp32" and report.agreement.percent < MIN_AGREEMENT:
            found.append(f"{subject.name}: {report.artifact} agrees on {report.agreement.percent:.2f} %")
    return found


def markdown(reports: list[AccuracyReport], failures: list[str]) -> str:
    """A table a model, with where the figures come from."""
    lines = [
        "# Accuracy on real images",
        "",
        "Top-1 and top-5 as counts and percent. Drop: top-1 of PyTorch minus that of the artifact on the "
        "same images, with its 95 % interval (Tango). Agreement: images with the same top-1 as PyTorch. "
        "Core ML runs on the MIL interpreter: it checks the program, not Apple's kernels. Quantized with 256 "
        "training images. Made by `python -m scripts.accuracy`.",
    ]
    for name in dict.fromkeys(report.model for report in reports):
        lines += ["", *_table([report for report in reports if report.model == name])]
    lines += ["", *[f"- **{failure}**" for failure in failures]] if failures else []
    return "\n".join(lines) + "\n"


def _table(reports: list[AccuracyReport]) -> list[str]:
    first = reports[0]
    runtimes = ", ".join(dict.fromkeys(report.runtime for report in reports))
    lines = [
        f"## {first.model}, {first.images:,} images of {Path(first.data).name}",
        "",
        f"{runtimes}; Python {platform.python_version()} on {platform.machine()}, {first.created[:10]}.",
        "",
        "| artifact | top-1 | top-5 | drop, points | agreement % | SQNR dB | max \\|Δlogit\\| | MB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
        f"| PyTorch fp32 | {_rate(first.reference_top1)} | {_rate(first.reference_top5)} | | | | | |",
    ]
    for report in reports:
        drop = report.drop
        change = f"{drop.points:+.2f} ({drop.low_points:+.2f} … {drop.high_points:+.2f})" if drop else ""
        lines.append(
            f"| {report.artifact} | {_rate(report.top1)} | {_rate(report.top5)} | {change} | "
            f"{report.agreement.percent:.2f} | {report.sqnr_db:.1f} | {report.max_abs_error:.2g} | "
            f"{report.model_bytes / 1e6:.2f} |"
        )
    return lines


def _rate(rate: Proportion | None) -> str:
    return f"{rate.count} ({rate.percent:.2f} %)" if rate is not None else ""


@click.command("scripts.accuracy")
@click.option(
    "--runs", type=click.Path(path_type=Path), help="Where to export.  [default: a temporary folder]"
)
@click.option("--only", type=click.Choice([subject.name for subject in SUBJECTS]), help="One of the models.")
def command(runs: Path | None, only: str | None) -> int:
    """Export, quantize and check both models; a model left out keeps its last figures."""
    if not SHARED.is_dir():
        raise MfDeployError(f"No data at {SHARED}", "no such folder", "Put images and checkpoint there.")
    json_file = RESULTS / "accuracy.json"
    known = read_record(json_file, AccuracyReports, "Remove it.").reports if json_file.exists() else []
    reports = {subject.name: [r for r in known if r.model == subject.name] for subject in SUBJECTS}
    with tempfile.TemporaryDirectory() as scratch:
        for subject in SUBJECTS:
            if only in (None, subject.name):
                reports[subject.name] = measure(subject, runs or Path(scratch))
    failures = [line for s in SUBJECTS if reports[s.name] for line in problems(s, reports[s.name])]
    rows = [_without_paths(report) for subject in SUBJECTS for report in reports[subject.name]]
    write_whole(json_file, (AccuracyReports(reports=rows).model_dump_json(indent=1) + "\n").encode())
    write_whole(json_file.with_suffix(".md"), markdown(rows, failures).encode())
    for failure in failures:
        click.echo(failure, err=True)
    return GATE_FAILED if failures else 0


def _without_paths(report: AccuracyReport) -> AccuracyReport:
    """The report as it is published: the folders of this machine say nothing to others."""
    return report.model_copy(
        update={"path": f"{report.model}/{report.artifact}", "data": Path(report.data).name}
    )


if __name__ == "__main__":
    run_command(command)
