"""Every Mobile-Former on every target: does the exported file compute what the paper's model computes?

    python -m scripts.parity [--resume] [--models mobile_former_26m,...] [--targets onnx] [--graphs deploy]
    python -m scripts.parity --arm [--resume] [--models ...] [--targets ...] [--graphs ...]

Exports each variant with seeded random weights in fp32 at 224 px, as the reference graph and as the deploy
graph, runs the file on seeded pictures and compares it with the PyTorch model in float64. Writes
``results/parity.json`` and its ``.md``; the exit code is 1 when a row misses its bound. ``--arm`` runs
the files of ONNX Runtime and LiteRT on the emulated ARM CPUs (``mf-deploy setup arm``), whose kernels are
others; without more options the deploy graphs of the 26M and the 294M. ``--resume`` keeps the rows that were
measured with the same sources.
"""

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import click
import numpy as np
import torch
from torch import nn

from mf_deploy.artifact import TARGETS, Artifact, Record, Target, read_record, write_whole
from mf_deploy.cli.command import run_command
from mf_deploy.errors import GATE_FAILED, MfDeployError
from mf_deploy.export.parity import reference_logits, seeded_pictures
from mf_deploy.runtimes import open_session
from mf_deploy.runtimes.arm import CPUS, DEVICE_PREFIX
from mf_deploy.runtimes.arm.lab import open_lab
from scripts.artifacts import GRAPHS, MODELS, RESULTS, Graph, exported, random_model, sources_digest
from scripts.choices import chosen

HOST = "host"
BOUNDS: dict[Target, float] = {"onnx": 1e-4, "tflite": 1e-4, "coreml": 1e-3}
ENGINES: dict[Target, str] = {"onnx": "ONNX Runtime", "tflite": "LiteRT", "coreml": "MIL interpreter"}
ARM_MODELS = tuple(f"mobile_former_{size}m" for size in (26, 294))
ARM_TARGETS: tuple[Target, ...] = ("onnx", "tflite")
SAMPLES = 4


class Row(Record):
    """One file on one device. ``relative_error``: max |Δlogit| over the range of the float64 logits."""

    model: str
    target: Target
    graph: Graph
    device: str = HOST
    sources: str = ""
    relative_error: float | None = None
    samples: int = 0
    agreement: float | None = None
    operators: int | None = None
    bytes: int | None = None
    seconds: float | None = None
    error: str | None = None

    @property
    def passed(self) -> bool:
        return self.relative_error is not None and self.relative_error <= BOUNDS[self.target]


class Table(Record):
    """What ``results/parity.json`` holds."""

    schema_version: Literal[1] = 1
    created: str
    torch: str
    rows: list[Row]


def measure(name: str, model: nn.Module, target: Target, graph: Graph, device: str) -> Row:
    """Run one file on ``device`` and compare it with ``model`` in float64; or the error."""
    row = Row(model=name, target=target, graph=graph, device=device, sources=sources_digest(graph))
    start = time.perf_counter()
    try:
        artifact = exported(name, model, target, graph)
        preprocessing = artifact.manifest.preprocessing
        pictures = seeded_pictures(SAMPLES, preprocessing.input_size)
        expected, _ = reference_logits(model, preprocessing.normalize(pictures))
        logits = open_session(artifact, device).run(pictures)[artifact.manifest.outputs[0].name]
    except MfDeployError as error:
        return row.model_copy(update={"error": str(error)})
    actual = logits.astype(np.float64)
    return row.model_copy(
        update={
            "relative_error": float(np.abs(expected - actual).max() / np.ptp(expected)),
            "samples": SAMPLES,
            "agreement": float((expected.argmax(1) == actual.argmax(1)).mean()),
            "operators": count_operators(artifact),
            "bytes": artifact.size_bytes,
            "seconds": round(time.perf_counter() - start, 1),
        }
    )


def count_operators(artifact: Artifact) -> int:
    """Operators that the engine is given, constants left out."""
    if artifact.manifest.target == "onnx":
        import onnx

        nodes = onnx.load(str(artifact.model_path), load_external_data=False).graph.node
        return sum(node.op_type != "Constant" for node in nodes)
    if artifact.manifest.target == "tflite":
        from mf_deploy.export.tflite_file import read_operators

        return len(read_operators(artifact.model_path))
    from mf_deploy.mil import load_package

    return sum(operation.op_type != "const" for operation in load_package(artifact.model_path).operations)


