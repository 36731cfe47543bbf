"""Read a Core ML package: the protobuf and, from it, coremltools' own view of the MIL program."""

import functools
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mf_deploy.errors import MfDeployError, require

if TYPE_CHECKING:
    from coremltools.converters.mil.mil import Operation
    from coremltools.models import MLModel


@contextmanager
def quiet_coremltools() -> Iterator[None]:
    """Within it, coremltools and what it imports draw no progress bars and log and warn of nothing.

    Errors are not touched. Everything is put back on leaving, so the caller's own logging goes on.
    """
    import tqdm

    bar, level = tqdm.tqdm.__init__, logging.root.manager.disable
    logging.disable(max(level, logging.WARNING))
    tqdm.tqdm.__init__ = functools.partialmethod(bar, disable=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        tqdm.tqdm.__init__ = bar
        logging.disable(level)


@dataclass(frozen=True)
class MilProgram:
    """The ``main`` function of a package.

    ``operations`` are in execution order, constants among them; an operation has ``op_type``, ``inputs``
    (name to variable or list of variables) and ``outputs``; a variable has ``name``, ``shape``, ``dtype``
    and, if it is constant, ``val``.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    operations: tuple["Operation", ...]


def load_package(package: Path) -> MilProgram:
    """Read ``package`` (a ``.mlpackage`` folder) with its weights.

    Raises:
        MfDeployError: coremltools is missing, or this is not an ML Program that it can read.
    """
    require("coremltools", "coreml")
    with quiet_coremltools():
        from coremltools.models import MLModel

        try:
            return read_program(MLModel(str(package), skip_model_load=True), package.name)
        except Exception as error:  # coremltools raises whatever protobuf, the file system or an assert gives
            reason = str(error).strip().splitlines()
            raise MfDeployError(
                f"Cannot read {package}",
                f"not a Core ML ML Program ({reason[0] if reason else type(error).__name__})",
                "Export it again with mf-export --target coreml --force.",
            ) from error


def read_program(model: "MLModel", name: str) -> MilProgram:
    """The program of a model that coremltools holds; ``name`` is for messages."""
    from coremltools.converters.mil.frontend.milproto.load import load

    spec = model.get_spec()
    main = load(spec, spec.specificationVersion, model.weights_dir).functions["main"]
    outputs = tuple(variable.name for variable in main.outputs)
    return MilProgram(name, tuple(main.inputs), outputs, tuple(main.operations))


def parameter(operation: "Operation", name: str) -> Any:
    """The constant parameter ``name``: a Python scalar or string, an array, or None where it is not set.

    Raises:
        MfDeployError: the parameter is computed by the program, which a static program never needs.
    """
    variable = operation.inputs.get(name)
    if variable is None:
        return None
    if variable.val is None:
        raise unsupported(operation, f"{name} is not a constant")
    value = variable.val
    return value.item() if getattr(value, "shape", None) == () else value


def integers(operation: "Operation", name: str) -> list[int] | None:
    """The constant parameter ``name`` as a list of ints, or None where it is not set."""
    value = parameter(operation, name)
    return None if value is None else [int(item) for item in value]


def unsupported(operation: "Operation", why: str) -> MfDeployError:
    return MfDeployError(
        f"Cannot run the MIL operation {operation.op_type!r} ({operation.name})",
        why,
        "Run this package on a Mac, or export the model without this operation.",
    )
