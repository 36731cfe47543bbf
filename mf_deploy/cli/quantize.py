"""mf-quantize: a folder of calibration images turns a run's model into smaller, faster artifacts."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mf_deploy.cli.command import Name, run_command, working
from mf_deploy.cli.export import print_artifacts
from mf_deploy.cli.options import TARGET_CHOICES, open_run, targets_of
from mf_deploy.errors import MfDeployError

if TYPE_CHECKING:
    from torch import nn

    from mf_deploy.artifact import Target
    from mf_deploy.data import LabelledImages
    from mf_deploy.export import Probe
    from mf_deploy.models.stored import ModelRecord
    from mf_deploy.quantization import QuantPolicy

EPILOG = """\b
Examples:
  mf-quantize runs/mobile_former_294m --calibration photos/
  mf-quantize runs/mobile_former_294m --target tflite --scheme w8 --calibration photos.tar
  mf-quantize runs/mobile_former_294m --target onnx --scheme mixed --calibration train/ \\
      --max-drop 0.5 --data val/ --report
  mf-quantize runs/mobile_former_294m --target onnx --calibration train/ --plan plan.json
"""

SCHEMES = ("w8a8", "w8a16", "w8", "fp16", "mixed")
INTERFACES = ("float", "uint8", "int8")


@click.command("mf-quantize", epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    required=True,
    help="Training images, never the ones you check with: a folder, .tar, .zip or .parquet.",
)
@click.option("--scheme", type=Name("scheme", SCHEMES), help="Default: w8a8, or mixed with --plan.")
@click.option("--target", type=Name("target", TARGET_CHOICES), help="Default: the targets that RUN has.")
@click.option(
    "--samples", type=click.IntRange(1), default=256, show_default=True, help="Images to calibrate on."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Which images --samples picks.")
@click.option(
    "--ranges",
    type=Name("range method", ("minmax", "percentile", "mse")),
    help="How activation ranges are chosen. Default: as measured best for the target.",
)
@click.option("--plan", "plan_file", type=click.Path(path_type=Path), help="Module to precision, as JSON.")
@click.option(
    "--max-drop", type=click.FloatRange(0, 100), metavar="PT", help="Budget of a mixed search: top-1 points."
)
@click.option(
    "--min-agreement", type=click.FloatRange(0, 100), metavar="PCT", help="Budget: same top-1 as PyTorch."
)
@click.option("--data", type=click.Path(path_type=Path), help="Labelled images to judge the budget on.")
@click.option("--limit", type=click.IntRange(1), help="Take this many of --data.")
@click.option(
    "--objective",
    type=Name("objective", ("arm", "size", "npu")),
    help="What a mixed plan should cost least: ARM instructions (the default), bytes, parts outside an NPU.",
)
@click.option("--report", is_flag=True, help="Also draw what int8 costs each part: RUN/plans/*.html.")
@click.option(
    "--io",
    "interface",
    type=Name("interface", INTERFACES),
    default="float",
    show_default=True,
    help="Input and output: floats, or integers (the picture itself, and coded logits).",
)
@click.option("--input", "input_kind", type=Name("input", INTERFACES), help="The input alone. Default: --io.")
@click.option(
    "--weight-type",
    type=Name("weight type", ("uint8", "int8")),
    help="Of ONNX integer layers. uint8 (the default) is exact everywhere; int8 is cheaper on ARM cores "
    "without dot products, such as cortex-a72.",
)
@click.option(
    "--batch", type=click.IntRange(1, 1024), default=1, show_default=True, help="Static batch size."
)
@click.option("--force", is_flag=True, help="Overwrite artifacts that exist.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifests as JSON.")
def command(
    run: Path,
    calibration: Path,
    scheme: Any,
    target: str | None,
    samples: int,
    seed: int,
    ranges: Any,
    plan_file: Path | None,
    max_drop: float | None,
    min_agreement: float | None,
    data: Path | None,
    limit: int | None,
    objective: Any,
    report: bool,
    interface: Any,
    input_kind: Any,
    weight_type: Any,
    batch: int,
    force: bool,
    as_json: bool,
) -> int:
    """Quantize the model of RUN by calibration images.

    w8a8: weights and activations in int8. w8a16: 16-bit activations, for NPUs. w8: weights only. mixed:
    int8 except where --max-drop points of accuracy would be lost on --data; the plan found is kept in
    RUN/plans/, can be edited, and is used again with --plan. Writes RUN/TARGET-SCHEME/.
    """
    from mf_deploy.artifact import check_writable, read_record
    from mf_deploy.calibration.equalization import graph_to_quantize
    from mf_deploy.calibration.plausibility import implausible
    from mf_deploy.cli.quantize_mixed import Budget, over_budget, search_and_write
    from mf_deploy.data import open_images
    from mf_deploy.export import (
        MIN_CALIBRATION_IMAGES,
        ExportOptions,
        artifact_name,
        get_exporter,
        quantize,
    )
    from mf_deploy.export.module_paths import weighted_modules
    from mf_deploy.quantization import QuantPlan, QuantPolicy

    folder, model, record = open_run(run)
    targets = targets_of(target) if target else _targets_in(run)
    fix = "Take one of RUN/plans/, or write {'schema_version': 1, 'model': ..., 'modules': {'': 'int8'}}."
    plan = read_record(plan_file, QuantPlan, fix) if plan_file else None
    policy = QuantPolicy(scheme or ("mixed" if plan else "w8a8"), plan, ranges)
    searching = policy.scheme == "mixed" and plan is None
    for_search = {"--max-drop": max_drop, "--min-agreement": min_agreement, "--data": data, "--limit": limit}
    for_search |= {"--objective": objective, "--report": report or None}
    _refuse_options(policy, {} if searching else for_search)
    if weight_type:
        _refuse_weight_type(policy, targets)
    options = ExportOptions(
        input=input_kind or interface, output=interface, weight_type=weight_type or "uint8"
    )
    folders = {each: folder / artifact_name(each, policy.scheme) for each in targets}
    for each, out in folders.items():
        get_exporter(each).refuse(policy, options)
        check_writable(out, force)
        if searching:
            check_writable(over_budget(out), force)
    budget = None
    if searching:
        budget = Budget.of(max_drop, min_agreement, data, limit, objective or "arm", report)
    images = open_images(calibration, samples, seed)
    if budget is not None:
        budget.refuse_shared(images)
    if policy.needs_ranges and batch > 1 and len(images) < MIN_CALIBRATION_IMAGES * batch:
        raise MfDeployError(
            f"Too few images in {calibration}",
            f"{len(images)} images are too few for batches of {batch}; activations need several batches",
            "Give more calibration images, better 256, or a smaller --batch.",
        )
    for oddity in implausible(images, record.preprocessing):
        click.echo(f"warning: {oddity}", err=True)
    probe = _probe(model, images, record)
    if plan:
        if plan.model != record.source.name:
            oddity = f"{plan_file} was made for {plan.model}, this is {record.source.name}"
            click.echo(f"warning: {oddity}; check the accuracy with mf-check", err=True)
        plan.check(weighted_modules(model).values())
    artifacts, kept = [], True
    for each, out in folders.items():
        with working(f"Quantizing {record.source.name} for {each} ({policy.scheme})"):
            graph = graph_to_quantize(model, record, each, batch, images, policy)
            if budget is None:
                artifacts.append(quantize(graph, each, images, policy, out, probe, options, force))
        if budget is not None:
            artifact, passed = search_and_write(
                graph, each, images, policy, out, probe, options, force, budget
            )
            artifacts.append(artifact)
            kept = kept and passed
    if images.skipped:
        unused = (
            f"{len(images.skipped)} files of {calibration} were not used, the first is {images.skipped[0]}"
        )
        click.echo(f"warning: {unused}", err=True)
    print_artifacts(artifacts, as_json)
    missing = [a.name for a in artifacts if a.manifest.target != "coreml" and not a.manifest.ran_on]
    if missing and policy.scheme != "fp16":
        click.echo(f"not run on ARM: {', '.join(missing)} (mf-deploy setup arm prepares that)", err=True)
    return 0 if kept else 1


def _targets_in(run: Path) -> "list[Target]":
    """The targets of the artifacts in ``run``; a damaged one is what this command may be asked to replace."""
    from mf_deploy.artifact import TARGETS, artifact_folders, find_artifacts

    names = {path.name.partition("-")[0] for path in artifact_folders(run)}
    found = sorted(target for target in TARGETS if target in names)
    return found or sorted({artifact.manifest.target for artifact in find_artifacts(run)})


def _refuse_options(policy: "QuantPolicy", for_search: dict[str, Any]) -> None:
    """Refuse options that would do nothing; ``for_search``: name to value, where nothing is searched for."""
    if any(value is not None for value in for_search.values()):
        raise MfDeployError(
            "Cannot use --max-drop, --min-agreement, --data, --limit, --objective or --report here",
            "they belong to a search",
            "Add --scheme mixed, without --plan; or check the artifact afterwards with mf-check.",
        )
    if policy.plan and policy.scheme != "mixed":
        raise MfDeployError(
            f"Cannot use --plan with --scheme {policy.scheme}",
            "the plan says which module gets which precision",
            "Leave --scheme out, or take --scheme mixed.",
        )
    if policy.ranges and not policy.needs_ranges:
        raise MfDeployError(
            "Cannot use --ranges here", "no activation is quantized", "Leave it out, or take --scheme w8a8."
        )


def _refuse_weight_type(policy: "QuantPolicy", targets: "list[Target]") -> None:
    """Refuse ``--weight-type`` where no ONNX layer computes with integers."""
    if "onnx" not in targets or not policy.computes_integers:
        raise MfDeployError(
            "Cannot use --weight-type here",
            "it is about the integer layers of ONNX files, and none is asked for",
            "Leave it out, or take --target onnx with --scheme w8a8 or mixed.",
        )


def _probe(model: "nn.Module", images: "LabelledImages", record: "ModelRecord") -> "Probe":
    """Real pictures to prove the artifacts on: the first of the calibration images."""
    from mf_deploy.export import PARITY_SAMPLES, Probe

    batch = next(iter(images.batches(record.preprocessing, PARITY_SAMPLES)))
    return Probe(model, batch.pictures, f"{len(batch.pictures)} calibration images")


def main() -> None:
    run_command(command)


if __name__ == "__main__":
    main()
