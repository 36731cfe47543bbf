"""An exported model on disk: the model file and the manifest that says what it is."""

import errno
import glob
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final, Literal, TypeVar, get_args

import psutil
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mf_deploy.errors import MfDeployError
from mf_deploy.preprocessing import Preprocessing

SCHEMA_VERSION: Final = 1
MANIFEST_NAME = "manifest.json"
MAX_JSON_BYTES = 16 << 20

_unfinished: dict[Path, tuple[Path, Path]] = {}  # folders being written: where, and what is set aside
_CANNOT_WRITE = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.ENAMETOOLONG,
)

Target = Literal["onnx", "coreml", "tflite"]
Scheme = Literal["fp32", "fp16", "w8", "w8a8", "w8a16", "mixed"]

TARGETS: tuple[Target, ...] = get_args(Target)
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)


class Record(BaseModel):
    """Base of everything that is written as JSON."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class TensorInfo(Record):
    """One input or output of an artifact."""

    name: str
    shape: tuple[int, ...]
    layout: Literal["NCHW", "NHWC", "NC"]
    dtype: Literal["float32", "float16", "uint8", "int8"]
    range: tuple[float, float] | None = Field(None, description="smallest and largest legal value")
    scale: float | None = Field(None, gt=0, description="of an integer: real = scale · (code - zero_point)")
    zero_point: int | None = None


class ModelSource(Record):
    """Which reference model an artifact was made from."""

    name: str
    factory: str | None = Field(None, description="package.module:factory of a user's model")
    num_classes: int
    random_weights: bool = False
    checkpoint_name: str | None = None
    checkpoint_sha256: str | None = None


class Quantization(Record):
    """What the model file really holds, counted from the file itself."""

    macs: dict[str, int] = Field(description="multiply-adds of one inference by precision, e.g. int8")
    parameters: dict[str, int] = Field(description="stored weights by precision")


class Calibration(Record):
    """The images whose activations set the ranges; digests are sha256 prefixes of the image files."""

    source: str
    samples: int
    digest: str
    image_digests: list[str]


class Parity(Record):
    """The artifact against the reference model, on the images named by ``inputs``."""

    inputs: str
    samples: int
    max_abs_error: float = Field(description="largest |difference| of any logit")
    logits_range: float = Field(description="max - min of the reference logits")
    agreement: float = Field(description="fraction of samples with the same top-1")
    sqnr_db: float
    tolerance: float | None = Field(
        description="largest allowed max_abs_error / logits_range; None: no bound"
    )

    @property
    def relative_error(self) -> float:
        return self.max_abs_error / max(self.logits_range, 1e-12)


class FileInfo(Record):
    name: str = Field(description="path inside the artifact folder, with forward slashes")
    sha256: str
    bytes: int


class Manifest(Record):
    """Everything a later command, a phone or a reviewer needs to know about a model file."""

    schema_version: Literal[1] = SCHEMA_VERSION
    target: Target
    scheme: Scheme
    graph: Literal["deploy", "reference"]
    model: ModelSource
    model_file: str = Field(description="name of the model file or package inside the folder")
    input: TensorInfo
    outputs: list[TensorInfo]
    preprocessing: Preprocessing
    labels: list[str] | None
    reference_sha256: str | None = Field(None, description="of the model.safetensors that it was made from")
    quantization: Quantization
    half_precision: bool = Field(
        False, description="the engine may compute what is fp32 in float16, on processors that have it"
    )
    weight_type: Literal["uint8", "int8"] | None = Field(
        None, description="of ONNX Runtime's integer products; int8 saturates on x86 without VNNI"
    )
    plan: dict[str, str] | None = Field(None, description="module path to precision, as it was asked for")
    calibration: Calibration | None = None
    ran_on: list[str] = Field([], description="emulated ARM CPUs that ran it before it was handed over")
    remarks: list[str] = Field([], description="what its user should know of how it was made or judged")
    rewrites: list[str]
    parity: Parity
    tools: dict[str, str]
    created: str = Field(description="UTC, ISO 8601")
    files: list[FileInfo]


RecordT = TypeVar("RecordT", bound=Record)


def read_record(path: Path, kind: type[RecordT], fix: str) -> RecordT:
    """Read and validate one of our JSON files, or say in one line what is wrong with it."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise MfDeployError(f"Cannot read {path}", f"larger than {MAX_JSON_BYTES} bytes", fix)
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise MfDeployError(f"Cannot read {path}", "no such file", fix) from None
    except OSError as error:
        raise MfDeployError(f"Cannot read {path}", error.strerror or str(error), fix) from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise MfDeployError(f"Cannot read {path}", f"{where}: {first['msg']}", fix) from None


