"""Models that are not ours: ``--model package.module:factory``."""

import importlib
import operator
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import torch
from torch import Tensor, nn

from mf_deploy.errors import MfDeployError

_FIX = "Pass --model package.module:factory, a callable without arguments that returns an nn.Module."


def is_factory(name: str) -> bool:
    """Whether ``name`` means a user's factory rather than a model of the registry."""
    return ":" in name


def call_factory(factory: str) -> nn.Module:
    """Import ``package.module`` and call what stands behind the colon, without arguments.

    Modules of the current directory are found, too. The weights are those that the factory gives;
    where it draws them at random they are the same in every call. What it prints goes to standard error,
    for standard output may be JSON.

    Raises:
        MfDeployError: bad syntax, an import that fails, not a callable, an exception in the factory,
            or a result that is not an ``nn.Module``.
    """
    if not re.fullmatch(r"\w+(\.\w+)*:\w+(\.\w+)*", factory):
        raise MfDeployError(f"Bad model {factory!r}", "not of the form package.module:factory", _FIX)
    module_name, _, attribute = factory.partition(":")
    to_stderr = redirect_stdout(sys.stderr)
    with to_stderr, _current_directory_importable(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        function = _find(factory, module_name, attribute)
        try:
            model = function()
        except (Exception, SystemExit) as error:
            raise MfDeployError(f"{factory} failed", _describe(error), _FIX) from error
    if not isinstance(model, nn.Module):
        raise MfDeployError(
            f"{factory} is no model", f"it returned {type(model).__name__}, not nn.Module", _FIX
        )
    return model


def count_classes(model: nn.Module, name: str, input_size: int) -> int:
    """Run one zero image through the model and check that it gives (1, classes) logits.

    Raises:
        MfDeployError: it fails, or gives something else.
    """
    fix = f"It must map (N, 3, {input_size}, {input_size}) float32 to (N, classes); see --input-size."
    model.eval()
    try:
        with torch.no_grad():
            logits = model(torch.zeros(1, 3, input_size, input_size))
    except Exception as error:
        raise MfDeployError(f"{name} does not run", _describe(error), fix) from error
    if not isinstance(logits, Tensor):
        raise MfDeployError(f"{name} is no classifier", f"it gives a {type(logits).__name__}", fix)
    if logits.dim() != 2 or logits.shape[0] != 1 or not logits.is_floating_point():
        raise MfDeployError(f"{name} is no classifier", f"it gives {logits.dtype} {tuple(logits.shape)}", fix)
    return logits.shape[1]


def _find(factory: str, module_name: str, attribute: str) -> Callable[[], object]:
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise MfDeployError(f"Cannot import {module_name}", _describe(error), _FIX) from error
    try:
        function = operator.attrgetter(attribute)(module)
    except AttributeError:
        raise MfDeployError(f"Bad model {factory!r}", f"{module_name} has no {attribute}", _FIX) from None
    if not callable(function):
        raise MfDeployError(f"Bad model {factory!r}", f"{attribute} is not callable", _FIX)
    return function


@contextmanager
def _current_directory_importable() -> Iterator[None]:
    directory = str(Path.cwd())
    sys.path.insert(0, directory)
    try:
        yield
    finally:
        if directory in sys.path:
            sys.path.remove(directory)


def _describe(error: BaseException) -> str:
    first = (str(error).strip().splitlines() or ["no message"])[0]
    return f"{type(error).__name__}: {first}"
