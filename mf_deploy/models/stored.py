"""The reference model of a run on disk: ``model.safetensors`` and ``model.json``."""

import hashlib
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from mf_deploy.artifact import ModelSource, Record, read_record, sha256_of, write_whole
from mf_deploy.errors import MfDeployError
from mf_deploy.models.registry import get_spec
from mf_deploy.preprocessing import Preprocessing

WEIGHTS_NAME = "model.safetensors"
RECORD_NAME = "model.json"


class ModelRecord(Record):
    """What ``model.json`` says of the reference model."""

    schema_version: Literal[1] = 1
    source: ModelSource
    preprocessing: Preprocessing
    labels: list[str] | None
    weights_sha256: str


def save_reference(
    run: Path, model: nn.Module, source: ModelSource, preprocessing: Preprocessing, labels: list[str] | None
) -> ModelRecord:
    """Write the reference model into the folder ``run``; a file that is already the same is left alone."""
    weights = _serialized(model)
    digest = hashlib.sha256(weights).hexdigest()
    record = ModelRecord(source=source, preprocessing=preprocessing, labels=labels, weights_sha256=digest)
    target = run / WEIGHTS_NAME
    if not target.exists() or sha256_of(target) != digest:
        write_whole(target, weights)
    write_whole(run / RECORD_NAME, record.model_dump_json(indent=2).encode())
    return record


def weights_digest(model: nn.Module) -> str:
    """The sha256 that ``model.safetensors`` of this model has."""
    return hashlib.sha256(_serialized(model)).hexdigest()


def _serialized(model: nn.Module) -> bytes:
    return save({key: value.contiguous() for key, value in model.state_dict().items()})


def load_reference(run: Path) -> tuple[nn.Module, ModelRecord]:
    """The reference model of the folder ``run``, in eval mode, and its record.

    Raises:
        MfDeployError: no reference there, or a damaged one.
    """
    fix = "Run mf-export again to write the reference."
    record = read_record(run / RECORD_NAME, ModelRecord, fix)
    weights = run / WEIGHTS_NAME
    if not weights.is_file() or sha256_of(weights) != record.weights_sha256:
        raise MfDeployError(f"Damaged run {run}", f"{WEIGHTS_NAME} is missing or changed", fix)
    model = build(record.source)
    try:
        model.load_state_dict(load_file(weights), strict=True)
    except (SafetensorError, RuntimeError) as error:
        raise MfDeployError(f"Damaged run {run}", str(error).splitlines()[0], fix) from None
    return model.eval().requires_grad_(False), record


def build(source: ModelSource) -> nn.Module:
    """The untrained reference model that ``source`` names."""
    if source.factory is not None:
        from mf_deploy.models.user import call_factory

        return call_factory(source.factory)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return get_spec(source.name).build(source.num_classes)
