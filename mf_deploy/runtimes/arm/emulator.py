"""One emulated process with a model in it: inputs go in through a pipe, outputs or counts come back."""

import signal
import subprocess
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol, Self

import numpy as np

from mf_deploy.errors import GATE_FAILED, MfDeployError
from mf_deploy.runtimes.arm.guest.messages import receive, send
from mf_deploy.runtimes.arm.lab import RUNNER

CLASSES = ("fmla", "dot", "mmla", "simd", "memory", "branch", "other")  # as in count.c
NO_CALLS, SURVEY = 0, 1  # as in count.c
SUFFIXES = {".onnx": "onnx", ".tflite": "tflite"}

Counts = dict[str, int]


class Machine(Protocol):
    """What an emulated process runs on: an ARM system of its own, or this machine as another processor."""

    def command(self, cpu: str, arguments: Sequence[str | Path], counts: Path | None = None) -> list[str]:
        """The command that runs Python with ``arguments`` as ``cpu``, and counts into a file if asked to."""

    def environment(self) -> dict[str, str]:
        """The variables of the process."""


@dataclass(frozen=True)
class Tensor:
    """An input or output of the model file, as its engine has it."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    quantization: tuple[float, int]

    @property
    def details(self) -> dict[str, Any]:
        """What LiteRT's own Python interface calls the details of a tensor."""
        return {"dtype": self.dtype, "quantization": self.quantization}


@dataclass(frozen=True)
class Lap:
    """A reading of the clock by the guest: when, and the instructions until then."""

    ns: int
    counts: Counts


@dataclass(frozen=True)
class Site:
    """A call instruction: how often it ran, and the instructions until its calls returned."""

    address: int
    calls: int
    instructions: int


@dataclass
class Region:
    """One counted inference; see count.c."""

    counts: Counts = field(default_factory=dict)
    laps: list[Lap] = field(default_factory=list)
    sites: list[Site] = field(default_factory=list)
    calls: list[Counts] = field(default_factory=list)


