"""Read a checkpoint file that may come from anywhere, and refuse what is not plain weights.

Formats, told apart by their first bytes and not by the suffix: PyTorch's (``.pth``, ``.pt``,
``.pth.tar``; both the zip and the older format) and ``.safetensors``.
"""

import argparse
import json
import pickle
import re
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mf_deploy.artifact import sha256_of
from mf_deploy.errors import MfDeployError

MAX_CHECKPOINT_BYTES = 4 << 30

# Averaged weights come first: they are the ones whose accuracy is published.
STATE_KEYS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model")
LABEL_KEYS = ("classes", "class_names")
WRAPPERS = ("module.", "_orig_mod.")  # DataParallel and torch.compile put these before every key

_ZIP = b"PK\x03\x04"
_LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # PyTorch's magic number, pickled
_SAVE = "Save one with torch.save({'state_dict': model.state_dict()}, FILE)."

# Plain data that training scripts keep beside the weights: their arguments and a best metric.
_PLAIN_DATA: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("float64", "float32", "int64")),
    np._core.multiarray.scalar,  # type: ignore[attr-defined]
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),  # type: ignore[attr-defined]
]


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds: finite weights on the CPU, all floats as float32, keys without wrappers' prefixes.

    ``name`` is the file's name; ``classes`` the class names in index order, where the file has them.
    """

    name: str
    sha256: str
    state: dict[str, Tensor]
    classes: list[str] | None = None


def read_checkpoint(path: Path, state_key: str | None = None) -> Checkpoint:
    """Read ``path`` without running any code that it may contain.

    Args:
        state_key: which entry of a checkpoint dict holds the weights, such as ``state_dict`` for the
            weights before averaging. Without it the first of ``STATE_KEYS`` that is there, or the
            whole dict where it is a state dict itself.

    Raises:
        MfDeployError: missing, empty, too large, truncated, of another format, with pickled code,
            without a state dict, or with NaN or infinite weights.
    """
    _check_file(path)
    contents, classes = _read_contents(path)
    state = _unwrapped(_check_tensors(path, _choose_state(path, contents, state_key)))
    return Checkpoint(path.name, sha256_of(path), state, classes)


def _check_file(path: Path) -> None:
    fix = "Check the path given to --checkpoint."
    if not path.exists():
        raise MfDeployError(f"Cannot read {path}", "no such file", fix)
    if not path.is_file():
        raise MfDeployError(f"Cannot read {path}", "it is not a file", fix)
    size = path.stat().st_size
    if size == 0:
        raise MfDeployError(f"Cannot read {path}", "it is empty", "Download it again.")
    if size > MAX_CHECKPOINT_BYTES:
        raise _too_large(path)


def _read_contents(path: Path) -> tuple[Any, list[str] | None]:
    """The unpickled object or the tensors of the file, and its class names."""
    try:
        with path.open("rb") as stream:
            start = stream.read(16)
    except OSError as error:
        raise MfDeployError(
            f"Cannot read {path}", error.strerror or str(error), "Check its permissions."
        ) from None
    if start[8:9] == b"{":
        return _read_safetensors(path)
    if start.startswith(_ZIP):
        _check_zip(path)
    elif start.startswith(b"\x80") and not start.startswith(_LEGACY[: len(start)]):
        raise MfDeployError(f"Refused {path}", "a plain pickle, which can run code when it is loaded", _SAVE)
    elif not start.startswith(_LEGACY[: len(start)]):
        raise MfDeployError(f"Cannot read {path}", "neither a PyTorch nor a safetensors file", _SAVE)
    contents = _read_torch(path)
    if isinstance(contents, dict):
        return contents, _class_names(next((contents[key] for key in LABEL_KEYS if key in contents), None))
    return contents, None


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], list[str] | None]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, error) from None
    names = next((metadata[key] for key in LABEL_KEYS if key in metadata), "null")
    try:
        return state, _class_names(json.loads(names))
    except ValueError:
        return state, None


def _check_zip(path: Path) -> None:
    """Refuse what PyTorch would not say clearly: half a file, a TorchScript program, a zip bomb."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise _damaged(path, error) from None
    names = {entry.filename.rpartition("/")[2] for entry in entries}
    if "constants.pkl" in names:
        raise MfDeployError(f"Refused {path}", "a TorchScript program, not a checkpoint", _SAVE)
    if "data.pkl" not in names:
        raise MfDeployError(f"Cannot read {path}", "a zip archive, but not one of PyTorch's", _SAVE)
    if sum(entry.file_size for entry in entries) > MAX_CHECKPOINT_BYTES:
        raise _too_large(path)


def _read_torch(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(_PLAIN_DATA), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL ([\w.]+)", str(error)) or re.search(r"function ([\w.]+)", str(error))
        if code is None:
            raise _damaged(path, error) from None
        why = f"it contains pickled code ({code[1]}) that would run when it is loaded"
        raise MfDeployError(f"Refused {path}", why, f"Ask for a file of weights only. {_SAVE}") from None
    except Exception as error:  # a hostile pickle can make the unpickler fail in any way
        raise _damaged(path, error) from None


def _class_names(value: Any) -> list[str] | None:
    if isinstance(value, (list, tuple)) and value and all(isinstance(name, str) for name in value):
        return list(value)
    return None


def _choose_state(path: Path, contents: Any, state_key: str | None) -> dict[Any, Any]:
    if not isinstance(contents, dict):
        why = f"it holds a {type(contents).__name__} instead of a dict"
        raise MfDeployError(f"No state dict in {path}", why, _SAVE)
    if state_key is not None:
        found = contents.get(state_key)
    else:
        found = next((contents[key] for key in STATE_KEYS if isinstance(contents.get(key), dict)), None)
        if found is None and contents and all(isinstance(value, Tensor) for value in contents.values()):
            found = contents
    if not isinstance(found, dict) or not found:
        entries = ", ".join(str(key) for key in list(contents)[:8]) or "nothing"
        why = f"no {state_key or 'state_dict'} among its entries: {entries}"
        raise MfDeployError(f"No state dict in {path}", why, _SAVE)
    return found


def _check_tensors(path: Path, state: dict[Any, Any]) -> dict[str, Tensor]:
    total = 0
    for key, value in state.items():
        plain = isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized
        if not isinstance(key, str) or not plain or value.is_complex():
            raise MfDeployError(f"No state dict in {path}", f"{key} is not a tensor of real numbers", _SAVE)
        total += value.numel() * max(4, value.element_size())
    if total > MAX_CHECKPOINT_BYTES:
        raise _too_large(path)
    checked = {}
    for key, value in state.items():
        value = value.detach()
        checked[key] = (value.float() if value.is_floating_point() else value).contiguous()
        if not torch.isfinite(checked[key]).all():
            why = f"NaN or infinity in {key}, the first of the tensors that are not finite"
            raise MfDeployError(
                f"Refused {path}", why, "The training diverged or the file is damaged: take another."
            )
    return checked


def _unwrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    while prefix := next((p for p in WRAPPERS if all(key.startswith(p) for key in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _damaged(path: Path, error: Exception) -> MfDeployError:
    detail = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
    return MfDeployError(f"Cannot read {path}", f"truncated or damaged ({detail})", "Download it again.")


def _too_large(path: Path) -> MfDeployError:
    limit = f"more than {MAX_CHECKPOINT_BYTES >> 30} GiB"
    return MfDeployError(f"Refused {path}", limit, "Save the weights alone, without the optimizer.")
