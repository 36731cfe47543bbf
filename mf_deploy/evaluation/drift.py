"""Where an artifact first drifts from the reference: its tensors against the outputs of the layers."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import permutations
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from mf_deploy.artifact import Artifact, Record
from mf_deploy.data.images import LabelledImages
from mf_deploy.evaluation.statistics import sqnr_db
from mf_deploy.runtimes.session import Session

SHOWN_IMAGES = 4
FOLDED_DB = 10.0
EXPECTED_DB = {"fp32": 60.0, "fp16": 30.0}
EXPECTED_QUANTIZED_DB = 20.0


class LayerDrift(Record):
    """One layer of the reference and the artifact's tensor that is closest to its output."""

    layer: str = Field(description="module path in the reference model")
    tensor: str = Field(description="name in the artifact")
    sqnr_db: float
    computed: bool = Field(description="False: folded or fused away, the artifact has no such tensor")


class DriftReport(Record):
    """Layers in execution order, and the first one that is worse than the artifact's scheme explains."""

    schema_version: Literal[1] = 1
    artifact: str
    path: str
    model: str
    images: int
    layers: list[LayerDrift]
    expected_db: float = Field(description="what layers of this scheme reach: 60 fp32, 30 fp16, 20 below")
    first_drift: str | None = Field(description="first computed layer below expected_db")


class DriftReports(Record):
    """The file that ``mf-check --layers --json`` writes."""

    schema_version: Literal[1] = 1
    reports: list[DriftReport]


Place = tuple[str, tuple[int, ...]]  # a tensor's name, and the order in which its axes are compared


@dataclass
class _Match:
    """Sums over the images for one layer and one place."""

    signal: float = 0.0
    noise: float = 0.0


def find_drift(
    artifact: Artifact,
    session: Session,
    reference: nn.Module,
    pictures: np.ndarray,
    in_fp32: DriftReport | None = None,
) -> DriftReport:
    """Compare every layer of the reference with the tensors inside the artifact.

    Rewrites and converters rename, transpose, fold and fuse, so a layer's counterpart is found by
    value: of all tensors with the same sizes, in any order of axes, the one with the highest SQNR.

    Args:
        pictures: (N, H, W, 3) uint8; a few are enough. N is a multiple of the artifact's batch.
        in_fp32: of the fp32 artifact of the same target, if there is one: the layers that it does not
            hold are not looked for in this one.

    Raises:
        MfDeployError: the runtime cannot show what is inside this artifact.
    """
    found: dict[str, dict[Place, _Match]] = {}
    firsts: dict[str, np.ndarray] = {}
    changing: set[str] = set()
    activations: dict[str, str] = {}
    size = session.batch_size
    for start, tensors in zip(range(0, len(pictures), size), session.intermediates(pictures), strict=True):
        images = torch.from_numpy(session.preprocessing.normalize(pictures[start : start + size]))
        by_size = _by_size(tensors)
        outputs, activations = layer_outputs(reference, images)
        for layer, output in outputs.items():
            _add(found.setdefault(layer, {}), output, by_size.get(_sizes(output), {}))
            if not np.array_equal(firsts.setdefault(layer, output), output):
                changing.add(layer)
    one_only = len(pictures) <= size
    expected = EXPECTED_DB.get(artifact.manifest.scheme, EXPECTED_QUANTIZED_DB)
    layers = [_best(layer, matches) for layer, matches in found.items() if matches]
    layers = [layer for layer in layers if one_only or layer.layer in changing]
    _mark_folded(layers, activations, expected)
    if in_fp32 is not None:
        held = {layer.layer for layer in in_fp32.layers if layer.computed}
        layers = [layer.model_copy(update={"computed": layer.layer in held}) for layer in layers]
    low = (layer.layer for layer in layers if layer.computed and layer.sqnr_db < expected)
    return DriftReport(
        artifact=artifact.name,
        path=str(artifact.folder),
        model=artifact.manifest.model.name,
        images=len(pictures),
        layers=layers,
        expected_db=expected,
        first_drift=next(low, None),
    )


