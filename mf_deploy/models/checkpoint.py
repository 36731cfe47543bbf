"""Put a checkpoint's weights into the model they belong to, or say which model that is."""

from functools import lru_cache
from pathlib import Path

from torch import Tensor, nn

from mf_deploy.artifact import ModelSource
from mf_deploy.errors import MfDeployError
from mf_deploy.models.checkpoint_file import Checkpoint, read_checkpoint
from mf_deploy.models.empty import build_empty
from mf_deploy.models.registry import ModelSpec, get_spec, list_models
from mf_deploy.models.stored import build
from mf_deploy.models.user import call_factory, is_factory

__all__ = [
    "Checkpoint",
    "count_checkpoint_classes",
    "fitting_models",
    "load_checkpoint_",
    "load_model",
    "read_checkpoint",
]

SHOWN_DIFFERENCES = 3
COUNTER = "num_batches_tracked"  # of no use in inference, and absent from some files

Shapes = dict[str, tuple[int, ...]]


def load_model(
    name: str, checkpoint: Path | None = None, num_classes: int | None = None, state_key: str | None = None
) -> nn.Module:
    """A model in eval mode whose parameters need no gradients.

    Args:
        name: a registered model, or ``package.module:factory`` for a user's.
        checkpoint: without one the weights are random, the same ones in every call, and those of a
            user's model are what the factory gives.
        num_classes: read from the checkpoint where there is one, and must then agree with it.
        state_key: which entry of the checkpoint holds the weights; see ``read_checkpoint``.

    Raises:
        MfDeployError: an unknown model, or a checkpoint that cannot be read or does not fit.
    """
    if is_factory(name):
        return _load_user_model(name, checkpoint, num_classes, state_key)
    spec = get_spec(name)
    if checkpoint is None:
        return _frozen(build(ModelSource(name=name, num_classes=num_classes or spec.num_classes)))
    contents = read_checkpoint(checkpoint, state_key)
    classes = count_checkpoint_classes(contents, spec, num_classes)
    model = build(ModelSource(name=name, num_classes=classes))
    load_checkpoint_(model, contents, spec)
    return _frozen(model)


def load_checkpoint_(model: nn.Module, checkpoint: Checkpoint, spec: ModelSpec) -> None:
    """Copy the checkpoint's weights into ``model``; all of them must fit.

    Raises:
        MfDeployError: keys or shapes differ; the message names the first ones, and the registered
            models that would fit.
    """
    state = _translated(checkpoint, spec)
    expected = model.state_dict()
    differences = _differences(_shapes_of(state), _shapes_of(expected))
    if differences:
        rest = len(differences) - SHOWN_DIFFERENCES
        why = "; ".join(differences[:SHOWN_DIFFERENCES]) + (
            f"; and {rest} more keys differ" if rest > 0 else ""
        )
        raise MfDeployError(f"{checkpoint.name} does not fit {spec.name}", why, _advice(checkpoint))
    counters = {key: value for key, value in expected.items() if key.endswith(COUNTER)}
    model.load_state_dict(counters | state, strict=True)


def count_checkpoint_classes(checkpoint: Checkpoint, spec: ModelSpec, num_classes: int | None = None) -> int:
    """The class count of a checkpoint, from the shape of the classifier's weights.

    A checkpoint without the classifier of ``spec`` counts as ``num_classes`` or the usual number:
    loading it names the keys that differ.

    Raises:
        MfDeployError: another count than ``num_classes``, or than the checkpoint has class names.
    """
    found = _classes_in(_shapes_of(_translated(checkpoint, spec)), spec)
    if found is None:
        return num_classes or spec.num_classes
    if num_classes not in (None, found):
        raise MfDeployError(
            f"{checkpoint.name} has {found} classes",
            f"{num_classes} were asked for",
            "Leave out --num-classes: it is read from the checkpoint.",
        )
    if checkpoint.classes is not None and len(checkpoint.classes) != found:
        raise MfDeployError(
            f"{checkpoint.name} contradicts itself",
            f"{len(checkpoint.classes)} class names for {found} classes",
            "Correct the list of classes in the checkpoint.",
        )
    return found


def fitting_models(checkpoint: Checkpoint) -> list[str]:
    """The registered models whose keys and shapes are the checkpoint's."""
    names = []
    for spec in list_models():
        shapes = _shapes_of(_translated(checkpoint, spec))
        classes = _classes_in(shapes, spec)
        if classes is not None and not _differences(shapes, _model_shapes(spec, classes)):
            names.append(spec.name)
    return names


def _load_user_model(
    factory: str, checkpoint: Path | None, num_classes: int | None, state_key: str | None
) -> nn.Module:
    if num_classes is not None:
        raise MfDeployError(
            f"Cannot set the classes of {factory}", "its factory decides", "Leave out --num-classes."
        )
    contents = None if checkpoint is None else read_checkpoint(checkpoint, state_key)
    model = call_factory(factory)
    if contents is not None:
        spec = ModelSpec(name=factory, build=lambda _: call_factory(factory), source=factory, factory=factory)
        load_checkpoint_(model, contents, spec)
    return _frozen(model)


def _frozen(model: nn.Module) -> nn.Module:
    return model.eval().requires_grad_(False)


def _translated(checkpoint: Checkpoint, spec: ModelSpec) -> dict[str, Tensor]:
    return checkpoint.state if spec.translate is None else spec.translate(checkpoint.state)


def _shapes_of(state: dict[str, Tensor]) -> Shapes:
    """Shapes by key, without the counters of batch normalisation."""
    return {key: tuple(value.shape) for key, value in state.items() if not key.endswith(COUNTER)}


@lru_cache(maxsize=64)
def _model_shapes(spec: ModelSpec, num_classes: int) -> Shapes:
    return _shapes_of(build_empty(spec, num_classes).state_dict())


def _classes_in(shapes: Shapes, spec: ModelSpec) -> int | None:
    """The size, in ``shapes``, of the first dimension that grows with the class count of the model."""
    if spec.factory is not None:
        return None
    two, three = _model_shapes(spec, 2), _model_shapes(spec, 3)
    for key, shape in two.items():
        if shape != three[key] and len(shapes.get(key, ())) == len(shape):
            axis = next(axis for axis, size in enumerate(shape) if size != three[key][axis])
            return shapes[key][axis]
    return None


def _differences(found: Shapes, expected: Shapes) -> list[str]:
    """One phrase a key that differs, in the order of the model, then of the file."""
    phrases = []
    for key, shape in expected.items():
        if key not in found:
            phrases.append(f"{key} is missing in the file")
        elif found[key] != shape:
            phrases.append(f"{key} is {_times(found[key])} in the file, {_times(shape)} in the model")
    return phrases + [f"{key} is not in the model" for key in found if key not in expected]


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a scalar"


def _advice(checkpoint: Checkpoint) -> str:
    names = fitting_models(checkpoint)
    return f"It fits {' or '.join(names)}." if names else "No registered model fits it: see mf-deploy models."
