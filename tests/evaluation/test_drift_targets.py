"""Where it drifts, on every target: one weight of a real export is wrong."""

from pathlib import Path

import numpy as np
import pytest
import torch
from colours import PREPROCESSING, ColourNet, fitted, model_source

from mf_deploy.evaluation.drift import find_drift
from mf_deploy.export import Probe, export
from mf_deploy.export.lower import lower
from mf_deploy.models.stored import save_reference
from mf_deploy.runtimes import open_session


@pytest.mark.parametrize("target", ["onnx", "coreml", "tflite"])
def test_the_wrong_layer_of_an_export_is_named(target: str, tmp_path: Path) -> None:
    model = fitted()
    record = save_reference(tmp_path, model, model_source(), PREPROCESSING, None)
    probe = Probe.seeded(model, PREPROCESSING.input_size)
    artifact = export(lower(model, record, target), target, "fp32", tmp_path / f"{target}-fp32", probe)
    pictures = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)
    session = open_session(artifact)
    assert find_drift(artifact, session, model, pictures).first_drift is None
    assert find_drift(artifact, session, changed("head"), pictures).first_drift == "head"
    assert find_drift(artifact, session, changed("conv"), pictures).first_drift == "norm"


def changed(layer: str) -> ColourNet:
    """The reference with other weights in ``layer``, as if the artifact's were wrong."""
    model = fitted()
    weight = model.get_submodule(layer).weight
    assert isinstance(weight, torch.Tensor)
    weight += 0.3 * weight.std() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(2))
    return model