class Emulator:
    """A model file, open in its engine on an emulated ``cpu`` of ``machine``.

    Args:
        model: a .onnx or .tflite file.
        threads: compute threads of the engine; 1 where instructions are counted.
        counting: load the counter, which slows the emulation down.
        profile: the engine's profiler is on, for ``operators``; it cannot ``run`` then.
        apart: each model has a copy of the process to itself, so that counts do not depend on the models
            before it.

    Raises:
        MfDeployError: the engine refuses the model, or dies.
    """

    def __init__(
        self,
        machine: Machine,
        cpu: str,
        model: Path,
        threads: int = 1,
        counting: bool = False,
        profile: bool = False,
        apart: bool = False,
    ) -> None:
        self.cpu, self.model, self._threads, self._profiles = cpu, model, threads, profile
        self._apart, self._copied = apart, False
        _require_model(model)
        self._scratch = tempfile.TemporaryDirectory(prefix="mf-arm-")
        self._said = Path(self._scratch.name, "said")
        self._counts = Path(self._scratch.name, "counts") if counting else None
        with self._said.open("wb") as said:
            self._process = subprocess.Popen(
                machine.command(cpu, [RUNNER], self._counts),
                env=machine.environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
            )
        self.close = weakref.finalize(self, _end, self._process, self._scratch)
        self.open(model)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def open(self, model: Path) -> None:
        """Open another model in its engine, in place of the one before; a start of Python costs more.

        Raises:
            MfDeployError: as for the first one; the process is then gone.
        """
        self.model, engine = model, _require_model(model)
        profile = str(Path(self._scratch.name, "profile")) if self._profiles else None
        request = {"do": "open", "engine": engine, "model": str(model.absolute())}
        try:
            if self._copied:
                self._ask({"do": "end"})
            if self._apart:
                self._ask({"do": "apart", "engine": engine})
            self._copied = self._apart
            tensors, _ = self._ask(request | {"threads": self._threads, "profile": profile})
        except BaseException:
            self.close()
            raise
        self.inputs = [_tensor(described) for described in tensors.get("inputs", ())]
        self.outputs = [_tensor(described) for described in tensors.get("outputs", ())]

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """One inference; arrays in the order and dtypes of ``inputs`` and ``outputs``."""
        return self._ask({"do": "run"}, inputs)[1]

    def count(
        self, inputs: Sequence[np.ndarray], warmup: int = 1, runs: int = 3, calls: int = NO_CALLS
    ) -> list[Region]:
        """Instructions of each of ``runs`` inferences, after ``warmup`` uncounted ones.

        Args:
            calls: ``SURVEY`` fills in ``sites``; the address of a call instruction fills in ``calls``.
        """
        assert self._counts, "opened without counting"
        before = self._counts.stat().st_size
        self._ask({"do": "count", "warmup": warmup, "runs": runs, "calls": calls}, inputs)
        with self._counts.open() as lines:
            lines.seek(before)
            return _regions(lines)

    def operators(self) -> list[dict[str, Any]]:
        """What ran in the last counted inference, in order; the keys are those of guest/profiled.py.

        This ends the engine's profiling: nothing can run afterwards.
        """
        operators: list[dict[str, Any]] = self._ask({"do": "operators"})[0]["operators"]
        return operators

    def random_inputs(self, seed: int = 0) -> list[np.ndarray]:
        """Inputs of the model's shapes and dtypes: normal floats, integers of all values."""
        random = np.random.default_rng(seed)
        return [_random(random, tensor) for tensor in self.inputs]

    def _ask(
        self, request: dict[str, Any], arrays: Sequence[np.ndarray] = ()
    ) -> tuple[dict[str, Any], list[np.ndarray]]:
        process = self._process
        if not self.close.alive:
            raise self._failed("it was closed")
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            send(process.stdin, request, arrays)
            answer, outputs = receive(process.stdout)
        except (EOFError, BrokenPipeError, ValueError):
            raise self._failed(self._last_words()) from None
        if "error" in answer:
            raise self._failed(answer["error"].strip().splitlines()[0])
        return answer, outputs

    def _last_words(self) -> str:
        """How the process ended, and the last line that it printed."""
        code = self._process.wait()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        lines = self._said.read_bytes()[-4000:].decode(errors="replace").strip().splitlines()
        return f"the emulated process ended with {how}" + (f": {lines[-1][:200]}" if lines else "")

    def _failed(self, why: str) -> MfDeployError:
        return MfDeployError(
            f"{self.model.parent.name}/{self.model.name} fails on an emulated {self.cpu}",
            why,
            "The engine's kernels for it cannot run this model.",
            GATE_FAILED,
        )


def _require_model(model: Path) -> str:
    """The engine of a model file that is there."""
    engine = SUFFIXES.get(model.suffix)
    if engine is None or not model.is_file():
        why = "no such file" if engine else "not a .onnx or .tflite file"
        raise MfDeployError(f"Cannot emulate {model}", why, "Give a .onnx or .tflite file.")
    return engine


def _end(process: subprocess.Popen[bytes], scratch: tempfile.TemporaryDirectory[str]) -> None:
    process.kill()
    process.communicate()
    scratch.cleanup()


def _tensor(described: dict[str, Any]) -> Tensor:
    scale, zero_point = described.get("quantization", (0.0, 0))
    shape = tuple(size if isinstance(size, int) else 1 for size in described["shape"])
    return Tensor(described["name"], shape, np.dtype(described["dtype"]), (scale, zero_point))


def _random(random: np.random.Generator, tensor: Tensor) -> np.ndarray:
    if tensor.dtype.kind == "f":
        return random.standard_normal(tensor.shape).astype(tensor.dtype)
    limits = np.iinfo(tensor.dtype)
    return random.integers(limits.min, limits.max, tensor.shape, tensor.dtype, endpoint=True)


def _regions(lines: IO[str]) -> list[Region]:
    """The regions in what count.c wrote."""
    regions: list[Region] = []
    for line in lines:
        what, *words = line.split()
        numbers = [int(word) for word in words]
        if what == "begin":
            regions.append(Region())
        elif what == "lap":
            regions[-1].laps.append(Lap(numbers[0], _counts(numbers[1:])))
        elif what == "site":
            regions[-1].sites.append(Site(*numbers))
        elif what == "call":
            regions[-1].calls.append(_counts(numbers))
        else:
            regions[-1].counts = _counts(numbers)
    return regions


def _counts(numbers: list[int]) -> Counts:
    return dict(zip(CLASSES, numbers, strict=True))