def first_pictures(images: LabelledImages, session: Session) -> np.ndarray:
    """A few pictures for ``find_drift``, (N, H, W, 3) uint8 with N a multiple of the session's batch."""
    size = session.batch_size
    count = -(-SHOWN_IMAGES // size) * size
    pictures = next(images.batches(session.preprocessing, count)).pictures
    return pictures[np.arange(count) % len(pictures)]


def layer_outputs(model: nn.Module, images: torch.Tensor) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Output of every module of ``model`` by module path, in execution order; and who activates whom.

    Left out are outputs that a batch norm takes, as exporters fold it into the layer before; those that a
    module only hands on; and zeros. Of a tuple the tensors come one by one, as ``path[0]`` and ``path[1]``;
    a module that runs again gives ``path#2``. The second result maps a layer to the one without weights
    (ReLU, GELU...) that takes its output directly, as kernels often fuse the two.
    """
    recorder = _Recorder()
    with torch.no_grad(), recorder.attached(model):
        model(images)
    return {name: value for name, value in recorder.outputs.items() if value.any()}, recorder.activations


class _Recorder:
    """Hooks that keep a copy of what the modules of a model give."""

    def __init__(self) -> None:
        self.outputs: dict[str, np.ndarray] = {}
        self.activations: dict[str, str] = {}
        self._names: dict[tuple[int, int], str] = {}
        self._alive: list[torch.Tensor] = []

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[None]:
        handles = []
        for name, module in model.named_modules():
            handles.append(module.register_forward_hook(partial(self._after, name or "logits")))
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                handles.append(module.register_forward_pre_hook(self._before_norm))
            elif not module.state_dict() and not any(module.children()):
                handles.append(module.register_forward_pre_hook(partial(self._before_activation, name)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _before_norm(self, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self.outputs.pop(self._names.get(_identity(inputs[0]), ""), None)

    def _before_activation(self, name: str, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if len(inputs) == 1 and _identity(inputs[0]) in self._names:
            self.activations[self._names[_identity(inputs[0])]] = name

    def _after(self, name: str, module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, tuple | list):
            for index, part in enumerate(output):
                self._after(f"{name}[{index}]", module, inputs, part)
        elif isinstance(output, torch.Tensor) and _identity(output) not in self._names:
            calls = sum(known.split("#")[0] == name for known in self._names.values())
            name = f"{name}#{calls + 1}" if calls else name
            self._names[_identity(output)] = name
            self._alive.append(output)
            self.outputs[name] = output.float().numpy().copy()


def _identity(tensor: torch.Tensor) -> tuple[int, int]:
    """Tells apart tensors, and what an in-place module makes of one; valid while the tensor lives."""
    return id(tensor), tensor._version


def _by_size(tensors: dict[str, np.ndarray]) -> dict[tuple[int, ...], dict[str, np.ndarray]]:
    grouped: dict[tuple[int, ...], dict[str, np.ndarray]] = {}
    for name, tensor in tensors.items():
        grouped.setdefault(_sizes(tensor), {})[name] = np.squeeze(tensor)
    return grouped


def _sizes(tensor: np.ndarray) -> tuple[int, ...]:
    return tuple(sorted(size for size in tensor.shape if size != 1))


def _add(found: dict[Place, _Match], output: np.ndarray, candidates: dict[str, np.ndarray]) -> None:
    """Add the error of every candidate, in every order of its axes that gives the layer's shape."""
    wanted = np.squeeze(output)
    signal = float(np.square(wanted, dtype=np.float64).sum())
    for name, tensor in candidates.items():
        for order in permutations(range(tensor.ndim)):
            if tuple(tensor.shape[axis] for axis in order) == wanted.shape:
                match = found.setdefault((name, order), _Match())
                match.signal += signal
                match.noise += float(np.square(tensor.transpose(order) - wanted).sum(dtype=np.float64))


def _best(layer: str, found: dict[Place, _Match]) -> LayerDrift:
    (tensor, _), match = min(found.items(), key=lambda item: item[1].noise)
    return LayerDrift(layer=layer, tensor=tensor, sqnr_db=sqnr_db(match.signal, match.noise), computed=True)


def _mark_folded(layers: list[LayerDrift], activations: dict[str, str], expected_db: float) -> None:
    """Mark the layers whose output the artifact does not hold, though it is right further on.

    That is so when the activation of a layer is far better than the layer, or when nothing resembles
    the layer as expected while most later ones are right.
    """
    levels = {layer.layer: layer.sqnr_db for layer in layers}
    in_order = list(levels.values())
    for index, layer in enumerate(layers[:-1]):
        enough = layer.sqnr_db + FOLDED_DB
        activated = levels.get(activations.get(layer.layer, ""), -np.inf)
        later = float(np.median(in_order[index + 1 :]))
        unlike = layer.sqnr_db < expected_db <= later and later >= enough
        layer.computed = not (unlike or activated >= enough)
