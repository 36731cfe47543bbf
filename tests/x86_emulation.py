"""This machine's own engines on x86 processors without VNNI, in QEMU's user mode, whatever the host is."""

import os
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

QEMU = "qemu-x86_64"
CPUS = {"Haswell": "AVX2", "Nehalem": "SSE4"}
"""QEMU's name of a processor, and the kernels that it makes the engines take."""


@dataclass(frozen=True)
class X86:
    """Stands where an ``Emulator`` takes the ARM sysroot: the same guest, in this Python environment."""

    def command(self, cpu: str, arguments: Sequence[str | Path], counts: Path | None = None) -> list[str]:
        assert counts is None, "instructions are counted on ARM only"
        return [QEMU, "-cpu", cpu, os.path.realpath(sys.executable), *map(str, arguments)]

    def environment(self) -> dict[str, str]:
        """Nothing of the host's but the packages: its OpenBLAS may be told to use what ``cpu`` lacks."""
        packages = sysconfig.get_path("purelib")
        return {"PATH": os.environ["PATH"], "PYTHONPATH": packages, "OMP_NUM_THREADS": "1"}


def require_x86_emulation() -> X86:
    """The emulated processors; skips the test where QEMU is not installed."""
    if shutil.which(QEMU) is None:
        pytest.skip(f"needs {QEMU}: make system-packages")
    return X86()
