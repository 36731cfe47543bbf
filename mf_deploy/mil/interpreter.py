"""Run a MIL program on torch, where Apple's runtime does not exist.

It checks what the converter and the quantizer wrote, not Apple's kernels. Arithmetic is in fp32; a result
that the program declares as fp16 is rounded to fp16 right after its operation, so weights, activations and
overflow are those of fp16 while sums inside one operation are kept in fp32, as accelerators do. int8 values
between ``quantize`` and ``dequantize`` are exact. Compressed weights are expanded once, at load.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mf_deploy.errors import MfDeployError
from mf_deploy.mil import elementwise, layers, tensors  # noqa: F401  (importing fills RULES)
from mf_deploy.mil.program import MilProgram, load_package, unsupported
from mf_deploy.mil.rules import RULES, Kernel

if TYPE_CHECKING:
    from coremltools.converters.mil.mil import Operation, Var

Watch = Callable[[str, torch.Tensor], None]
"""Called with the name and value of each float tensor that the program computes, in execution order."""

ABSENT = 0
"""The slot of an optional input that is not given; it always holds None."""


@dataclass(frozen=True, slots=True)
class _Step:
    """One operation: ``kernel`` on the slots ``arguments`` fills ``results``, then ``done`` are freed."""

    kernel: Kernel
    arguments: tuple[int, ...]
    results: tuple[int, ...]
    names: tuple[str, ...]
    rounded: tuple[bool, ...]
    shown: bool
    done: tuple[int, ...] = ()


class Interpreter:
    """A MIL program compiled to a list of torch calls.

    Only what the requested outputs need is compiled and run. One call at a time.

    Args:
        package: a ``.mlpackage``, or a program that is already loaded.
        outputs: the tensors to return, by name; by default the program's own outputs.

    Raises:
        MfDeployError: an unreadable package, an unknown output, or an operation that is not supported.
    """

    def __init__(self, package: Path | MilProgram, outputs: Sequence[str] | None = None) -> None:
        program = package if isinstance(package, MilProgram) else load_package(package)
        self.inputs = program.inputs
        self.outputs = tuple(outputs or program.outputs)
        self._values: list[Any] = [None]
        self._slots: dict[str, int] = {}
        for name in self.inputs:
            self._new_slot(name)
        needed = _needed(program, self.outputs)
        plan = [self._compile(operation) for operation in needed]
        self._steps = self._free_after_last_use([step for step in plan if step is not None])

    def run(self, inputs: dict[str, np.ndarray], watch: Watch | None = None) -> dict[str, np.ndarray]:
        """One inference.

        Args:
            inputs: one array per program input, float32; an image as (1, 3, H, W) with values 0 to 255.
            watch: sees what is computed on the way.

        Returns:
            the outputs by name, float32.
        """
        values = self._values.copy()
        for name in self.inputs:
            values[self._slots[name]] = torch.from_numpy(np.ascontiguousarray(inputs[name], dtype=np.float32))
        with torch.inference_mode():
            for step in self._steps:
                _execute(step, values, watch)
        return {name: values[self._slots[name]].float().numpy() for name in self.outputs}

    def _new_slot(self, name: str, value: torch.Tensor | None = None) -> int:
        self._values.append(value)
        self._slots[name] = len(self._values) - 1
        return self._slots[name]

    def _compile(self, operation: "Operation") -> _Step | None:
        """A step, or None for an operation that is a constant."""
        if operation.op_type == "const" or operation.op_type.startswith("constexpr_"):
            return None
        rule = RULES.get(operation.op_type)
        if rule is None:
            raise unsupported(operation, "the interpreter does not know it")
        arguments = tuple(
            self._slot_of(variable)
            for name in rule.tensors
            for variable in _as_list(operation.inputs.get(name))
        )
        results = tuple(self._new_slot(variable.name) for variable in operation.outputs)
        rounded = tuple(not rule.moves_only and _is_fp16(variable) for variable in operation.outputs)
        names = tuple(variable.name for variable in operation.outputs)
        shown = operation.op_type != "quantize"  # its integers are seen as floats after dequantize
        return _Step(rule.build(operation), arguments, results, names, rounded, shown)

    def _slot_of(self, variable: "Var | None") -> int:
        if variable is None:
            return ABSENT
        if variable.name not in self._slots:
            return self._new_slot(variable.name, _constant(variable))
        return self._slots[variable.name]

    def _free_after_last_use(self, steps: list[_Step]) -> list[_Step]:
        kept = {self._slots[name] for name in self.outputs}
        kept |= {slot for slot, value in enumerate(self._values) if value is not None} | {ABSENT}
        planned = []
        for step in reversed(steps):
            done = (set(step.arguments) | set(step.results)) - kept
            kept |= done
            planned.append(replace(step, done=tuple(done)))
        return planned[::-1]


def _execute(step: _Step, values: list[Any], watch: Watch | None) -> None:
    result = step.kernel(*[values[slot] for slot in step.arguments])
    results = result if isinstance(result, tuple) else (result,)
    for slot, value, rounded, name in zip(step.results, results, step.rounded, step.names, strict=True):
        values[slot] = value.to(torch.float16).to(torch.float32) if rounded else value
        if watch is not None and step.shown and value.is_floating_point():
            watch(name, values[slot])
    for slot in step.done:
        values[slot] = None


def _needed(program: MilProgram, outputs: Sequence[str]) -> list["Operation"]:
    """The operations that ``outputs`` depend on, in execution order."""
    wanted = set(outputs)
    needed = []
    for operation in reversed(program.operations):
        if wanted.isdisjoint(variable.name for variable in operation.outputs):
            continue
        needed.append(operation)
        for value in operation.inputs.values():
            wanted.update(variable.name for variable in _as_list(value) if variable is not None)
    produced = {variable.name for operation in needed for variable in operation.outputs} | set(program.inputs)
    missing = [name for name in outputs if name not in produced]
    if missing:
        raise MfDeployError(
            f"Cannot run {program.name}",
            f"it has no tensor called {missing[0]}",
            f"Its outputs are: {', '.join(program.outputs)}.",
        )
    return needed[::-1]


def _constant(variable: "Var") -> torch.Tensor:
    operation = variable.op
    value = operation.materialized_val_inference() if variable.val is None else variable.val
    if value is None:
        raise unsupported(operation, "its value cannot be computed")
    array = np.array(value)
    kind = {"f": np.float32, "i": np.int64, "u": np.int64, "b": np.bool_}.get(array.dtype.kind)
    if kind is None:
        raise unsupported(operation, f"a constant of type {array.dtype} cannot be used as a tensor")
    return torch.from_numpy(array.astype(kind))


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _is_fp16(variable: "Var") -> bool:
    from coremltools.converters.mil.mil import types

    return variable.dtype == types.fp16
