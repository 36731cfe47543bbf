"""Every variant × target × scheme: written or refused, how close to PyTorch, and whether ARM runs it.

    python -m scripts.matrix [--models mobile_former_26m,...] [--targets onnx,...] [--workers 2] [--again]

All Mobile-Former variants and both MobileNetV3, with random weights at 64 px, calibrated on 32 seeded
pictures; and the trained models of the folder ``shared`` beside the checkout, where there is one, at their
own size, calibrated on 32 training images. Each cell is what ``mf-export`` or ``mf-quantize`` does, followed
by an inference on every emulated ARM CPU (``mf-deploy setup arm``). The model and target of a cell have a
process of their own, which may crash. Writes ``results/matrix.json`` and its ``.md`` after each; cells that
are there are kept unless they failed or ``--again`` is given. The exit code is 1 when a cell failed.
"""

import contextlib
import io
import json
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args

import click
from pydantic import Field

from mf_deploy.artifact import TARGETS, Artifact, Record, Scheme, Target, read_record, write_whole
from mf_deploy.cli.command import run_command
from mf_deploy.errors import GATE_FAILED, MfDeployError
from mf_deploy.models.registry import list_models
from scripts.artifacts import RESULTS, SHARED, save_pictures
from scripts.choices import chosen

Status = Literal["written", "refused", "failed"]

FLOAT_SCHEMES: tuple[Scheme, ...] = ("fp32", "fp16")
QUANTIZED: tuple[Scheme, ...] = ("w8", "w8a8")
SCHEMES: dict[Target, tuple[Scheme, ...]] = {
    "onnx": (*FLOAT_SCHEMES, *QUANTIZED, "w8a16"),
    "coreml": (*FLOAT_SCHEMES, *QUANTIZED),
    "tflite": (*FLOAT_SCHEMES, *QUANTIZED),
}
SIDE, SAMPLES = 64, 32
FILE = RESULTS / "matrix.json"


@dataclass(frozen=True)
class Subject:
    """One model: how ``mf-export`` gets it; ``checkpoint`` is a file of ``shared/reference``."""

    label: str
    name: str
    side: int = SIDE
    checkpoint: str | None = None

    @property
    def weights(self) -> list[str]:
        if self.checkpoint is None:
            return ["--random-weights"]
        return ["--checkpoint", str(SHARED / "reference" / self.checkpoint)]


def subjects() -> list[Subject]:
    """Every registered model with random weights, and the trained ones that are at hand."""
    found = [Subject(spec.name, spec.name) for spec in list_models()]
    for size, side in (("52m", 96), ("294m", 128), ("151m_spatial", 128)):
        file = f"mobile_former_{size}_tiny_imagenet.pth"
        if (SHARED / "reference" / file).is_file():
            found.append(Subject(f"mobile_former_{size}-trained", f"mobile_former_{size}", side, file))
    return found


class Cell(Record):
    """What became of one model in one target and scheme."""

    model: str
    target: Target
    scheme: Scheme
    status: Status
    why: str | None = Field(None, description="the line of a refusal, or the last one of a failure")
    relative_error: float | None = Field(None, description="largest |Δlogit| over the range of the logits")
    sqnr_db: float | None = None
    int8_macs_percent: float | None = None
    half_precision: bool = False
    remarks: list[str] = Field([], description="of the manifest")
    arm: dict[str, str] = Field({}, description="emulated CPU → yes, or why not")
    seconds: float = 0

    @property
    def key(self) -> tuple[str, str, str]:
        return self.model, self.target, self.scheme

    @property
    def failed(self) -> bool:
        return self.status == "failed" or any(answer != "yes" for answer in self.arm.values())


class Matrix(Record):
    """What the JSON file holds."""

    schema_version: Literal[1] = 1
    created: str = ""
    cells: list[Cell] = Field(default_factory=list)


def make_cells(subject: Subject, target: Target, schemes: list[Scheme]) -> Iterator[Cell]:
    """The cells of one model and target, made in this process."""
    from mf_deploy.export import artifact_name

    with tempfile.TemporaryDirectory(prefix="mf-matrix-") as scratch:
        out = Path(scratch)
        pictures = calibration(subject, out / "pictures")
        for scheme in schemes:
            started = time.monotonic()
            cell = Cell(model=subject.label, target=target, scheme=scheme, status="written")
            folder = out / "runs" / subject.name / artifact_name(target, scheme)
            try:
                command(subject, target, scheme, pictures, out / "runs")
                artifact = Artifact.open(folder)
                describe(cell, artifact)
                cell.arm = run_on_arm(artifact)
            except MfDeployError as error:
                cell.status, cell.why = "refused", str(error)
            except Exception:  # any other is what this script looks for
                cell.status, cell.why = "failed", traceback.format_exc().strip().splitlines()[-1][:300]
            cell.seconds = round(time.monotonic() - started, 1)
            yield cell


