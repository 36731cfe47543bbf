"""The runner on disk: the folder that is pushed to a phone, made once by ``mf-deploy setup adb``."""

import hashlib
import importlib.metadata
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from packaging.version import Version
from pydantic import Field

from mf_deploy.artifact import FileInfo, Record, list_files, read_record, sha256_of, whole_folder
from mf_deploy.cache import cache_folder
from mf_deploy.errors import MISSING_TOOL, MfDeployError
from mf_deploy.runtimes.arm.lab import require_program
from mf_deploy.runtimes.arm.setup import Progress, alone
from mf_deploy.runtimes.arm.sysroot import make_sysroot, require_debian, run, unpack_wheels

COMPILER, COMPILER_PACKAGES = "aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu libc6-dev-arm64-cross"
LIBRARY_PACKAGES = ("libc6", "libstdc++6", "libgcc-s1")
LOADER = "ld-linux-aarch64.so.1"
PROGRAM = "bench"
# What ONNX Runtime and LiteRT ask for, of the C and C++ libraries.
LIBRARIES = (
    LOADER, "libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1",
    "libstdc++.so.6", "libgcc_s.so.1",
)  # fmt: skip
# Target -> (distribution, its library in the wheel, the name that the program opens it by)
ENGINES = {
    "onnx": ("onnxruntime", "onnxruntime/capi/libonnxruntime.so.{version}", "libonnxruntime.so.1"),
    "tflite": ("ai-edge-litert", "ai_edge_litert/libLiteRt.so", "libLiteRt.so"),
}
OLDEST_LITERT = Version("2.2")  # whose C interface tflite.c declares
SOURCES = sorted(path for path in Path(__file__).parent.iterdir() if path.suffix in (".c", ".h"))
RECORD_NAME = "runner.json"


class RunnerRecord(Record):
    """What a runner is made of; other engines or another source make another runner."""

    schema_version: Literal[1] = 1
    engines: dict[str, str] = Field(description="target -> version, those that the host has")
    sources: dict[str, str] = Field(description="file -> sha256")
    files: list[FileInfo] = Field(default_factory=list)

    @classmethod
    def of_this_machine(cls) -> Self:
        """What the runner of this installation is made of."""
        engines = {}
        for target, (distribution, _, _) in ENGINES.items():
            try:
                engines[target] = importlib.metadata.version(distribution)
            except importlib.metadata.PackageNotFoundError:
                continue
        return cls(engines=engines, sources={path.name: sha256_of(path) for path in SOURCES})

    @property
    def folder(self) -> Path:
        """Where it is kept."""
        made_of = self.model_dump_json(include={"engines", "sources"})
        return cache_folder() / f"adb-{hashlib.sha256(made_of.encode()).hexdigest()[:12]}"


@dataclass(frozen=True)
class Runner:
    """The files for a phone, and what they were made of. ``digest`` names their contents."""

    folder: Path
    record: RunnerRecord

    @property
    def files(self) -> list[FileInfo]:
        return [file for file in self.record.files if file.name != RECORD_NAME]

    @property
    def digest(self) -> str:
        return hashlib.sha256("".join(file.sha256 for file in self.files).encode()).hexdigest()


def open_runner() -> Runner:
    """The runner that ``mf-deploy setup adb`` made.

    Raises:
        MfDeployError: there is none for the installed engines, or a file is missing or changed.
    """
    folder = RunnerRecord.of_this_machine().folder
    fix = "Run: mf-deploy setup adb"
    if not (folder / RECORD_NAME).exists():
        why = "there is none for the installed engines"
        raise MfDeployError("The runner for phones is not set up", why, fix, MISSING_TOOL)
    record = read_record(folder / RECORD_NAME, RunnerRecord, f"{fix} --force")
    for file in record.files:
        path = folder / file.name
        if not path.is_file() or path.stat().st_size != file.bytes:
            why = f"{file.name} is missing or changed"
            raise MfDeployError("The runner for phones is damaged", why, f"{fix} --force", MISSING_TOOL)
    return Runner(folder, record)


def set_up(force: bool = False, progress: Progress = lambda step: None) -> Runner:
    """The runner, made now unless it is there; whole or not at all.

    Raises:
        MfDeployError: a tool is missing, this is not Debian or Ubuntu, or a download failed.
    """
    require_debian()
    require_program(COMPILER, COMPILER_PACKAGES, "it compiles the runner for phones")
    record = RunnerRecord.of_this_machine()
    litert = record.engines.get("tflite")
    if litert and Version(litert) < OLDEST_LITERT:
        what, why = f"Cannot use ai-edge-litert {litert} on phones", "its C interface is an older one"
        raise MfDeployError(what, why, f"Run: pip install 'ai-edge-litert>={OLDEST_LITERT}'", MISSING_TOOL)
    with alone(record.folder):
        if not force:
            try:
                return open_runner()
            except MfDeployError:
                pass
        with (
            whole_folder(record.folder, force=True) as folder,
            tempfile.TemporaryDirectory(dir=cache_folder()) as work,
        ):
            _fill(folder, Path(work), record, progress)
            record.files = list_files(folder)
            (folder / RECORD_NAME).write_text(record.model_dump_json(indent=2))
    return open_runner()


def _fill(folder: Path, work: Path, record: RunnerRecord, progress: Progress) -> None:
    progress("C library for ARM64: packages of the distribution")
    root, site, apt = work / "root", work / "site", work / "apt"
    apt.mkdir()
    make_sysroot(root, apt, LIBRARY_PACKAGES)
    for name in LIBRARIES:
        _copy(next(path for path in root.rglob(name) if path.is_file()), folder / name)
    versions = {ENGINES[target][0]: version for target, version in record.engines.items()}
    progress(f"Engines for ARM64: {', '.join(f'{name} {version}' for name, version in versions.items())}")
    unpack_wheels(versions, "3.11", site)
    for target, version in record.engines.items():
        _, inside, name = ENGINES[target]
        _copy(site / inside.format(version=version), folder / name)
    progress("Runner: compiling")
    sources = [str(path) for path in SOURCES if path.suffix == ".c"]
    command = [COMPILER, "-O2", "-Wall", "-o", str(folder / PROGRAM), *sources, "-ldl"]
    run(command, fix=f"Run: apt-get install {COMPILER_PACKAGES}")


def _copy(source: Path, target: Path) -> None:
    if not source.is_file():
        why = f"there is no {source.name} in the packages"
        raise MfDeployError("Cannot set up the runner for phones", why, "Report it.", MISSING_TOOL)
    target.write_bytes(source.read_bytes())
    target.chmod(0o755)
