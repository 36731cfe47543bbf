"""Time on this host of the authors' graph over the deploy graph's, measured in turns.

    python -m scripts.latency [--models mobile_former_26m,...] [--targets onnx]

Exports with seeded random weights (fp32, 224 px) or takes what an earlier script exported, runs both
graphs with one thread in blocks that take turns, and writes ``results/latency.json`` and its ``.md``.
Models left out keep their last figures. Only ratios: they need a quiet machine, no certain one.
"""

import platform
from datetime import UTC, datetime
from typing import Literal

import click

from mf_deploy.artifact import Artifact, Record, Target, read_record, write_whole
from mf_deploy.benchmarks.measure import sample_in_turns, seeded_input, warm_up
from mf_deploy.benchmarks.protocol import Protocol
from mf_deploy.benchmarks.ratio import ratio_of_medians
from mf_deploy.cli.command import run_command
from mf_deploy.runtimes import open_session
from scripts.artifacts import MODELS, RESULTS, exported, random_model
from scripts.choices import chosen

ENGINES: dict[Target, str] = {"tflite": "LiteRT", "onnx": "ONNX Runtime"}
PROTOCOL = Protocol(min_runs=200, min_seconds=3)


class Row(Record):
    """``speedup``: time of the reference graph over the deploy graph's, with its 95 % interval."""

    model: str
    target: Target
    speedup: tuple[float, float, float]
    machine: str
    created: str


class Table(Record):
    """What ``results/latency.json`` holds."""

    schema_version: Literal[1] = 1
    rows: list[Row]


def host_speedup(reference: Artifact, deploy: Artifact) -> tuple[float, float, float]:
    """Time of the reference graph over the deploy graph's on this machine, in turns, one thread."""
    pair = (open_session(reference, as_written=True), open_session(deploy, as_written=True))
    inputs = (seeded_input(pair[0], PROTOCOL.seed), seeded_input(pair[1], PROTOCOL.seed))
    for session, prepared in zip(pair, inputs, strict=True):
        warm_up(session, prepared, PROTOCOL)
    return ratio_of_medians(*sample_in_turns(pair, inputs, PROTOCOL, lambda fraction: None))


def processor() -> str:
    """The processor's name and kind."""
    try:
        with open("/proc/cpuinfo") as lines:
            name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor()
    return f"{name} ({platform.machine()})"


def page(rows: list[Row]) -> str:
    """A line a model, a column an engine."""
    lines = [
        "# Host latency: the authors' graph against the deploy graph",
        "",
        "How many times faster the deploy graph is: ratio of medians, both graphs in turns, with its 95 %",
        "interval (bootstrap over pairs of blocks). fp32, 224 × 224, 1 thread, seeded random weights.",
        "Made by `python -m scripts.latency`.",
        "",
        "| model | " + " | ".join(ENGINES.values()) + " | measured on |",
        "|---|" + "---:|" * len(ENGINES) + "---|",
    ]
    found = {(row.model, row.target): row for row in rows}
    for name in dict.fromkeys(row.model for row in rows):
        mine = [found.get((name, target)) for target in ENGINES]
        cells = [f"{r.speedup[0]:.2f} ({r.speedup[1]:.2f}…{r.speedup[2]:.2f})" if r else "" for r in mine]
        where = ", ".join(dict.fromkeys(f"{row.machine}, {row.created}" for row in mine if row))
        lines.append(f"| {name} | {' | '.join(cells)} | {where} |")
    return "\n".join(lines) + "\n"


@click.command("scripts.latency")
@click.option("--models", help="Comma-separated.  [default: all seven]")
@click.option("--targets", help="Comma-separated: tflite, onnx.  [default: both]")
def command(models: str | None, targets: str | None) -> None:
    """Time reference and deploy graphs in turns."""
    path = RESULTS / "latency.json"
    known = read_record(path, Table, "Remove it and measure again.").rows if path.exists() else []
    rows = {(row.model, row.target): row for row in known}
    for name in chosen(models, MODELS):
        model = random_model(name)
        for target in chosen(targets, tuple(ENGINES)):
            pair = (exported(name, model, target, "reference"), exported(name, model, target, "deploy"))
            created = datetime.now(UTC).date().isoformat()
            row = Row(
                model=name, target=target, speedup=host_speedup(*pair), machine=processor(), created=created
            )
            rows[name, target] = row
            click.echo(f"{name} {ENGINES[target]}: {row.speedup[0]:.2f} times faster", err=True)
            table = Table(rows=sorted(rows.values(), key=lambda row: (MODELS.index(row.model), row.target)))
            write_whole(path, (table.model_dump_json(indent=1) + "\n").encode())
            write_whole(path.with_suffix(".md"), page(table.rows).encode())
    click.echo(path.with_suffix(".md").read_text())


if __name__ == "__main__":
    run_command(command)