def command(subject: Subject, target: Target, scheme: Scheme, pictures: Path, out: Path) -> None:
    """Do what ``mf-export`` or ``mf-quantize`` does; what they print is dropped."""
    from mf_deploy.cli.export import command as export
    from mf_deploy.cli.quantize import command as quantize

    arguments = [subject.name, *subject.weights, "--target", target, "--precision", scheme]
    arguments += ["--input-size", str(subject.side), "--crop-fraction", "1", "--out", str(out)]
    if scheme not in FLOAT_SCHEMES:
        if not (out / subject.name / f"{target}-fp32").exists():
            arguments[arguments.index(scheme)] = "fp32"
            run_quietly(export, arguments)
        arguments = [str(out / subject.name), "--target", target, "--scheme", scheme]
        arguments += ["--calibration", str(pictures), "--samples", str(SAMPLES)]
    run_quietly(export if scheme in FLOAT_SCHEMES else quantize, arguments)


def run_quietly(of: click.Command, arguments: list[str]) -> None:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        of.main(arguments, standalone_mode=False)


def calibration(subject: Subject, folder: Path) -> Path:
    """Pictures to calibrate on: training images for a trained model, seeded ones for a random one."""
    if subject.checkpoint is not None:
        return SHARED / "data" / "tiny-imagenet-calibration.tar"
    save_pictures(folder, SAMPLES, subject.side)
    return folder


def describe(cell: Cell, artifact: Artifact) -> None:
    manifest = artifact.manifest
    macs = manifest.quantization.macs
    cell.relative_error, cell.sqnr_db = manifest.parity.relative_error, manifest.parity.sqnr_db
    integers = macs.get("int8", 0) + macs.get("w8a16", 0)
    cell.int8_macs_percent = 100 * integers / max(sum(macs.values()), 1)
    cell.half_precision, cell.remarks = manifest.half_precision, manifest.remarks


def run_on_arm(artifact: Artifact) -> dict[str, str]:
    """For each emulated CPU: yes where it runs the artifact and gives this machine's logits, or why not.

    Nothing for Core ML, or where the ARM system is not set up.
    """
    from mf_deploy.export.arm_proof import difference
    from mf_deploy.export.parity import seeded_pictures
    from mf_deploy.runtimes import open_session
    from mf_deploy.runtimes.arm import CPUS, DEVICE_PREFIX
    from mf_deploy.runtimes.arm.lab import find_lab
    from mf_deploy.runtimes.arm.session import ArmSession

    if artifact.manifest.target == "coreml" or find_lab() is None:
        return {}
    output = artifact.manifest.outputs[0].name
    pictures = seeded_pictures(1, artifact.manifest.preprocessing.input_size)
    expected = open_session(artifact).run(pictures)[output]
    answers = {}
    for cpu in CPUS:
        answers[cpu] = "yes"
        if DEVICE_PREFIX + cpu in artifact.manifest.ran_on:
            continue
        try:
            with closing(ArmSession(artifact, cpu)) as session:
                actual = session.run(pictures)[output]
            manifest = artifact.manifest
            answers[cpu] = difference(expected, actual, manifest.parity, manifest.half_precision) or "yes"
        except MfDeployError as error:
            answers[cpu] = error.why
    return answers


def page(matrix: Matrix) -> str:
    """The matrix as Markdown: a table a target, and every line that a cell has to say."""
    failed = [cell for cell in matrix.cells if cell.failed]
    refused = [cell for cell in matrix.cells if cell.status == "refused"]
    lines = [
        "# Every variant, target and scheme",
        "",
        f"Made by `python -m scripts.matrix`, {matrix.created}: {len(matrix.cells)} cells, "
        f"{len(failed)} failed, {len(refused)} refused.",
        "",
        f"Random weights (those of `mf-export --random-weights`) at {SIDE} px, {SAMPLES} calibration "
        "pictures; trained weights at the size that they were trained at. A cell: SQNR against PyTorch in "
        "dB, share of the multiply-adds in int8 (w8a16: in 16 bits) where there are any, seconds. ½: the "
        "file leaves what is float to half precision. ARM: run on an emulated cortex-a72, cortex-a76 and "
        "max, where Core ML has no engine.",
    ]
    for target in TARGETS:
        schemes = SCHEMES[target]
        head = [*schemes, *([] if target == "coreml" else ["ARM"])]
        lines += ["", f"## {target}", "", f"| model | {' | '.join(head)} |", "|---" * (len(head) + 1) + "|"]
        for model in dict.fromkeys(cell.model for cell in matrix.cells if cell.target == target):
            row = {cell.scheme: cell for cell in matrix.cells if (cell.model, cell.target) == (model, target)}
            shown = [_shown(row.get(scheme)) for scheme in schemes]
            if target != "coreml":
                answers = [answer for cell in row.values() for answer in cell.arm.values()]
                counted = f"{answers.count('yes')} of {len(answers)}"
                shown.append(counted if answers else "not run: mf-deploy setup arm prepares it")
            lines.append(f"| {model} | {' | '.join(shown)} |")
    said = [
        f"- {cell.model}, {cell.target} {cell.scheme}: {line}"
        for cell in matrix.cells
        for line in (*cell.remarks, *([f"{cell.status}: {cell.why}"] if cell.why else []), *_arm_lines(cell))
    ]
    return "\n".join([*lines, *(["", "## Remarks", "", *said] if said else [])]) + "\n"


