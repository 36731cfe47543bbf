"""x86 processors without VNNI, in emulation: this installation's engines with the kernels of older machines.

QEMU runs this very Python environment as another processor. Its results are those of a server or a CI
machine of that kind; its times mean nothing and are never shown.
"""

import os
import platform
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mf_deploy.artifact import Artifact
from mf_deploy.errors import MISSING_TOOL, MfDeployError
from mf_deploy.runtimes.arm import named_cpu
from mf_deploy.runtimes.arm.emulator import Emulator
from mf_deploy.runtimes.arm.lab import require_program
from mf_deploy.runtimes.arm.session import EmulatedSession, require_engine

QEMU = "qemu-x86_64"
DEVICE_PREFIX = "x86:"

CPUS: Final = {"haswell": "Haswell", "nehalem": "Nehalem"}
"""By QEMU's name: AVX2 without VNNI, which saturates int8 products; and SSE4, which does not."""


@dataclass(frozen=True)
class X86:
    """The emulated machine; it has nothing of its own but a processor.

    Raises:
        MfDeployError: QEMU is missing, or this is no x86 machine.
    """

    def __post_init__(self) -> None:
        require_program(QEMU, "qemu-user", "emulating x86 processors needs it")
        if platform.machine() not in ("x86_64", "AMD64"):
            raise MfDeployError(
                "Cannot emulate x86 processors here",
                f"the engines that are installed are for {platform.machine()}",
                "Take an x86 machine, or an arm: device.",
                MISSING_TOOL,
            )

    def command(self, cpu: str, arguments: Sequence[str | Path], counts: Path | None = None) -> list[str]:
        """The command that runs this Python as ``cpu``; nothing can be counted."""
        assert counts is None, "instructions are counted on ARM only"
        return [QEMU, "-cpu", CPUS[cpu], os.path.realpath(sys.executable), *map(str, arguments)]

    def environment(self) -> dict[str, str]:
        """The packages, and nothing else of this process's: it may tell numpy to use what ``cpu`` lacks."""
        packages = sysconfig.get_path("purelib")
        return {"PATH": os.environ.get("PATH", ""), "PYTHONPATH": packages, "OMP_NUM_THREADS": "1"}


def cpu_of(device: str) -> str:
    """The CPU that a device like ``x86:haswell`` names.

    Raises:
        MfDeployError: there is no such device.
    """
    return named_cpu(device, DEVICE_PREFIX, CPUS)


class X86Session(EmulatedSession):
    """An artifact on an emulated x86 processor, in one process that lives as long as this does."""

    def __init__(self, artifact: Artifact, cpu: str, threads: int = 1) -> None:
        require_engine(artifact)
        super().__init__(artifact, DEVICE_PREFIX + cpu, Emulator(X86(), cpu, artifact.model_path, threads))
