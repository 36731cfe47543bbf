"""What a quantization aims for, and the plan of which module gets which precision."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from pydantic import Field

from mf_deploy.artifact import SCHEMES, Record, Scheme
from mf_deploy.errors import MfDeployError, nearest

Precision = Literal["int8", "w8a16", "w8", "fp32"]
"""Of one convolution or linear layer.

``int8``: int8 weights, and a product with activations that are int8 as well. ``w8a16``: int8 weights,
16-bit integer activations. ``w8``: int8 weights, arithmetic in float. ``fp32``: as it is.
"""

RangeMethod = Literal["minmax", "percentile", "mse"]
"""How the range of an activation is chosen from what calibration saw: everything, all but the outermost
0.01 % of the values, or the range whose rounding and clipping errors have the least mean square."""

Interface = Literal["float", "uint8", "int8"]
"""Type of the model's input and output tensors."""

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
RANGE_METHODS: tuple[RangeMethod, ...] = get_args(RangeMethod)
INTERFACES: tuple[Interface, ...] = get_args(Interface)

UNIT_DEPTH = 3
"""Modules that share so many leading names are one unit of a plan, e.g. ``features.3.global_block``."""


class QuantPlan(Record):
    """Module path → precision; every module follows the longest path that leads to it.

    Paths are those of the reference model (``features.3.global_block.ffn``); the empty path is the whole
    model. A plan holds for every target: each maps it to its own operators.
    """

    schema_version: Literal[1] = 1
    model: str = Field(description="name of the reference model")
    modules: dict[str, Precision]

    @classmethod
    def uniform(cls, model: str, precision: Precision) -> "QuantPlan":
        return cls(model=model, modules={"": precision})

    def precision(self, path: str) -> Precision:
        """The precision of the module at ``path``; fp32 where the plan says nothing."""
        names = path.split(".") if path else []
        for length in range(len(names), -1, -1):
            found = self.modules.get(".".join(names[:length]))
            if found is not None:
                return found
        return "fp32"

    def with_precision(self, paths: Iterable[str], precision: Precision) -> "QuantPlan":
        """The same plan with ``precision`` for ``paths``."""
        return self.model_copy(update={"modules": self.modules | dict.fromkeys(paths, precision)})

    def check(self, paths: Iterable[str]) -> None:
        """Refuse a plan that names modules the model does not have.

        Raises:
            MfDeployError: a path of the plan leads to none of ``paths``.
        """
        known = list(paths)
        for named in self.modules:
            if named and not any(path == named or path.startswith(named + ".") for path in known):
                raise MfDeployError(
                    f"Unknown module {named!r} in the plan",
                    "the model has no convolution or linear layer there",
                    nearest(named, sorted({*known, *map(unit_of, known)})),
                )


def unit_of(path: str) -> str:
    """The unit that the module at ``path`` belongs to: a bridge, a convolution, a dynamic ReLU."""
    return ".".join(path.split(".")[:UNIT_DEPTH])


UNIFORM: dict[Scheme, Precision] = {"w8a8": "int8", "w8a16": "w8a16", "w8": "w8", "mixed": "int8"}
QUANTIZED_SCHEMES: tuple[Scheme, ...] = (*UNIFORM, "fp16")


@dataclass(frozen=True)
class QuantPolicy:
    """What ``mf-quantize`` was asked for.

    ``scheme``: w8a8, w8a16 and w8 give every module the same precision unless there is a ``plan``; mixed
    follows one, or leaves it to a search; fp16 halves the floats and needs none. ``ranges``: how activation
    ranges are chosen; None: as measured best for the target.
    """

    scheme: Scheme = "w8a8"
    plan: QuantPlan | None = None
    ranges: RangeMethod | None = None

    def __post_init__(self) -> None:
        if self.scheme not in QUANTIZED_SCHEMES:
            why = "it is a float scheme" if self.scheme in SCHEMES else "it is not supported"
            raise MfDeployError(
                f"Unknown scheme {self.scheme!r}", why, nearest(self.scheme, list(QUANTIZED_SCHEMES))
            )

    @property
    def needs_ranges(self) -> bool:
        """Whether a module may get integer activations, for which calibration sets the ranges."""
        return bool({"int8", "w8a16"} & self._precisions)

    @property
    def computes_integers(self) -> bool:
        """Whether a module may get a product of int8 weights with int8 activations."""
        return "int8" in self._precisions

    @property
    def _precisions(self) -> set[Precision]:
        return set(self.plan.modules.values()) if self.plan else {UNIFORM.get(self.scheme, "fp32")}

    def plan_for(self, model: str) -> QuantPlan:
        """The plan given, or the uniform one of the scheme."""
        return self.plan or QuantPlan.uniform(model, UNIFORM[self.scheme])
