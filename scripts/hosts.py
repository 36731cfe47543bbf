"""int8 on every processor: accuracy where kernels differ, and what each form of the weights costs.

    python -m scripts.hosts [--part accuracy|instructions|time|all] [--limit 1000]

``accuracy``: trained models of the folder ``shared`` beside the checkout, calibrated on its training images,
judged on validation images by this machine, by emulated x86 processors without VNNI and by an emulated ARM
one. ``instructions``: ONNX w8a8 with random weights at 224 px, both forms of the weights, on every emulated
ARM CPU. ``time``: the same files against our fp32 on this machine, in turns. Writes ``results/hosts.json``
and its ``.md``; a part left out keeps its figures.
"""

import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args

import click
from pydantic import Field

from mf_deploy.artifact import Artifact, Record, Target, read_record, write_whole
from mf_deploy.cli.command import run_command
from mf_deploy.cli.export import command as export_command
from mf_deploy.cli.quantize import command as quantize_command
from mf_deploy.data import LabelledImages, open_images
from mf_deploy.errors import MfDeployError
from mf_deploy.evaluation.accuracy import check_all
from mf_deploy.evaluation.comparison import Subject
from mf_deploy.runtimes import Session, open_reference, open_session
from mf_deploy.runtimes.arm import CPUS
from mf_deploy.runtimes.arm.counting import Counter
from mf_deploy.runtimes.arm.lab import open_lab
from mf_deploy.runtimes.onnx_saturation import WeightType
from mf_deploy.runtimes.remembered import RememberedSession
from scripts.artifacts import RESULTS, SHARED, save_pictures
from scripts.latency import host_speedup, processor

DEVICES = ("host", "x86:haswell", "x86:nehalem", "arm:cortex-a76")
JUDGED: tuple[tuple[str, int, Target, WeightType], ...] = (
    ("mobile_former_52m", 96, "onnx", "uint8"),
    ("mobile_former_52m", 96, "onnx", "int8"),
    ("mobile_former_151m_spatial", 128, "tflite", "uint8"),
)
SAMPLES = 1000
"""The undertrained 151M has a few images whose activations leave the ranges that 256 others set."""
COUNTED = ("mobile_former_26m", "mobile_former_294m")
FILE = RESULTS / "hosts.json"


class AccuracyRow(Record):
    """One file on one processor; points and percent with their 95 % intervals."""

    model: str
    artifact: str
    device: str
    images: int
    drop: tuple[float, float, float]
    agreement: tuple[float, float, float]
    sqnr_db: float


class CostRow(Record):
    """One variant in one form of the weights: million instructions by CPU, and host time against fp32."""

    model: str
    weight_type: WeightType
    instructions: dict[str, int] = Field(default_factory=dict)
    host_speedup: tuple[float, float, float] | None = None
    machine: str = ""


class Tables(Record):
    """What the JSON file holds."""

    schema_version: Literal[1] = 1
    created: str = ""
    accuracy: list[AccuracyRow] = Field(default_factory=list)
    costs: list[CostRow] = Field(default_factory=list)


def export(name: str, side: int, target: Target, out: Path, trained: bool) -> Path:
    """The fp32 artifact's model folder, as ``mf-export`` makes it."""
    arguments = [name, "--target", target, "--out", str(out)]
    arguments += ["--input-size", str(side), "--crop-fraction", "1"]
    if trained:
        checkpoint = SHARED / "reference" / f"{name}_tiny_imagenet.pth"
        arguments += ["--checkpoint", str(checkpoint), "--labels", "tiny-imagenet-200"]
    else:
        arguments.append("--random-weights")
    export_command.main(arguments, standalone_mode=False)
    return out / name


def quantize(run: Path, target: Target, weights: WeightType, calibration: Path, samples: int) -> Artifact:
    """What ``mf-quantize`` makes of the run, set apart by its weight type."""
    arguments = [str(run), "--target", target, "--calibration", str(calibration), "--samples", str(samples)]
    if target == "onnx":
        arguments += ["--weight-type", weights]
    quantize_command.main(arguments, standalone_mode=False)
    folder = run / f"{target}-w8a8"
    return Artifact.open(folder.rename(run / f"{target}-w8a8-{weights}" if target == "onnx" else folder))


def judge(limit: int, out: Path) -> Iterator[AccuracyRow]:
    """Every file of ``JUDGED`` on every processor."""
    data = SHARED / "data"
    references: dict[Path, Session] = {}
    for name, side, target, weights in JUDGED:
        run = out / name if (out / name).exists() else export(name, side, target, out, trained=True)
        artifact = quantize(run, target, weights, data / "tiny-imagenet-calibration.tar", SAMPLES)
        images = open_images(data / "tiny-imagenet-val.tar", limit)
        reference = references.setdefault(run, RememberedSession(open_reference(run, 8)))
        for device in DEVICES:
            yield accuracy(artifact, device, reference, images)