def _arm_lines(cell: Cell) -> list[str]:
    return [f"{cpu}: {answer}" for cpu, answer in cell.arm.items() if answer != "yes"]


def _shown(cell: Cell | None) -> str:
    if cell is None:
        return "not run: left out"
    if cell.status != "written" or cell.sqnr_db is None:
        return cell.status
    share = f", {cell.int8_macs_percent:.0f} %" if cell.int8_macs_percent else ""
    return f"{cell.sqnr_db:.1f} dB{share}{' ½' if cell.half_precision else ''}, {cell.seconds:.0f} s"


def in_a_process(subject: Subject, target: Target, schemes: list[Scheme]) -> list[Cell]:
    """``make_cells`` in a fresh process; what it had no time for when it died failed."""
    arguments = ["--cells", subject.label, target, ",".join(schemes)]
    done = subprocess.run(
        [sys.executable, "-m", "scripts.matrix", *arguments], capture_output=True, text=True, check=False
    )
    cells = [Cell.model_validate_json(line) for line in done.stdout.splitlines() if line.startswith("{")]
    for scheme in schemes[len(cells) :]:
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        why = f"the process ended with {done.returncode}: {last[:200]}"
        cells.append(Cell(model=subject.label, target=target, scheme=scheme, status="failed", why=why))
    return cells


@click.command("scripts.matrix")
@click.option("--models", help="Labels, comma-separated. Default: all.")
@click.option("--targets", default=",".join(TARGETS), show_default=True)
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes at a time.")
@click.option("--again", is_flag=True, help="Also make cells that are there.")
@click.option("--cells", nargs=3, hidden=True, help="Make the cells of one model and target here, as JSON.")
def main(
    models: str | None, targets: str, workers: int, again: bool, cells: tuple[str, str, str] | None
) -> int:
    """Fill results/matrix.json and results/matrix.md."""
    known = {subject.label: subject for subject in subjects()}
    if cells is not None:
        target = next(each for each in TARGETS if each == cells[1])
        wanted = [each for each in get_args(Scheme) if each in cells[2].split(",")]
        for cell in make_cells(known[cells[0]], target, wanted):
            click.echo(json.dumps(cell.model_dump(mode="json")))
        return 0
    matrix = read_record(FILE, Matrix, "Remove it.") if FILE.exists() else Matrix()
    done = {cell.key: cell for cell in matrix.cells}
    labels = chosen(models, tuple(known))
    jobs: list[tuple[Subject, Target, list[Scheme]]] = []
    for label in labels:
        for target in (each for each in TARGETS if each in chosen(targets, TARGETS)):
            missing = [
                scheme
                for scheme in SCHEMES[target]
                if again or (label, target, scheme) not in done or done[label, target, scheme].failed
            ]
            if missing:
                jobs.append((known[label], target, missing))
    order = [(label, target, scheme) for label in known for target in TARGETS for scheme in SCHEMES[target]]
    lock = threading.Lock()

    def work(job: tuple[Subject, Target, list[Scheme]]) -> None:
        made = in_a_process(*job)
        with lock:
            done.update({cell.key: cell for cell in made})
            matrix.created = datetime.now(UTC).isoformat(timespec="seconds")
            matrix.cells = [done[key] for key in order if key in done]
            write_whole(FILE, (matrix.model_dump_json(indent=1) + "\n").encode())
            write_whole(FILE.with_suffix(".md"), page(matrix).encode())
        for cell in made:
            click.echo(f"{cell.model} {cell.target} {cell.scheme}: {_shown(cell)} {cell.why or ''}", err=True)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(work, jobs))
    failed = [cell for cell in matrix.cells if cell.failed]
    click.echo(f"{len(matrix.cells)} cells, {len(failed)} failed", err=True)
    return GATE_FAILED if failed else 0


if __name__ == "__main__":
    run_command(main)
