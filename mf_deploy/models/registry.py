"""The models by name: what they take, what the papers say of them, and how to build them."""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor, nn

from mf_deploy.errors import MfDeployError, nearest
from mf_deploy.preprocessing import Preprocessing


@dataclass(frozen=True)
class ModelSpec:
    """One buildable classifier.

    ``build(num_classes)`` returns the reference model with untrained weights. ``published_top1`` is
    in percent on ImageNet, ``published_params_m`` and ``published_macs_m`` in millions. ``translate``
    renames the keys of other libraries' state dicts of the same model to ours.
    """

    name: str
    build: Callable[[int], nn.Module]
    source: str
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    num_classes: int = 1000
    published_top1: float | None = None
    published_params_m: float | None = None
    published_macs_m: float | None = None
    factory: str | None = None
    translate: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None


_REGISTRY: dict[str, ModelSpec] = {}


def register(spec: ModelSpec) -> None:
    """Add a model; called once per model by the file that defines it."""
    _REGISTRY[spec.name] = spec


def list_models() -> list[ModelSpec]:
    """All registered models, in the order in which their files register them."""
    _load_families()
    return list(_REGISTRY.values())


def get_spec(name: str) -> ModelSpec:
    """The model called ``name``.

    Raises:
        MfDeployError: no such model; the message names the nearest one.
    """
    _load_families()
    if name not in _REGISTRY:
        raise MfDeployError(
            f"Unknown model {name!r}",
            "it is not in the registry",
            f"{nearest(name, list(_REGISTRY))} See mf-deploy models, or pass --model package.module:factory.",
        )
    return _REGISTRY[name]


def _load_families() -> None:
    from mf_deploy.models import mobile_former, mobilenet_v3  # noqa: F401  (importing registers)
