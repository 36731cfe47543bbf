"""Every Mobile-Former on every target: does the exported file compute what the paper's model computes?

    python -m perf.parity [--resume] [--models mobile_former_26m,...] [--targets onnx] [--graphs deploy]

Exports each variant with seeded random weights in fp32 at 224 px, as the reference graph and as the deploy
graph, runs the file on seeded pictures and compares it with the PyTorch model in float64. Writes
``perf/parity.json`` and ``perf/parity.md``; the exit code is 1 when a row misses its bound. ``--resume``
keeps the rows that were measured with the same sources.
"""

import hashlib
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import click
import torch
from torch import nn

from mf_deploy.artifact import TARGETS, Artifact, ModelSource, Record, Target, read_record, write_whole
from mf_deploy.cli.command import run_command
from mf_deploy.errors import GATE_FAILED, MfDeployError
from mf_deploy.export import Probe, export
from mf_deploy.export.lower import lower, reference_graph
from mf_deploy.models.registry import get_spec
from mf_deploy.models.stored import ModelRecord

Graph = Literal["reference", "deploy"]

HERE = Path(__file__).resolve().parent
PACKAGE = HERE.parent / "mf_deploy"
MODELS = tuple(f"mobile_former_{size}m" for size in (26, 52, 96, 151, 214, 294, 508))
GRAPHS: tuple[Graph, ...] = ("reference", "deploy")
BOUNDS: dict[Target, float] = {"onnx": 1e-4, "tflite": 1e-4, "coreml": 1e-3}
ENGINES: dict[Target, str] = {"onnx": "ONNX Runtime", "tflite": "LiteRT", "coreml": "MIL interpreter"}


class Row(Record):
    """One exported file. ``relative_error``: max |Δlogit| over the range of the float64 logits."""

    model: str
    target: Target
    graph: Graph
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
    """What ``perf/parity.json`` holds."""

    schema_version: Literal[1] = 1
    created: str
    torch: str
    rows: list[Row]


def sources_digest(graph: Graph) -> str:
    """A digest of the code that a row depends on; the reference graph does not depend on the rewrites."""
    digest = hashlib.sha256()
    for room in ("models", "export", "mil", "runtimes"):
        for path in sorted((PACKAGE / room).rglob("*.py")):
            if graph == "deploy" or "lower" not in path.parts or path.name == "graph.py":
                digest.update(path.relative_to(PACKAGE).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def random_model(name: str) -> nn.Module:
    """The model with seeded weights and, unlike a fresh model, statistics that folding must respect."""
    torch.manual_seed(0)
    model = get_spec(name).build(1000)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.get_buffer("running_mean").normal_(0, 0.1)
            module.get_buffer("running_var").uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.8, 1.2)
            nn.init.normal_(module.bias, std=0.1)
    return model.eval().requires_grad_(False)


def measure(name: str, model: nn.Module, target: Target, graph: Graph, folder: Path) -> Row:
    """Export one file into ``folder`` and take the figures from its manifest, or the error."""
    row = Row(model=name, target=target, graph=graph)
    spec = get_spec(name)
    source = ModelSource(name=name, num_classes=1000, random_weights=True)
    record = ModelRecord(source=source, preprocessing=spec.preprocessing, labels=None, weights_sha256="")
    probe = Probe.seeded(model, spec.preprocessing.input_size)
    start = time.perf_counter()
    try:
        built = lower(model, record, target) if graph == "deploy" else reference_graph(model, record)
        artifact = export(built, target, "fp32", folder, probe)
    except MfDeployError as error:
        return row.model_copy(update={"error": str(error)})
    parity = artifact.manifest.parity
    return row.model_copy(
        update={
            "relative_error": parity.relative_error,
            "samples": parity.samples,
            "agreement": parity.agreement,
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
        + ". Made by `python -m perf.parity`.",
        "",
        "| model | graph | " + " | ".join(f"{ENGINES[t]} error | operators | MB" for t in TARGETS) + " |",
        "|---|---|" + "---:|" * 3 * len(TARGETS),
    ]
    rows = {(row.model, row.graph, row.target): row for row in table.rows}
    for name in MODELS:
        for graph in GRAPHS:
            cells = [_cell(rows.get((name, graph, target))) for target in TARGETS]
            if any(rows.get((name, graph, target)) for target in TARGETS):
                lines.append(f"| {name} | {graph} | {' | '.join(cells)} |")
    failed = [row for row in table.rows if not row.passed]
    lines += ["", f"{len(table.rows) - len(failed)} of {len(table.rows)} rows keep their bound."]
    lines += [f"- {r.model} {r.graph} {r.target}: {r.error or 'beyond its bound'}" for r in failed]
    return "\n".join(lines) + "\n"


def _cell(row: Row | None) -> str:
    if row is None:
        return "| |"
    if row.relative_error is None or row.bytes is None:
        return "failed | |"
    mark = "" if row.passed else " **!**"
    return f"{row.relative_error:.1e}{mark} | {row.operators} | {row.bytes / 1e6:.2f}"


def _chosen(text: str | None, choices: tuple[str, ...]) -> list[str]:
    wanted = choices if text is None else tuple(text.split(","))
    unknown = [word for word in wanted if word not in choices]
    if unknown:
        raise MfDeployError(
            f"Unknown {unknown[0]!r}", "not part of the sweep", f"One of {', '.join(choices)}."
        )
    return [word for word in choices if word in wanted]


def _load(path: Path) -> list[Row]:
    return read_record(path, Table, "Remove it and measure again.").rows if path.exists() else []


@click.command("perf.parity")
@click.option("--models", help="Comma-separated.")
@click.option("--targets", help="Comma-separated.")
@click.option("--graphs", help="Comma-separated.")
@click.option("--resume", is_flag=True, help="Keep rows measured with the same sources.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), default=HERE / "parity.json")
def command(
    models: str | None, targets: str | None, graphs: str | None, resume: bool, json_file: Path
) -> int:
    """Measure the parity of all variants, targets and graphs; rows left out keep their last figures."""
    torch.set_num_threads(1)
    rows = {(row.model, row.target, row.graph): row for row in _load(json_file)}
    sources = {graph: sources_digest(graph) for graph in GRAPHS}
    chosen_targets, chosen_graphs = _chosen(targets, TARGETS), _chosen(graphs, GRAPHS)
    for name in _chosen(models, MODELS):
        model = random_model(name)
        for target in TARGETS:
            for graph in GRAPHS:
                if target not in chosen_targets or graph not in chosen_graphs:
                    continue
                old = rows.get((name, target, graph))
                if resume and old is not None and old.passed and old.sources == sources[graph]:
                    continue
                with tempfile.TemporaryDirectory() as scratch:
                    row = measure(name, model, target, graph, Path(scratch) / "artifact")
                row.sources = sources[graph]
                rows[name, target, graph] = row
                _write(json_file, list(rows.values()))
                shown = row.error or f"{row.relative_error:.1e}, {row.operators} operators, {row.seconds} s"
                click.echo(f"{name} {target} {graph}: {shown}")
    return 0 if all(row.passed for row in rows.values()) else GATE_FAILED


def _write(json_file: Path, rows: list[Row]) -> None:
    order = {name: index for index, name in enumerate(MODELS)}
    rows = sorted(rows, key=lambda row: (order[row.model], row.target, row.graph))
    created = datetime.now(UTC).date().isoformat()
    table = Table(created=created, torch=torch.__version__, rows=rows)
    write_whole(json_file, (table.model_dump_json(indent=1) + "\n").encode())
    write_whole(json_file.with_suffix(".md"), markdown(table).encode())


if __name__ == "__main__":
    run_command(command)
