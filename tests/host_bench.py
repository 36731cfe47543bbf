"""The Android app's core, compiled for this computer's Java: HostBench runs it as the app does."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

APPS = Path(__file__).parent / "apps"
CORE = APPS.parents[1] / "apps/android/app/src/main/java/org/mfdeploy/bench/core"
ENGINE = f"{sys.executable} {APPS / 'onnx_engine.py'}"  # ONNX Runtime at the end of a pipe


def compile_host_bench(folder: Path) -> Path:
    """Compile HostBench and the app's core into ``folder``; skips without a Java compiler."""
    if not shutil.which("javac"):
        pytest.skip("needs javac: make system-packages")
    sources = [*map(str, CORE.glob("*.java")), str(APPS / "HostBench.java")]
    subprocess.run(["javac", "--release", "8", "-Xlint:-options", "-d", str(folder), *sources], check=True)
    return folder
