"""The ARM lab on disk: an ARM64 system with the engines in it, ready to run in QEMU."""

import hashlib
import importlib.metadata
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from pydantic import Field

from mf_deploy.artifact import Record, sha256_of
from mf_deploy.cache import cache_folder
from mf_deploy.errors import MISSING_TOOL, MfDeployError
from mf_deploy.runtimes.arm import CPUS

QEMU = "qemu-aarch64"  # the dynamic build: the static one takes no plugins
DISTRIBUTIONS = ("numpy", "onnxruntime", "ai-edge-litert")
PLUGIN_SOURCE = Path(__file__).with_name("count.c")
RUNNER = Path(__file__).with_name("guest") / "runner.py"
RECORD_NAME = "lab.json"


class LabRecord(Record):
    """What a lab is made of: a machine with another state has another lab, in a folder of its own."""

    schema_version: Literal[1] = 1
    qemu: str
    wheels: dict[str, str] = Field(description="versions; the engines are those that the host has")
    plugin_sha256: str
    cpus: dict[str, str]

    @classmethod
    def of_this_machine(cls) -> Self:
        """What the lab of this machine and this installation is made of."""
        return cls(
            qemu=_qemu_version(),
            wheels=_installed_wheels(),
            plugin_sha256=sha256_of(PLUGIN_SOURCE),
            cpus={name: f"{cpu.qemu} {cpu.part:#x} {cpu.features}" for name, cpu in CPUS.items()},
        )

    @property
    def folder(self) -> Path:
        """Where this lab is kept, below ``$MF_DEPLOY_CACHE`` or ``mf-deploy`` in the user's cache."""
        digest = hashlib.sha256(self.model_dump_json().encode()).hexdigest()
        return cache_folder() / f"arm-{digest[:12]}"


@dataclass(frozen=True)
class Lab:
    """A folder with ``root/`` (the ARM system), ``site/`` (wheels), ``cpu/<name>/`` (as a CPU sees it)."""

    folder: Path

    @property
    def plugin(self) -> Path:
        return self.folder / "count.so"

    @property
    def site(self) -> Path:
        return self.folder / "site"

    def view(self, cpu: str) -> Path:
        """The system as a CPU sees it: the common one, with a ``/proc/cpuinfo`` of its own."""
        return self.folder / "cpu" / cpu

    @property
    def python(self) -> Path:
        return next((self.folder / "root/usr/bin").glob("python3.*"))

    def command(self, cpu: str, arguments: Sequence[str | Path], counts: Path | None = None) -> list[str]:
        """The command that runs the ARM Python; instruction counts go to the file ``counts``."""
        count = ["-plugin", f"{self.plugin},out={counts}"] if counts else []
        emulator = [QEMU, "-cpu", CPUS[cpu].qemu, *count, "-L", str(self.view(cpu))]
        return [*emulator, str(self.python), *(str(argument) for argument in arguments)]

    def environment(self) -> dict[str, str]:
        """The variables of an ARM process; the host's own Python settings stay out."""
        return {"PATH": os.environ.get("PATH", ""), "PYTHONPATH": str(self.site), "OMP_NUM_THREADS": "1"}


def open_lab() -> Lab:
    """The lab that ``mf-deploy setup arm`` made.

    Raises:
        MfDeployError: there is none for the engines that are installed now.
    """
    folder = LabRecord.of_this_machine().folder
    if not (folder / RECORD_NAME).exists():
        why = "there is none for the installed engines"
        raise MfDeployError("The ARM lab is not set up", why, "Run: mf-deploy setup arm", MISSING_TOOL)
    return Lab(folder)


def find_lab() -> Lab | None:
    """The same; None where there is none."""
    try:
        return open_lab()
    except MfDeployError:
        return None


def _installed_wheels() -> dict[str, str]:
    """Version of numpy and of each installed engine, so that both sides run the same code."""
    found = {}
    for name in DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _qemu_version() -> str:
    require_program(QEMU, "qemu-user")
    said = subprocess.run([QEMU, "--version"], capture_output=True, text=True, check=False).stdout
    return said.splitlines()[0].removeprefix("qemu-aarch64 version ") if said else "unknown"


def require_program(program: str, package: str, why: str = "ARM emulation needs it") -> None:
    """Raise an error with the install command unless ``program`` is there."""
    if shutil.which(program) is None:
        raise MfDeployError(
            f"{program} is not installed",
            why,
            f"Run: apt-get install {package}",
            MISSING_TOOL,
        )
