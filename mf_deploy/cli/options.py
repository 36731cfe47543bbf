"""Options that several commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mf_deploy.cli.command import Name, Triple
from mf_deploy.errors import MfDeployError

if TYPE_CHECKING:
    from torch import nn

    from mf_deploy.artifact import Target
    from mf_deploy.models.stored import ModelRecord
    from mf_deploy.preprocessing import Preprocessing

TARGET_CHOICES = ("onnx", "coreml", "tflite", "all")

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

PREPROCESSING_OPTIONS: tuple[Decorator, ...] = (
    click.option("--input-size", type=click.IntRange(8, 4096), help="Side of the square input, pixels."),
    click.option("--crop-fraction", type=click.FloatRange(0.1, 1), help="Input side / resized short side."),
    click.option(
        "--interpolation", type=Name("interpolation", ("bilinear", "bicubic")), help="Resize filter."
    ),
    click.option("--mean", type=Triple(), help="Mean of the pixels after /255, R,G,B."),
    click.option("--std", type=Triple(), help="Standard deviation of the pixels after /255, R,G,B."),
)


def preprocessing_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add --input-size, --crop-fraction, --interpolation, --mean and --std."""
    for option in reversed(PREPROCESSING_OPTIONS):
        function = option(function)
    return function


def preprocessing_from(base: "Preprocessing", **given: Any) -> "Preprocessing":
    """``base`` with the options that were given."""
    from pydantic import ValidationError

    from mf_deploy.preprocessing import Preprocessing

    values = base.model_dump() | {key: value for key, value in given.items() if value is not None}
    try:
        return Preprocessing(**values)
    except ValidationError as error:
        why = error.errors()[0]["msg"]
        raise MfDeployError("Bad preprocessing", why, "See --help for the values.") from None


def targets_of(target: str) -> "list[Target]":
    """The targets that ``--target`` names."""
    from mf_deploy.artifact import TARGETS

    return [each for each in TARGETS if target in (each, "all")]


def open_run(run: Path) -> tuple[Path, "nn.Module", "ModelRecord"]:
    """The model folder that ``run`` is or lies in, its reference model and record."""
    from mf_deploy.models.stored import RECORD_NAME, load_reference

    for folder in (run, run.absolute().parent):
        if (folder / RECORD_NAME).is_file():
            return folder, *load_reference(folder)
    raise MfDeployError(
        f"No run at {run}",
        f"{RECORD_NAME} is neither there nor one folder above",
        "Make one with: mf-export MODEL --target all --checkpoint F",
    )
