"""How a MIL operation becomes a torch function: the table that the families of operations fill."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coremltools.converters.mil.mil import Operation

Kernel = Callable[..., Any]
"""Takes the tensors that a rule names, None where an optional one is absent; returns one or several."""

Builder = Callable[["Operation"], Kernel]


@dataclass(frozen=True)
class Rule:
    """How to run one kind of operation.

    ``tensors`` names the inputs that are passed to the kernel, in this order; a list-valued input is
    passed item by item. Everything else is read once, when ``build`` makes the kernel. ``moves_only``
    marks a kernel whose results are values of its inputs, so that there is nothing to round.
    """

    build: Builder
    tensors: tuple[str, ...] = ("x",)
    moves_only: bool = False


RULES: dict[str, Rule] = {}


def rule(
    *kinds: str, tensors: tuple[str, ...] = ("x",), moves_only: bool = False
) -> Callable[[Builder], Builder]:
    """Register the decorated builder for the operations ``kinds``."""

    def register(build: Builder) -> Builder:
        RULES.update(dict.fromkeys(kinds, Rule(build, tensors, moves_only)))
        return build

    return register


def register_function(kind: str, kernel: Kernel, *tensors: str, moves_only: bool = False) -> None:
    """Register an operation that has no parameters."""
    RULES[kind] = Rule(lambda operation: kernel, tensors or ("x",), moves_only)
