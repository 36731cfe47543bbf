"""A phone for tests: Debian's adb, its own server, and ``adb_daemon.py`` as the device."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from mf_deploy.benchmarks.native.runner import COMPILER
from mf_deploy.runtimes.arm import CPUS
from mf_deploy.runtimes.arm.lab import QEMU
from mf_deploy.runtimes.arm.setup import machine_files

DAEMON = Path(__file__).with_name("adb_daemon.py")
PROPERTIES = {
    "ro.product.manufacturer": "Acme",
    "ro.product.model": "Pretend 1",
    "ro.soc.manufacturer": "Acme",
    "ro.soc.model": "A1",
    "ro.product.cpu.abilist": "arm64-v8a",
    "ro.build.version.release": "14",
    "ro.build.version.sdk": "34",
    "ro.kernel.qemu": "1",
}
BATTERY = """\
Current Battery Service state:
  AC powered: false
  USB powered: true
  status: 2
  level: 83
  scale: 100
  temperature: 301
"""


@dataclass
class PretendPhone:
    """A running daemon, attached to an adb server of its own. ``environment`` leads adb to that server."""

    root: Path
    serial: str
    environment: dict[str, str]
    daemon: "subprocess.Popen[str]"

    @property
    def log(self) -> list[str]:
        """One line for each command and each pushed file."""
        path = self.root / "log"
        return path.read_text().splitlines() if path.exists() else []

    def adb(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        command = ["adb", *arguments]
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False, timeout=60
        )

    def mf_bench(self, *arguments: str | Path) -> "subprocess.Popen[str]":
        """The command, started with this phone attached."""
        return subprocess.Popen(
            [sys.executable, "-m", "mf_deploy.cli.bench", *map(str, arguments)],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


def require_tools() -> None:
    """Skip without what a pretend phone is made of."""
    for tool, package in (("adb", "adb"), (QEMU, "qemu-user"), (COMPILER, "gcc-aarch64-linux-gnu")):
        if not shutil.which(tool):
            pytest.skip(f"needs {tool}: make system-packages, or apt-get install {package}")


@contextmanager
def pretend_phone(root: Path) -> Iterator[PretendPhone]:
    """A phone whose files are below ``root``; the daemon and the adb server end with the block."""
    for name, text in machine_files(CPUS["max"]).items():
        path = root / "machine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    properties = "".join(f"[{name}]: [{value}]\n" for name, value in PROPERTIES.items())
    dumpsys = f'case "$1" in battery) cat <<END\n{BATTERY}END\n;; *) echo "Thermal Status: 2" ;; esac'
    for name, script in {"getprop": f"cat <<END\n{properties}END", "dumpsys": dumpsys}.items():
        path = root / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    server_port, port = _free_port(), _free_port()
    environment = {name: value for name, value in os.environ.items() if name != "ADB_SERVER_SOCKET"}
    environment |= {
        "ANDROID_ADB_SERVER_PORT": str(server_port),
        "ADB_MDNS": "0",
        "ANDROID_USER_HOME": str(root / "home"),
        "HOME": str(root / "home"),
        "MF_DEPLOY_CACHE": os.environ.get("MF_DEPLOY_CACHE", str(Path.home() / ".cache/mf-deploy")),
    }
    (root / "home").mkdir()
    daemon = subprocess.Popen(
        [sys.executable, str(DAEMON), str(root), str(port)], stdout=subprocess.PIPE, text=True
    )
    phone = PretendPhone(root, f"127.0.0.1:{port}", environment, daemon)
    try:
        assert daemon.stdout is not None
        assert daemon.stdout.readline() == "ready\n"
        said = phone.adb("connect", phone.serial).stdout
        assert "connected to" in said, said
        yield phone
    finally:
        phone.adb("kill-server")
        daemon.kill()
        daemon.communicate()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
