"""Sets the ARM lab up: the ARM system, the engines' wheels, the counting plugin."""

import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mf_deploy.artifact import check_writable, whole_folder
from mf_deploy.errors import MISSING_TOOL, MfDeployError
from mf_deploy.runtimes.arm import CPUS, Cpu
from mf_deploy.runtimes.arm.lab import (
    PLUGIN_SOURCE,
    QEMU,
    RECORD_NAME,
    Lab,
    LabRecord,
    open_lab,
    require_program,
)
from mf_deploy.runtimes.arm.sysroot import make_sysroot, require_debian, run, unpack_wheels

IMPORTS = {"numpy": "numpy", "onnxruntime": "onnxruntime", "ai-edge-litert": "ai_edge_litert.interpreter"}

Progress = Callable[[str], None]


def set_up(force: bool = False, progress: Progress = lambda step: None) -> Lab:
    """The lab, made now unless it is there and fits this machine; whole or not at all.

    Args:
        force: make it again in any case.
        progress: hears what is being done.

    Raises:
        MfDeployError: a tool is missing, this is not Debian or Ubuntu, or a download failed.
    """
    require_debian()
    require_program(QEMU, "qemu-user gcc libc6-dev")
    require_program("gcc", "gcc libc6-dev")
    record = LabRecord.of_this_machine()
    with alone(record.folder):
        if not force:
            try:
                return open_lab()
            except MfDeployError:
                pass
        with whole_folder(record.folder, force=True) as temporary:
            _fill(Lab(temporary), record, progress)
    return Lab(record.folder)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Wait until no other process makes ``folder``."""
    check_writable(folder, force=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fill(lab: Lab, record: LabRecord, progress: Progress) -> None:
    progress("ARM system: packages of the distribution")
    work = lab.folder / "work"
    work.mkdir()
    make_sysroot(lab.folder / "root", work)
    shutil.rmtree(work)
    progress(f"ARM engines: {', '.join(f'{name} {version}' for name, version in record.wheels.items())}")
    unpack_wheels(record.wheels, lab.python.name.removeprefix("python"), lab.site)
    progress("Instruction counter: compiling")
    _compile_plugin(lab, record.qemu)
    for name, cpu in CPUS.items():
        _make_view(lab, name, cpu)
    for name in CPUS:
        progress(f"First start on {name}")
        _try_imports(lab, name, list(record.wheels))
    (lab.folder / RECORD_NAME).write_text(record.model_dump_json(indent=2))


def _compile_plugin(lab: Lab, qemu_version: str) -> None:
    major, minor = (int(part) for part in qemu_version.split()[0].split(".")[:2])
    api = 3 if (major, minor) >= (9, 1) else 2 if major >= 9 else 1
    flags = ["-O2", "-shared", "-fPIC", "-fvisibility=hidden", f"-DQEMU_PLUGIN_API={api}"]
    command = ["gcc", *flags, "-o", str(lab.plugin), str(PLUGIN_SOURCE)]
    run(command, fix="Run: apt-get install gcc libc6-dev")


def _make_view(lab: Lab, name: str, cpu: Cpu) -> None:
    """QEMU looks for every file below this folder first: the system, and a machine with one such core.

    Engines choose kernels by what they read there; without it they would read of the host's cores.
    """
    view = lab.view(name)
    view.mkdir(parents=True)
    for entry in (lab.folder / "root").iterdir():
        (view / entry.name).symlink_to(os.path.relpath(entry, view))
    for path, text in machine_files(cpu).items():
        (view / path).parent.mkdir(parents=True, exist_ok=True)
        (view / path).write_text(text + "\n")


def machine_files(cpu: Cpu) -> dict[str, str]:
    """The files in which Linux describes one ``cpu`` with 512 KiB of L2 cache, and their contents."""
    described = {
        "processor": "0",
        "Features": cpu.features,
        "CPU implementer": "0x41",
        "CPU architecture": "8",
        "CPU variant": "0x0",
        "CPU part": f"{cpu.part:#x}",
        "CPU revision": "0",
    }
    cpus = "sys/devices/system/cpu"
    zeros = ("possible", "present", "online", "kernel_max", "cpu0/topology/physical_package_id")
    lists = ("cpu0/topology/cluster_cpus_list", "cpu0/cache/index2/shared_cpu_list")
    return {
        "proc/cpuinfo": "\n".join(f"{key}\t: {value}" for key, value in described.items()),
        **{f"{cpus}/{name}": "0" for name in (*zeros, *lists)},
        f"{cpus}/cpu0/cache/index2/level": "2",
        f"{cpus}/cpu0/cache/index2/size": "512K",
    }


def _try_imports(lab: Lab, cpu: str, wheels: list[str]) -> None:
    """Import each engine once; this also compiles their Python files, so that later starts are quick."""
    for wheel in wheels:
        command = lab.command(cpu, ["-c", f"import {IMPORTS[wheel]}"])
        done = subprocess.run(command, env=lab.environment(), capture_output=True, text=True, check=False)
        if done.returncode:
            said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise MfDeployError(
                f"{wheel} does not start on an emulated {cpu}",
                said[-1],
                "Try another version of it.",
                MISSING_TOOL,
            )
