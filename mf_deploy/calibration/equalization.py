"""How large the channels of a model get, and the graph to quantize that is equalized by it."""

import torch
from torch import Tensor, nn

from mf_deploy.artifact import Target
from mf_deploy.data import LabelledImages
from mf_deploy.export.lower import REWRITES, DeployGraph, lower
from mf_deploy.export.lower.equalize import Equalize, equalizable
from mf_deploy.export.lower.fold_batch_norm import FoldBatchNorm
from mf_deploy.export.lower.integer import INTEGER_REWRITES, WEIGHT_REWRITES
from mf_deploy.models.stored import ModelRecord
from mf_deploy.quantization import QuantPolicy

BATCH = 8
MAX_IMAGES = 64
"""Peaks of 64 images serve as well as those of 256; they only balance the channels."""


def measure_equalization(model: nn.Module, record: ModelRecord, images: LabelledImages) -> Equalize | None:
    """The equalization of ``model`` by the first of ``images``; None for a model without dynamic ReLUs."""
    folded = lower(model, record, "onnx", BATCH, (FoldBatchNorm(),)).module
    readers = [(path, reader) for _, path, reader in equalizable(folded)]
    if not readers:
        return None
    peaks: dict[str, Tensor] = {}

    def watch(path: str, inputs: tuple[Tensor, ...]) -> None:
        peak = inputs[0].abs().amax((0, 2, 3))
        peaks[path] = torch.maximum(peaks[path], peak) if path in peaks else peak

    for path, reader in readers:
        reader.register_forward_pre_hook(lambda module, inputs, path=path: watch(path, inputs))
    seen = 0
    with torch.inference_mode():
        for batch in images.batches(record.preprocessing, BATCH):
            folded(torch.from_numpy(record.preprocessing.normalize(batch.pictures)))
            seen += len(batch.pictures)
            if seen >= MAX_IMAGES:
                break
    return Equalize({path: peak.clone() for path, peak in peaks.items()})


def graph_to_quantize(
    model: nn.Module,
    record: ModelRecord,
    target: Target,
    batch: int,
    images: LabelledImages,
    policy: QuantPolicy,
) -> DeployGraph:
    """The deploy graph that ``policy`` wants: equalized by ``images`` where activations are quantized."""
    if policy.needs_ranges:
        return equalized(model, record, target, batch, images)
    rewrites = REWRITES if policy.scheme == "fp16" else WEIGHT_REWRITES
    return lower(model, record, target, batch, rewrites[target])


def equalized(
    model: nn.Module, record: ModelRecord, target: Target, batch: int, images: LabelledImages
) -> DeployGraph:
    """The deploy graph of ``model``, its channels equalized by ``images`` where it has dynamic ReLUs."""
    equalize = measure_equalization(model, record, images)
    fold, *others = INTEGER_REWRITES[target]
    if equalize is None:
        return lower(model, record, target, batch, (fold, *others))
    return lower(model, record, target, batch, (fold, equalize, *others))