def markdown(table: Table) -> str:
    """The table as a page: a line a variant and graph, three columns a target."""
    lines = [
        "# Parity of every variant on every target",
        "",
        f"fp32, 224 px, seeded random weights, torch {table.torch}, {table.created}. Error: max |Δlogit| "
        "over the range of the logits, against the PyTorch model in float64, on 4 seeded pictures. Bounds: "
        + ", ".join(f"{BOUNDS[target]:.0e} on {ENGINES[target]}" for target in TARGETS)
        + ". Made by `python -m scripts.parity`.",
        "",
        "| model | graph | " + " | ".join(f"{ENGINES[t]} error | operators | MB" for t in TARGETS) + " |",
        "|---|---|" + "---:|" * 3 * len(TARGETS),
    ]
    rows = {(row.model, row.graph, row.target): row for row in table.rows if row.device == HOST}
    for name in MODELS:
        for graph in GRAPHS:
            cells = [_cell(rows.get((name, graph, target))) for target in TARGETS]
            if any(rows.get((name, graph, target)) for target in TARGETS):
                lines.append(f"| {name} | {graph} | {' | '.join(cells)} |")
    lines += _arm_table([row for row in table.rows if row.device != HOST])
    failed = [row for row in table.rows if not row.passed]
    lines += ["", f"{len(table.rows) - len(failed)} of {len(table.rows)} rows keep their bound."]
    lines += [f"- {r.model} {r.graph} {r.target} {r.device}: {r.error or 'beyond its bound'}" for r in failed]
    return "\n".join(lines) + "\n"


def _arm_table(rows: list[Row]) -> list[str]:
    """A line a file, a column an emulated CPU."""
    if not rows:
        return []
    cells = {
        (r.model, r.graph, r.target, r.device): "failed"
        if r.relative_error is None
        else f"{r.relative_error:.1e}" + ("" if r.passed else " **!**")
        for r in rows
    }
    lines = [
        "",
        "## On emulated ARM CPUs",
        "",
        "The same error, of the engines' ARM builds (`python -m scripts.parity --arm`).",
        "",
        "| model | graph | engine | " + " | ".join(CPUS) + " |",
        "|---|---|---|" + "---:|" * len(CPUS),
    ]
    for name, graph, target in dict.fromkeys((row.model, row.graph, row.target) for row in rows):
        errors = (cells.get((name, graph, target, DEVICE_PREFIX + cpu), "") for cpu in CPUS)
        lines.append(f"| {name} | {graph} | {ENGINES[target]} | {' | '.join(errors)} |")
    return lines


def _cell(row: Row | None) -> str:
    if row is None:
        return "| |"
    if row.relative_error is None or row.bytes is None:
        return "failed | |"
    mark = "" if row.passed else " **!**"
    return f"{row.relative_error:.1e}{mark} | {row.operators} | {row.bytes / 1e6:.2f}"


def _load(path: Path) -> list[Row]:
    return read_record(path, Table, "Remove it and measure again.").rows if path.exists() else []


@click.command("scripts.parity")
@click.option("--models", help="Comma-separated.")
@click.option("--targets", help="Comma-separated.")
@click.option("--graphs", help="Comma-separated.")
@click.option("--arm", is_flag=True, help="On the emulated ARM CPUs, not on this machine.")
@click.option("--resume", is_flag=True, help="Keep rows measured with the same sources.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), default=RESULTS / "parity.json")
def command(
    models: str | None, targets: str | None, graphs: str | None, arm: bool, resume: bool, json_file: Path
) -> int:
    """Measure the parity of all variants, targets and graphs; rows left out keep their last figures."""
    torch.set_num_threads(1)
    devices = [HOST]
    if arm:
        open_lab()
        devices = [DEVICE_PREFIX + cpu for cpu in CPUS]
    rows = {(row.model, row.target, row.graph, row.device): row for row in _load(json_file)}
    for name in chosen(models, MODELS) if models or not arm else ARM_MODELS:
        model = random_model(name)
        for target in chosen(targets, ARM_TARGETS if arm else TARGETS):
            for graph in chosen(graphs, GRAPHS) if graphs or not arm else GRAPHS[1:]:
                for device in devices:
                    old = rows.get((name, target, graph, device))
                    if resume and old is not None and old.passed and old.sources == sources_digest(graph):
                        continue
                    row = rows[name, target, graph, device] = measure(name, model, target, graph, device)
                    _write(json_file, list(rows.values()))
                    shown = (
                        row.error or f"{row.relative_error:.1e}, {row.operators} operators, {row.seconds} s"
                    )
                    click.echo(f"{name} {target} {graph} {device}: {shown}")
    return 0 if all(row.passed for row in rows.values()) else GATE_FAILED


def _write(json_file: Path, rows: list[Row]) -> None:
    order = {name: index for index, name in enumerate(MODELS)}
    rows = sorted(rows, key=lambda row: (order[row.model], row.target, row.graph, row.device))
    created = datetime.now(UTC).date().isoformat()
    table = Table(created=created, torch=torch.__version__, rows=rows)
    write_whole(json_file, (table.model_dump_json(indent=1) + "\n").encode())
    write_whole(json_file.with_suffix(".md"), markdown(table).encode())


if __name__ == "__main__":
    run_command(command)
