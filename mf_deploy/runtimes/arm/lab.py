"""The ARM lab on disk: an ARM64 system with the engines in it, ready to run in QEMU."""

import hashlib
import importlib.metadata
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mf_deploy.artifact import Record, read_record
from mf_deploy.errors import MISSING_TOOL, MfDeployError
from mf_deploy.runtimes.arm import CPUS

QEMU = "qemu-aarch64"  # the dynamic build: the static one takes no plugins
DISTRIBUTIONS = ("numpy", "onnxruntime", "ai-edge-litert")
PLUGIN_SOURCE = Path(__file__).with_name("count.c")
RUNNER = Path(__file__).with_name("guest") / "runner.py"
SETUP = "Run: mf-deploy setup arm"


class LabRecord(Record):
    """What a lab was made of; another machine state needs another lab."""

    schema_version: Literal[1] = 1
    qemu: str
    wheels: dict[str, str]
    plugin_sha256: str


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


def lab_folder() -> Path:
    """Where the lab is kept: ``$MF_DEPLOY_CACHE/arm``, else ``mf-deploy/arm`` in the user's cache."""
    own = os.environ.get("MF_DEPLOY_CACHE")
    if own:
        return Path(own).absolute() / "arm"
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache).absolute() / "mf-deploy" / "arm"


def open_lab() -> Lab:
    """The lab that ``mf-deploy setup arm`` made.

    Raises:
        MfDeployError: it was not set up, or this machine has changed since.
    """
    folder = lab_folder()
    record = folder / "lab.json"
    if not record.exists():
        raise MfDeployError("The ARM lab is not set up", f"there is none in {folder}", SETUP, MISSING_TOOL)
    made_of, needed = read_record(record, LabRecord, f"{SETUP} --force"), needed_record()
    if made_of != needed:
        changed = [name for name, value in needed if value != getattr(made_of, name)]
        why = f"it was set up with other {' and '.join(changed)}"
        raise MfDeployError("The ARM lab is out of date", why, SETUP, MISSING_TOOL)
    return Lab(folder)


def needed_record() -> LabRecord:
    """What a lab for this machine is made of: the engines are those that the host has."""
    return LabRecord(
        qemu=_qemu_version(),
        wheels=installed_wheels(),
        plugin_sha256=hashlib.sha256(PLUGIN_SOURCE.read_bytes()).hexdigest(),
    )


def installed_wheels() -> dict[str, str]:
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


def require_program(program: str, package: str) -> None:
    """Raise an error with the install command unless ``program`` is there."""
    if shutil.which(program) is None:
        raise MfDeployError(
            f"{program} is not installed",
            "ARM emulation needs it",
            f"Run: apt-get install {package}",
            MISSING_TOOL,
        )