@dataclass(frozen=True)
class Artifact:
    """A folder with a model file and its manifest."""

    folder: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        """The folder's name, e.g. ``onnx-w8a8``."""
        return self.folder.name

    @property
    def model_path(self) -> Path:
        return self.folder / self.manifest.model_file

    @property
    def size_bytes(self) -> int:
        """Size of the model file or package."""
        return sum(file.bytes for file in self.manifest.files)

    @property
    def sha256(self) -> str:
        """Digest of the model: of its one file, or of the names and digests of a package's files."""
        files = sorted((file.name, file.sha256) for file in self.manifest.files)
        if len(files) == 1:
            return files[0][1]
        return hashlib.sha256("".join(f"{digest}  {name}\n" for name, digest in files).encode()).hexdigest()

    @classmethod
    def open(cls, folder: Path) -> "Artifact":
        """Read the manifest and check that every file is there, whole and inside the folder.

        Raises:
            MfDeployError: not an artifact, an invalid manifest, or a file that is missing or changed.
        """
        fix = "Remove it, or make it again with mf-export or mf-quantize, and --force."
        manifest = read_record(folder / MANIFEST_NAME, Manifest, fix)
        root = folder.resolve()
        for file in manifest.files:
            path = (folder / file.name).resolve()
            if not path.is_relative_to(root):
                raise MfDeployError(f"Refused {folder}", f"{file.name} lies outside the folder", fix)
            if not path.is_file() or path.stat().st_size != file.bytes or sha256_of(path) != file.sha256:
                raise MfDeployError(f"Damaged artifact {folder}", f"{file.name} is missing or changed", fix)
        model_file = PurePosixPath(manifest.model_file)
        if not any(PurePosixPath(file.name).is_relative_to(model_file) for file in manifest.files):
            raise MfDeployError(
                f"Damaged artifact {folder}", "the model file is not in its list of files", fix
            )
        return cls(folder, manifest)


def find_artifacts(run: Path) -> list[Artifact]:
    """The artifact at ``run``, or all artifacts of the model folder ``run``, sorted by name.

    Raises:
        MfDeployError: there is no artifact there.
    """
    if (run / MANIFEST_NAME).is_file():
        return [Artifact.open(run)]
    folders = sorted(path.parent for path in run.glob(f"[!.]*/{MANIFEST_NAME}"))
    if not folders:
        why = "no such folder" if not run.exists() else f"no {MANIFEST_NAME} in it or one level below"
        fix = "Make one with: mf-export MODEL --target all --checkpoint F"
        raise MfDeployError(f"No artifact at {run}", why, fix)
    return [Artifact.open(folder) for folder in folders]


def artifact_folders(folder: Path) -> list[Path]:
    """``folder`` if it is an artifact's, else the artifact folders one or two levels below, sorted."""
    if (folder / MANIFEST_NAME).is_file():
        return [folder]
    manifests = [*folder.glob(f"*/{MANIFEST_NAME}"), *folder.glob(f"*/*/{MANIFEST_NAME}")]
    visible = (
        path for path in manifests if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    return sorted(path.parent for path in visible)


def sha256_of(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def list_files(folder: Path) -> list[FileInfo]:
    """Name, digest and size of every file below ``folder`` except the manifest."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST_NAME)
    return [
        FileInfo(name=path.relative_to(folder).as_posix(), sha256=sha256_of(path), bytes=path.stat().st_size)
        for path in paths
    ]


def check_writable(final: Path, force: bool) -> None:
    """Refuse an existing or unwritable output folder before any slow work starts."""
    if final.exists() and not force:
        raise MfDeployError(f"{final} exists", "it would be overwritten", "Pass --force to replace it.")
    parent = final.parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        probe = parent / f".write-probe-{os.getpid()}"
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        raise _cannot_write(final, error) from None


@contextmanager
def whole_folder(final: Path, force: bool) -> Iterator[Path]:
    """Yield a temporary folder beside ``final`` that becomes ``final`` when the block succeeds.

    Nothing is left behind when the block fails; what a killed process left is swept by the next one.
    """
    check_writable(final, force)
    _sweep_stale(final)
    temporary = final.parent / f".{final.name}.tmp-{os.getpid()}"
    old = final.parent / f".{final.name}.old-{os.getpid()}"
    _unfinished[final] = (temporary, old)
    try:
        temporary.mkdir()
        yield temporary
        if final.exists():
            check_writable(final, force)  # another process may have been quicker
            final.rename(old)
        temporary.rename(final)
    except OSError as error:
        if error.errno in _CANNOT_WRITE:
            raise _cannot_write(final, error) from None
        raise
    finally:
        _settle(final)


def discard_unfinished() -> None:
    """Do what ``whole_folder`` does at the end of its block, in a process that ends without reaching it."""
    for final in list(_unfinished):
        _settle(final)


def _settle(final: Path) -> None:
    """Put back what was set aside for nothing, and remove the rest."""
    temporary, old = _unfinished[final]
    if old.exists() and not final.exists():
        old.rename(final)
    _remove(temporary)
    _remove(old)
    del _unfinished[final]


def write_whole(path: Path, data: bytes) -> None:
    """Write a file under another name and rename it, so that a reader never sees half of it."""
    _sweep_stale(path)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        raise _cannot_write(path, error) from None
    finally:
        temporary.unlink(missing_ok=True)


def _cannot_write(path: Path, error: OSError) -> MfDeployError:
    why = error.strerror or str(error)
    return MfDeployError(f"Cannot write {path}", why, "Choose another folder, or free some space.")


def _sweep_stale(final: Path) -> None:
    """Remove what killed processes left behind; a folder set aside by one is put back first."""
    for kind in ("old", "tmp"):
        for stale in final.parent.glob(f".{glob.escape(final.name)}.{kind}-*"):
            pid = stale.name.rpartition("-")[2]
            if pid.isdigit() and not psutil.pid_exists(int(pid)):
                if kind == "old" and not final.exists():
                    stale.rename(final)
                else:
                    _remove(stale)


def _remove(path: Path) -> None:
    """Remove a file or a folder if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