def accuracy(artifact: Artifact, device: str, reference: Session, images: LabelledImages) -> AccuracyRow:
    """The artifact as it is written, also where its host session would run a twin."""
    session = open_session(artifact, device, as_written=True)
    report = check_all([Subject(artifact, session, reference)], images)[0]
    drop, agreement = report.drop, report.agreement
    assert drop is not None  # the images have labels
    return AccuracyRow(
        model=report.model,
        artifact=artifact.name,
        device=device,
        images=report.images,
        drop=(drop.points, drop.low_points, drop.high_points),
        agreement=(agreement.percent, agreement.low_percent, agreement.high_percent),
        sqnr_db=report.sqnr_db,
    )


def costs(part: str, known: dict[tuple[str, str], CostRow], out: Path) -> Iterator[CostRow]:
    """Both forms of the weights of every counted variant."""
    pictures = out / "pictures"
    save_pictures(pictures, 8, 224)
    for name in COUNTED:
        run = export(name, 224, "onnx", out, trained=False)
        for weights in get_args(WeightType):
            artifact = quantize(run, "onnx", weights, pictures, 8)
            row = known.get((name, weights)) or CostRow(model=name, weight_type=weights)
            if part in ("instructions", "all"):
                row.instructions = {}
                for cpu in CPUS:
                    with Counter(open_lab(), cpu) as counter:
                        row.instructions[cpu] = counter.instructions(artifact.model_path)
            if part in ("time", "all"):
                row.host_speedup = host_speedup(Artifact.open(run / "onnx-fp32"), artifact)
                row.machine = processor()
            yield row


def page(tables: Tables) -> str:
    lines = [
        "# int8 on every processor",
        "",
        f"Made by `python -m scripts.hosts`, {tables.created}. Emulated processors give results, no times.",
        "",
        "## Accuracy",
        "",
        f"Trained models, calibrated on {SAMPLES} training images, against PyTorch on validation images: "
        "drop of top-1 and agreement with their 95 % intervals. `x86:haswell` has AVX2 and no VNNI, "
        "`x86:nehalem` has neither. A file with int8 weights is run here as it is written; mf-check runs the "
        "same numbers as uint8 where they would saturate.",
        "",
        "| model | file | processor | images | drop, points | agreement % | SQNR dB |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    for row in tables.accuracy:
        drop = f"{row.drop[0]:+.2f} ({row.drop[1]:+.2f} … {row.drop[2]:+.2f})"
        agreement = f"{row.agreement[0]:.1f} ({row.agreement[1]:.1f} … {row.agreement[2]:.1f})"
        lines.append(
            f"| {row.model} | {row.artifact} | {row.device} | {row.images} | {drop} | {agreement} | "
            f"{row.sqnr_db:.1f} |"
        )
    lines += [
        "",
        "## What each form of the weights costs",
        "",
        "ONNX w8a8, 224 px, random weights. Million ARM instructions of one inference, emulated, one thread; "
        "and how many times faster than our fp32 it is on an x86 host, in turns (95 %).",
        "",
        f"| model | weights | {' | '.join(CPUS)} | times faster than fp32 | on |",
        f"|---|---|{'---:|' * len(CPUS)}---:|---|",
    ]
    for row in tables.costs:
        counts = [f"{row.instructions[cpu] / 1e6:.2f}" if cpu in row.instructions else "" for cpu in CPUS]
        speed = row.host_speedup
        shown = f"{speed[0]:.2f} ({speed[1]:.2f} … {speed[2]:.2f})" if speed else ""
        lines.append(f"| {row.model} | {row.weight_type} | {' | '.join(counts)} | {shown} | {row.machine} |")
    return "\n".join(lines) + "\n"


def save(tables: Tables) -> None:
    tables.created = datetime.now(UTC).isoformat(timespec="seconds")
    write_whole(FILE, (tables.model_dump_json(indent=1) + "\n").encode())
    write_whole(FILE.with_suffix(".md"), page(tables).encode())


@click.command("scripts.hosts")
@click.option("--part", type=click.Choice(["accuracy", "instructions", "time", "all"]), default="all")
@click.option("--limit", type=click.IntRange(1), default=1000, show_default=True, help="Images to judge on.")
def main(part: str, limit: int) -> None:
    """Fill results/hosts.json and results/hosts.md."""
    tables = read_record(FILE, Tables, "Remove it.") if FILE.exists() else Tables()
    with tempfile.TemporaryDirectory(prefix="mf-hosts-") as scratch:
        if part in ("accuracy", "all"):
            if not SHARED.is_dir():
                raise MfDeployError(f"No data at {SHARED}", "no such folder", "Put images and models there.")
            (Path(scratch) / "trained").mkdir()
            tables.accuracy = []
            for row in judge(limit, Path(scratch) / "trained"):
                tables.accuracy.append(row)
                save(tables)
        if part != "accuracy":
            (Path(scratch) / "random").mkdir()
            known = {(row.model, row.weight_type): row for row in tables.costs}
            for cost in costs(part, known, Path(scratch) / "random"):
                known[cost.model, cost.weight_type] = cost
                tables.costs = list(known.values())
                save(tables)
    click.echo(FILE.with_suffix(".md").read_text())


if __name__ == "__main__":
    run_command(main)
