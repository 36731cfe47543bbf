"""mf-quantize: a folder of calibration images turns a run's model into smaller, faster artifacts."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mf_deploy.cli.command import Name, run_command, working
from mf_deploy.cli.export import print_artifacts
from mf_deploy.cli.options import TARGET_CHOICES, open_run, targets_of

if TYPE_CHECKING:
    from torch import nn

    from mf_deploy.data import LabelledImages
    from mf_deploy.export import Probe
    from mf_deploy.models.stored import ModelRecord

EPILOG = """\b
Examples:
  mf-quantize runs/mobile_former_294m --calibration photos/
  mf-quantize runs/mobile_former_294m --target tflite --scheme w8 --calibration photos.tar
"""


@click.command("mf-quantize", epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    required=True,
    help="Training images, never the ones you check with: a folder, .tar, .zip or .parquet.",
)
@click.option("--scheme", type=Name("scheme", ("w8a8", "w8", "fp16")), default="w8a8", show_default=True)
@click.option("--target", type=Name("target", TARGET_CHOICES), help="Default: the targets that RUN has.")
@click.option(
    "--samples", type=click.IntRange(1), default=256, show_default=True, help="Images to calibrate on."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Which images --samples picks.")
@click.option(
    "--input", "input_kind", type=Name("input", ("float", "uint8")), default="float", show_default=True
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
    input_kind: str,
    batch: int,
    force: bool,
    as_json: bool,
) -> None:
    """Quantize the model of RUN by calibration images.

    w8a8: weights and activations in int8. w8: weights only. Writes RUN/TARGET-SCHEME/.
    """
    from mf_deploy.artifact import check_writable, find_artifacts
    from mf_deploy.data import open_images
    from mf_deploy.export import ExportOptions, artifact_name, get_exporter, quantize
    from mf_deploy.export.lower import lower
    from mf_deploy.quantization import QuantPolicy

    folder, model, record = open_run(run)
    targets = targets_of(target) if target else sorted({a.manifest.target for a in find_artifacts(run)})
    policy = QuantPolicy(scheme)
    folders = {each: folder / artifact_name(each, scheme) for each in targets}
    for each, out in folders.items():
        get_exporter(each)
        check_writable(out, force)
    images = open_images(calibration, samples, seed)
    probe = _probe(model, images, record)
    options = ExportOptions(input="uint8" if input_kind == "uint8" else "float")
    artifacts = []
    for each, out in folders.items():
        with working(f"Quantizing {record.source.name} for {each} ({scheme})"):
            graph = lower(model, record, each, batch)
            artifacts.append(quantize(graph, each, images, policy, out, probe, options, force))
    print_artifacts(artifacts, as_json)


def _probe(model: "nn.Module", images: "LabelledImages", record: "ModelRecord") -> "Probe":
    """Real pictures to prove the artifacts on: the first of the calibration images."""
    from mf_deploy.export import PARITY_SAMPLES, Probe

    batch = next(iter(images.batches(record.preprocessing, PARITY_SAMPLES)))
    return Probe(model, batch.pictures, f"{len(batch.pictures)} calibration images")


def main() -> None:
    run_command(command)
