"""Instructions of one inference: in all, and by operator."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from mf_deploy.errors import GATE_FAILED, MfDeployError
from mf_deploy.runtimes.arm.emulator import CLASSES, SURVEY, Counts, Emulator
from mf_deploy.runtimes.arm.lab import Lab
from mf_deploy.runtimes.arm.laps import operator_laps

MAX_UNEXPLAINED = 0.05  # of the instructions, on top of what each inference costs whatever the model
EACH_INFERENCE = 100_000


@dataclass(frozen=True)
class Operator:
    """One operator of the graph that the engine really runs, after its own fusions."""

    kind: str
    name: str
    shape: tuple[int, ...]
    counts: Counts


def total(counts: Counts) -> int:
    """Instructions of all classes together."""
    return sum(counts.values())


def count_inference(lab: Lab, cpu: str, model: Path, runs: int = 3) -> tuple[list[Counts], list[np.ndarray]]:
    """Instructions of each of ``runs`` inferences with one thread, and the random input that they had.

    One inference goes before them, so that what an engine does once is not in the counts.
    """
    with Emulator(lab, cpu, model, counting=True) as emulator:
        inputs = emulator.random_inputs()
        return [region.counts for region in emulator.count(inputs, runs=runs)], inputs


class Counter:
    """Counts inferences of many models in one emulated process, which starts with the first of them."""

    def __init__(self, lab: Lab, cpu: str) -> None:
        self.lab, self.cpu = lab, cpu
        self._emulator: Emulator | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._emulator is not None:
            self._emulator.close()

    def instructions(self, model: Path) -> int:
        """Of one inference with one thread on a random input, after an uncounted one.

        Raises:
            MfDeployError: the engine refuses the model, or dies.
        """
        if self._emulator is None:
            self._emulator = Emulator(self.lab, self.cpu, model, counting=True, apart=True)
        else:
            self._emulator.open(model)
        region = self._emulator.count(self._emulator.random_inputs(), runs=1)[0]
        return total(region.counts)


def median(counts: Sequence[Counts]) -> Counts:
    """The counts of the inference with the median total."""
    return sorted(counts, key=total)[len(counts) // 2]


def count_operators(
    lab: Lab, cpu: str, model: Path, inputs: Sequence[np.ndarray], whole: Counts
) -> list[Operator]:
    """Instructions of each operator of one inference, in the order of execution.

    ONNX: without the profiler, which would multiply the counts of small operators; it only gives the names.
    The executor calls each operator from one place in its code, which is found by the number of calls.
    TFLite: with the profiler, whose reading of the clock adds about 100 instructions to each operator.

    Args:
        whole: the counts of an inference without the profiler; the operators together must be about as many.

    Raises:
        MfDeployError: the engine ran in a way that does not explain the instructions that were counted.
    """
    with Emulator(lab, cpu, model, counting=True, profile=True) as emulator:
        laps = emulator.count(inputs, runs=1)[0].laps
        described = emulator.operators()
    try:
        if model.suffix == ".onnx":
            counts = _by_call(lab, cpu, model, inputs, len(described))
        else:
            ranges = operator_laps(described, [lap.ns for lap in laps])
            counts = [_between(laps[first].counts, laps[last].counts) for first, last in ranges]
    except ValueError as error:
        raise _unexplained(model, str(error)) from None
    explained = sum(total(of) for of in counts)
    if abs(explained - total(whole)) > EACH_INFERENCE + MAX_UNEXPLAINED * total(whole):
        raise _unexplained(model, f"the operators took {explained} of {total(whole)} instructions")
    return [
        Operator(of["kind"], of["name"], tuple(of["shape"]), count)
        for of, count in zip(described, counts, strict=True)
    ]


def _by_call(lab: Lab, cpu: str, model: Path, inputs: Sequence[np.ndarray], operators: int) -> list[Counts]:
    """Instructions of each call from the place that makes ``operators`` calls and spends most in them."""
    with Emulator(lab, cpu, model, counting=True) as emulator:
        sites = emulator.count(inputs, runs=1, calls=SURVEY)[0].sites
        candidates = [site for site in sites if site.calls == operators]
        if not candidates:
            raise ValueError(f"{operators} operators, but no place in the engine's code makes so many calls")
        busiest = max(candidates, key=lambda site: site.instructions)
        return emulator.count(inputs, warmup=0, runs=1, calls=busiest.address)[0].calls


def _between(start: Counts, end: Counts) -> Counts:
    return {name: end[name] - start[name] for name in CLASSES}


def _unexplained(model: Path, why: str) -> MfDeployError:
    return MfDeployError(
        f"Cannot tell the operators of {model} apart",
        why,
        "Count it without --per-op; this version of the engine works in another way.",
        GATE_FAILED,
    )
