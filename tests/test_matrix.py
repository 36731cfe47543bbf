"""Every variant in int8, and a family of each kind in every scheme: the part of the matrix that fits here.

``python -m scripts.matrix`` makes all of it, at 64 px and of trained weights too.
"""

from pathlib import Path

import pytest

from mf_deploy.artifact import TARGETS, ModelSource, Target
from mf_deploy.calibration.equalization import graph_to_quantize
from mf_deploy.data import open_images
from mf_deploy.export import Probe, quantize
from mf_deploy.models import load_model
from mf_deploy.models.registry import get_spec, list_models
from mf_deploy.models.stored import ModelRecord
from mf_deploy.quantization import QuantPolicy
from mf_deploy.runtimes.arm import CPUS
from mf_deploy.runtimes.arm.lab import Lab
from scripts.artifacts import save_pictures
from scripts.matrix import SCHEMES, Subject, make_cells

pytestmark = pytest.mark.slow

SIDE, PICTURES = 32, 4
FAMILIES = ("mobile_former_26m_spatial", "mobilenet_v3_small")
ARM_ENGINES: tuple[Target, ...] = ("onnx", "tflite")
OTHERS = sorted(spec.name for spec in list_models() if spec.name not in FAMILIES)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("family", FAMILIES)
def test_no_cell_of_a_family_fails(family: str, target: Target, lab_or_none: Lab | None) -> None:
    cells = list(make_cells(Subject(family, family, SIDE), target, list(SCHEMES[target])))
    assert [cell.scheme for cell in cells] == list(SCHEMES[target])
    for cell in cells:
        assert cell.status == "written", cell.why
        assert cell.sqnr_db is not None
        assert cell.sqnr_db > (20 if cell.scheme == "w8a8" else 30)
        wanted = list(CPUS) if lab_or_none and target != "coreml" else []
        assert cell.arm == dict.fromkeys(wanted, "yes")
        if cell.scheme in ("w8a8", "w8a16"):
            assert cell.int8_macs_percent is not None
            assert cell.int8_macs_percent > 75


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("matrix") / "pictures"
    save_pictures(folder, PICTURES, SIDE)
    return folder


@pytest.mark.parametrize("target", ARM_ENGINES)
@pytest.mark.parametrize("name", OTHERS)
def test_every_variant_goes_to_int8(
    name: str, target: Target, pictures: Path, tmp_path: Path, lab_or_none: Lab | None
) -> None:
    """Handing an artifact over includes a run on each ARM processor, where there is an emulator."""
    model, policy, images = load_model(name), QuantPolicy("w8a8"), open_images(pictures)
    record = ModelRecord(
        source=ModelSource(name=name, num_classes=1000, random_weights=True),
        preprocessing=get_spec(name).preprocessing.model_copy(update={"input_size": SIDE}),
        labels=None,
        weights_sha256="",
    )
    graph = graph_to_quantize(model, record, target, 1, images, policy)
    artifact = quantize(graph, target, images, policy, tmp_path / "int8", Probe.seeded(model, SIDE))
    manifest = artifact.manifest
    assert manifest.remarks == []
    assert manifest.parity.sqnr_db > 20
    macs = manifest.quantization.macs
    assert macs["int8"] > 0.75 * sum(macs.values())
    assert manifest.ran_on == ([f"arm:{cpu}" for cpu in CPUS] if lab_or_none else [])
