"""mf-export: a checkpoint goes in, ONNX, Core ML and TFLite artifacts come out."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mf_deploy.cli.command import Name, console, run_command, working
from mf_deploy.cli.options import TARGET_CHOICES, preprocessing_from, preprocessing_options, targets_of
from mf_deploy.errors import MfDeployError

if TYPE_CHECKING:
    from torch import nn

    from mf_deploy.artifact import Artifact
    from mf_deploy.models.stored import ModelRecord

EPILOG = """\b
Examples:
  mf-export mobile_former_294m --target all --checkpoint mobile-former-294m.pth.tar
  mf-export mobile_former_26m --target coreml --precision fp16 --input uint8 --checkpoint f.pth
  mf-export --model my_package.models:create --target onnx --input-size 192
  mf-export mobile_former_26m --target tflite --random-weights
"""


@click.command("mf-export", epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("name", metavar="[MODEL]", required=False)
@click.option("--model", "factory", metavar="PKG.MODULE:FACTORY", help="Your own model in place of a name.")
@click.option("--target", type=Name("target", TARGET_CHOICES), required=True, help="Format to write.")
@click.option(
    "--checkpoint", type=click.Path(path_type=Path), help="Weights: .pth, .pth.tar, .pt or .safetensors."
)
@click.option("--random-weights", is_flag=True, help="No checkpoint: good for latency, never for accuracy.")
@click.option("--precision", type=Name("precision", ("fp32", "fp16")), default="fp32", show_default=True)
@click.option(
    "--graph",
    type=Name("graph", ("deploy", "reference")),
    default="deploy",
    show_default=True,
    help="deploy: rewritten for phones. reference: as the authors wrote it.",
)
@click.option(
    "--input",
    "input_kind",
    type=Name("input", ("float", "uint8")),
    default="float",
    show_default=True,
    help="float: normalised. uint8: the RGB picture as a camera gives it.",
)
@preprocessing_options
@click.option(
    "--batch", type=click.IntRange(1, 1024), default=1, show_default=True, help="Static batch size."
)
@click.option(
    "--labels", metavar="LIST|FILE", help="imagenet-1k, tiny-imagenet-200, or a file, one class a line."
)
@click.option("--deployment-target", default="iOS16", show_default=True, help="Oldest system for Core ML.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs"), show_default=True)
@click.option("--force", is_flag=True, help="Overwrite artifacts that exist.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifests as JSON.")
def command(
    name: str | None,
    factory: str | None,
    target: str,
    checkpoint: Path | None,
    random_weights: bool,
    precision: str,
    graph: Any,
    input_kind: Any,
    batch: int,
    labels: str | None,
    deployment_target: str,
    out: Path,
    force: bool,
    as_json: bool,
    **preprocessing: Any,
) -> None:
    """Export MODEL (see mf-deploy models) to --target, and prove each file against PyTorch.

    Writes OUT/MODEL/TARGET-PRECISION/ with the model file and manifest.json.
    """
    _check_arguments(name, factory, checkpoint, random_weights)
    import torch

    from mf_deploy.artifact import check_writable
    from mf_deploy.export import ExportOptions, Probe, artifact_name, export, get_exporter
    from mf_deploy.export.lower import lower, reference_graph

    torch.set_num_threads(1)  # a few pictures, layer by layer: more threads only wait for each other
    targets = targets_of(target)
    for each in targets:
        get_exporter(each)
    model, record = _reference(name, factory, checkpoint, random_weights, labels, preprocessing)
    run = out / record.source.name
    options = ExportOptions(input=input_kind, deployment_target=deployment_target)
    folders = {each: run / artifact_name(each, precision, graph) for each in targets}
    for folder in folders.values():
        check_writable(folder, force)
    record = _save(run, model, record, force)
    probe = Probe.seeded(model, record.preprocessing.input_size)
    artifacts = []
    for each, folder in folders.items():
        with working(f"Exporting {record.source.name} to {each}"):
            built = (
                lower(model, record, each, batch)
                if graph == "deploy"
                else reference_graph(model, record, batch)
            )
            artifacts.append(export(built, each, precision, folder, probe, options, force))
    print_artifacts(artifacts, as_json)


def _check_arguments(
    name: str | None, factory: str | None, checkpoint: Path | None, random_weights: bool
) -> None:
    if (name is None) == (factory is None):
        why = "no model given" if name is None else "both a name and --model given"
        raise MfDeployError("Nothing to export", why, "Give one: a name of mf-deploy models, or --model.")
    if name is not None and ":" in name:
        raise MfDeployError(
            f"Unknown model {name!r}", "a factory is no name", f"Pass --model {name} in place of it."
        )
    if factory is not None and ":" not in factory:
        raise MfDeployError(
            f"Bad model {factory!r}",
            "not of the form package.module:factory",
            "Name a callable without arguments that returns an nn.Module, or leave out --model.",
        )
    if checkpoint is not None and random_weights:
        raise MfDeployError("Contradiction", "--checkpoint and --random-weights", "Give one of them.")
    if name is not None and checkpoint is None and not random_weights:
        raise MfDeployError(
            f"No weights for {name}",
            "--checkpoint is missing",
            "Give one, or --random-weights to time a graph.",
        )


def _reference(
    name: str | None,
    factory: str | None,
    checkpoint: Path | None,
    random_weights: bool,
    labels: str | None,
    given: dict[str, Any],
) -> "tuple[nn.Module, ModelRecord]":
    """The reference model with its weights, and its record (not yet saved)."""
    from mf_deploy.artifact import ModelSource
    from mf_deploy.data.labels import class_list, read_labels
    from mf_deploy.models import get_spec, load_model
    from mf_deploy.models.checkpoint import read_checkpoint
    from mf_deploy.models.stored import ModelRecord
    from mf_deploy.models.user import count_classes
    from mf_deploy.preprocessing import Preprocessing

    base = get_spec(name).preprocessing if name is not None else Preprocessing()
    wanted = read_labels(labels) if labels is not None else None
    preprocessing = preprocessing_from(base, **given)
    loaded = read_checkpoint(checkpoint) if checkpoint is not None else None
    model = load_model(name or str(factory), checkpoint)
    source = ModelSource(
        name=name or str(factory).rpartition(":")[0].rpartition(".")[2],
        factory=factory,
        num_classes=count_classes(model, name or str(factory), preprocessing.input_size),
        random_weights=random_weights,
        checkpoint_name=loaded.name if loaded else None,
        checkpoint_sha256=loaded.sha256 if loaded else None,
    )
    found = wanted or (loaded.classes if loaded else None)
    if found is None and source.num_classes == 1000:
        found = class_list("imagenet-1k")
    if found is not None and len(found) != source.num_classes:
        raise MfDeployError(
            f"{len(found)} labels for {source.num_classes} classes",
            "the model's output and the label list differ",
            "Give the list that the model was trained with: --labels FILE.",
        )
    return model, ModelRecord(source=source, preprocessing=preprocessing, labels=found, weights_sha256="")


def _save(run: Path, model: "nn.Module", record: "ModelRecord", force: bool) -> "ModelRecord":
    """Write the reference; artifacts of other weights in the same run would then be orphans: refuse."""
    from mf_deploy.artifact import read_record
    from mf_deploy.models.stored import RECORD_NAME, ModelRecord, save_reference, weights_digest

    path = run / RECORD_NAME
    if path.exists() and not force:
        before = read_record(path, ModelRecord, "Pass --force to replace it.")
        if before.weights_sha256 != weights_digest(model) or before.preprocessing != record.preprocessing:
            raise MfDeployError(
                f"{run} holds another model",
                "its weights or preprocessing differ",
                "Pass --force, or another --out.",
            )
    return save_reference(run, model, record.source, record.preprocessing, record.labels)


def print_artifacts(artifacts: "list[Artifact]", as_json: bool) -> None:
    """A row an artifact: where it is, how large, how close to the reference."""
    if as_json:
        import json

        click.echo(json.dumps([a.manifest.model_dump(mode="json") for a in artifacts], indent=2))
        return
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("artifact", "size MB", "weights", "MACs", "max |Δlogit| / range", "agreement"):
        table.add_column(heading, justify="left" if heading in ("artifact", "weights", "MACs") else "right")
    for artifact in artifacts:
        manifest, parity = artifact.manifest, artifact.manifest.parity
        table.add_row(
            escape(str(artifact.folder)),
            f"{artifact.size_bytes / 1e6:.2f}",
            _shares(manifest.quantization.parameters),
            _shares(manifest.quantization.macs),
            f"{parity.relative_error:.1e}",
            f"{parity.agreement:.0%} of {parity.samples}",
        )
    console().print(table)
    for artifact in artifacts:
        for remark in artifact.manifest.remarks:
            click.echo(f"{artifact.name}: {remark}", err=True)


def _shares(counts: dict[str, int]) -> str:
    total = max(sum(counts.values()), 1)
    return ", ".join(
        f"{n / total:.0%} {p}"
        for p, n in sorted(counts.items(), key=lambda item: -item[1])
        if n / total >= 0.005
    )


def main() -> None:
    run_command(command)
