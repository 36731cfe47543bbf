"""The exported files that these scripts share: each is written once, until the sources change."""

import hashlib
import os
import shutil
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from torch import nn

from mf_deploy.artifact import Artifact, ModelSource, Target
from mf_deploy.export import Probe, export
from mf_deploy.export.lower import lower, reference_graph
from mf_deploy.export.parity import seeded_pictures
from mf_deploy.models.registry import get_spec
from mf_deploy.models.stored import ModelRecord

Graph = Literal["reference", "deploy"]

ROOT = Path(__file__).resolve().parent.parent
PACKAGE, RESULTS, SHARED = ROOT / "mf_deploy", ROOT / "results", ROOT.parent / "shared"
MODELS = tuple(f"mobile_former_{size}m" for size in (26, 52, 96, 151, 214, 294, 508))
GRAPHS: tuple[Graph, ...] = ("reference", "deploy")


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


def record_of(name: str) -> ModelRecord:
    """The record of ``random_model(name)``."""
    source = ModelSource(name=name, num_classes=1000, random_weights=True)
    preprocessing = get_spec(name).preprocessing
    return ModelRecord(source=source, preprocessing=preprocessing, labels=None, weights_sha256="")


def sources_digest(graph: Graph) -> str:
    """A digest of the code that a file depends on; the reference graph does not depend on the rewrites."""
    digest = hashlib.sha256()
    for room in ("models", "export", "mil", "runtimes"):
        for path in sorted((PACKAGE / room).rglob("*.py")):
            if graph == "deploy" or "lower" not in path.parts or path.name == "graph.py":
                digest.update(path.relative_to(PACKAGE).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def exported(name: str, model: nn.Module, target: Target, graph: Graph) -> Artifact:
    """``model``, a ``random_model(name)``, as fp32 artifact; kept in the user's cache for these sources.

    Raises:
        MfDeployError: the export fails, or its file does not reproduce the model.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mf-deploy" / "scripts"
    place = cache / f"{name}-{target}-{graph}-{sources_digest(graph)}"
    if place.exists():
        return Artifact.open(place)
    for outdated in cache.glob(f"{name}-{target}-{graph}-*"):
        shutil.rmtree(outdated)
    record = record_of(name)
    built = lower(model, record, target) if graph == "deploy" else reference_graph(model, record)
    probe = Probe.seeded(model, record.preprocessing.input_size)
    return export(built, target, "fp32", place, probe)


def save_pictures(folder: Path, count: int, side: int) -> None:
    """Seeded pictures as files to calibrate on."""
    folder.mkdir(parents=True)
    for number, picture in enumerate(seeded_pictures(count, side)):
        Image.fromarray(picture).save(folder / f"{number}.png")
