"""What the deploy graph gains over the authors' graph as it is, in ARM instructions.

    python -m scripts.instructions [--models mobile_former_26m,...] [--targets onnx] [--ablation]

Exports with seeded random weights (fp32, 224 px), counts on the emulated CPU (``mf-deploy setup arm``) with
one thread, and writes ``results/instructions.json`` and its ``.md``. ``--ablation`` instead adds one rewrite
after the other and writes ``results/ablation.json`` and its ``.md``. Models left out keep their last figures.
"""

import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import click
from torch import nn

from mf_deploy.artifact import Artifact, Record, Target, read_record, write_whole
from mf_deploy.benchmarks.devices.arm import Arm
from mf_deploy.benchmarks.instructions import InstructionReport
from mf_deploy.cli.command import run_command
from mf_deploy.export import Probe, export
from mf_deploy.export.lower import REWRITES, lower, reference_graph
from mf_deploy.export.lower.graph import DeployGraph
from scripts.artifacts import GRAPHS, MODELS, RESULTS, exported, random_model, record_of
from scripts.choices import chosen

ABLATED = tuple(f"mobile_former_{size}m" for size in (26, 294))
ENGINES: dict[Target, str] = {"tflite": "LiteRT", "onnx": "ONNX Runtime"}


class Row(Record):
    """One counted file: ``graph`` is reference, deploy, or the last rewrite of an ablation."""

    model: str
    target: Target
    graph: str
    report: InstructionReport

    @property
    def millions(self) -> float:
        return self.report.instructions.total / 1e6 if self.report.instructions else float("nan")


class Table(Record):
    """What the JSON files hold."""

    schema_version: Literal[1] = 1
    created: str
    rows: list[Row]


def write(built: DeployGraph, model: nn.Module, target: Target, folder: Path) -> Artifact:
    probe = Probe.seeded(model, built.record.preprocessing.input_size)
    return export(built, target, "fp32", folder, probe)


def count(artifact: Artifact, label: str, device: Arm) -> Row:
    """The instructions of one inference."""
    manifest = artifact.manifest
    report = device.count(artifact)
    row = Row(model=manifest.model.name, target=manifest.target, graph=label, report=report)
    click.echo(f"{row.model} {ENGINES[row.target]} {label}: {row.millions:.2f} M", err=True)
    return row


def compare(name: str, target: Target, device: Arm) -> list[Row]:
    """The reference graph and the deploy graph of one model."""
    model = random_model(name)
    return [count(exported(name, model, target, graph), graph, device) for graph in GRAPHS]


def ablate(name: str, target: Target, device: Arm) -> list[Row]:
    """One model with one rewrite more from row to row."""
    model, record = random_model(name), record_of(name)
    steps = [("as it is", reference_graph(model, record))]
    for end, rewrite in enumerate(REWRITES[target], 1):
        built = lower(model, record, target, rewrites=REWRITES[target][:end])
        if built.rewrites and built.rewrites[-1] == rewrite.name:
            steps.append((f"+ {rewrite.name}", built))
    rows = []
    for label, built in steps:
        with tempfile.TemporaryDirectory() as scratch:
            artifact = write(built, model, target, Path(scratch) / "step")
            rows.append(count(artifact, label, device))
    return rows


def page(table: Table, device: str) -> str:
    """Reference against deploy: a line a model and engine."""
    lines = [
        "# ARM instructions of one inference",
        "",
        f"fp32, 224 × 224, 1 thread, emulated {device}: instruction counts, no latency. Made by",
        f"`python -m scripts.instructions`, {table.created}.",
        "",
        "| model | engine | reference graph | deploy graph | ratio | a MAC |",
        "|---|---|---:|---:|---:|---:|",
    ]
    found = {(row.model, row.target, row.graph): row for row in table.rows}
    for row in table.rows:
        if row.graph == "deploy":
            before = found[row.model, row.target, "reference"].millions
            lines.append(
                f"| {row.model} | {ENGINES[row.target]} | {before:.1f} M | {row.millions:.1f} M "
                f"| {row.millions / before:.2f} | {row.report.per_mac or 0:.2f} |"
            )
    return "\n".join(lines) + "\n"


def ablation_page(table: Table, device: str) -> str:
    """A line a rewrite; each includes the ones above it."""
    lines = [
        "# What each rewrite gains",
        "",
        f"Million instructions of one inference, fp32, 224 × 224, 1 thread, emulated {device}; every line",
        "includes the rewrites above it. Made by `python -m scripts.instructions --ablation`, "
        f"{table.created}.",
    ]
    for target, engine in ENGINES.items():
        rows = [row for row in table.rows if row.target == target]
        if not rows:
            continue
        models = list(dict.fromkeys(row.model for row in rows))
        places = {f"+ {rewrite.name}": place for place, rewrite in enumerate(REWRITES[target])}
        steps = sorted({row.graph for row in rows}, key=lambda step: places.get(step, -1))
        lines += ["", f"## {engine}", "", "| | " + " | ".join(models) + " |", "|---|" + "---:|" * len(models)]
        found = {(row.model, row.graph): f"{row.millions:.2f}" for row in rows}
        lines += [
            f"| {step} | " + " | ".join(found.get((model, step), "nothing to do") for model in models) + " |"
            for step in steps
        ]
    return "\n".join(lines) + "\n"


@click.command("scripts.instructions")
@click.option("--models", help="Comma-separated.  [default: all seven; the 26M and the 294M for --ablation]")
@click.option("--targets", help="Comma-separated: tflite, onnx.  [default: both]")
@click.option("--cpu", default="cortex-a76", show_default=True, help="cortex-a72, cortex-a76 or max.")
@click.option("--ablation", is_flag=True, help="Add one rewrite after the other.")
def command(models: str | None, targets: str | None, cpu: str, ablation: bool) -> None:
    """Count the ARM instructions of reference and deploy graphs."""
    device = Arm(f"arm:{cpu}")
    work = ablate if ablation else compare
    path = RESULTS / f"{'ablation' if ablation else 'instructions'}.json"
    rows = read_record(path, Table, "Remove it and count again.").rows if path.exists() else []
    for name in chosen(models, MODELS) if models or not ablation else ABLATED:
        for target in chosen(targets, tuple(ENGINES)):
            others = [row for row in rows if (row.model, row.target) != (name, target)]
            rows = sorted(others + work(name, target, device), key=order)
            table = Table(created=datetime.now(UTC).date().isoformat(), rows=rows)
            write_whole(path, (table.model_dump_json(indent=1, exclude_none=True) + "\n").encode())
            write_whole(path.with_suffix(".md"), (ablation_page if ablation else page)(table, cpu).encode())
    click.echo(path.with_suffix(".md").read_text())


def order(row: Row) -> tuple[int, int]:
    """By model, then by engine; rows of one file keep theirs."""
    return MODELS.index(row.model), list(ENGINES).index(row.target)


if __name__ == "__main__":
    run_command(command)
