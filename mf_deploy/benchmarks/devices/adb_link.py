"""A phone at the other end of adb: its shell, and files that are pushed to it once.

Everything goes through the adb server (adbutils speaks its protocol), which is started if it does not run.
"""

import hashlib
import shlex
import socket
import subprocess
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mf_deploy.errors import MISSING_TOOL, MfDeployError, nearest

if TYPE_CHECKING:
    from adbutils import AdbClient, AdbDevice

DEVICE_PREFIX = "adb"
REMOTE = "/data/local/tmp/mf-deploy"
SHELL_TIMEOUT_S = 30.0
SILENCE_TIMEOUT_S = 120.0
STDOUT, STDERR, EXIT = 1, 2, 3  # packets of the shell protocol, version 2
MAX_PACKET_BYTES = 1 << 20
CHECK_CABLE = "Check the cable; mf-bench --devices lists what is attached."
SWITCH_ON = "Switch USB debugging on in its developer options, and plug it in."
STATES = {
    "unauthorized": "Allow USB debugging on the phone's screen.",
    "offline": "Plug the phone in again, or run: adb reconnect",
    "no permissions": "Let your user open it: see https://developer.android.com/studio/run/device",
}


class ConnectionLost(Exception):
    """The phone or the adb server went away in the middle of a command."""


@dataclass(frozen=True)
class Attached:
    """One line of ``adb devices``: a ready phone has the state ``device``."""

    serial: str
    state: str

    @property
    def name(self) -> str:
        """How mf-bench addresses it."""
        return f"{DEVICE_PREFIX}:{self.serial}"

    @property
    def fix(self) -> str:
        """What makes it ready."""
        return STATES.get(self.state, "Wait until it has started.")


def attached() -> list[Attached]:
    """What ``adb devices`` lists.

    Raises:
        MfDeployError: there is no adb, or its server does not start.
    """
    with (
        _adb_errors("Cannot list phones"),
        _client().make_connection(timeout=SHELL_TIMEOUT_S) as connection,
    ):
        connection.send_command("host:devices")
        connection.check_okay()
        lines = connection.read_string_block().splitlines()
    return [Attached(*line.split("\t", 1)) for line in lines if "\t" in line]


def find(name: str) -> Attached:
    """The phone called ``adb:SERIAL``, or the only one for ``adb``.

    Raises:
        MfDeployError: it is not attached, not ready, or one of several.
    """
    found = attached()
    serial = name.partition(":")[2]
    matching = [of for of in found if of.serial == serial or not serial]
    if not matching:
        why = "no phone is attached" if not found else f"adb does not list {serial}"
        fix = nearest(name, [of.name for of in found]) if found else SWITCH_ON
        raise MfDeployError(f"Cannot use {name}", why, fix)
    if len(matching) > 1:
        names = ", ".join(of.name for of in matching)
        raise MfDeployError(f"Cannot use {name}", "several phones are attached", f"Choose one of: {names}.")
    if matching[0].state != "device":
        raise MfDeployError(f"Cannot use {matching[0].name}", f"it is {matching[0].state}", matching[0].fix)
    return matching[0]


class Phone:
    """A ready phone. Paths on it are strings; those of ``push`` are below ``REMOTE``."""

    def __init__(self, serial: str) -> None:
        self.serial = serial
        self._device: AdbDevice = _client().device(serial)

    def shell(self, command: str) -> str:
        """The output of a command that ends soon, whatever its exit status.

        Raises:
            MfDeployError: the phone is gone.
        """
        try:
            packets = self.stream(command, SHELL_TIMEOUT_S)
            return b"".join(data for kind, data in packets if kind == STDOUT).decode(errors="replace")
        except ConnectionLost as error:
            raise self._gone(str(error)) from None

    def succeeds(self, command: str) -> bool:
        """Whether a command that ends soon exits with 0."""
        return self.shell(f"{command} && echo yes").strip().endswith("yes")

    def stream(self, command: str, silence_s: float = SILENCE_TIMEOUT_S) -> Generator[tuple[int, bytes]]:
        """What a command writes while it runs: (STDOUT or STDERR, bytes), and (EXIT, status) at its end.

        Closing the iterator closes the command's connection.

        Raises:
            ConnectionLost: it ended without an exit status, or was silent for ``silence_s`` seconds.
        """
        from adbutils import AdbError

        try:
            with self._device.open_transport(timeout=silence_s) as connection:
                connection.send_command(f"shell,v2,raw:{command}")
                connection.check_okay()
                while True:
                    kind = connection.read_exact(1)[0]
                    size = int.from_bytes(connection.read_exact(4), "little")
                    if size > MAX_PACKET_BYTES:
                        raise ConnectionLost(f"it sent a packet of {size} bytes")
                    data = connection.read_exact(size)
                    yield kind, data
                    if kind == EXIT:
                        return
        except (AdbError, EOFError, OSError) as error:
            raise ConnectionLost(" ".join(str(error).split()) or type(error).__name__) from None

    def push(self, files: Mapping[str, Path | bytes], digest: str) -> str:
        """Put files in a folder that is named after their contents, unless it is there; returns the folder.

        Args:
            files: name in the folder -> the file, or its contents.
            digest: of all of them; the same digest is not pushed again.

        Raises:
            MfDeployError: the phone is gone or full.
        """
        folder = f"{REMOTE}/{digest[:16]}"
        if self.succeeds(f"[ -d {folder} ]"):
            return folder
        part = f"{folder}.part"
        with _adb_errors(f"Cannot push files to {self.serial}"):
            folders = {f"{part}/{name}".rpartition("/")[0] for name in files}
            self.shell(f"rm -rf {part}; mkdir -p {' '.join(map(shlex.quote, sorted(folders)))}")
            for name, content in files.items():
                self._device.sync.push(content, f"{part}/{name}", 0o755, check=True)
        if not self.succeeds(f"mv {part} {folder}"):
            why = f"{REMOTE} cannot be written"
            raise MfDeployError(f"Cannot push files to {self.serial}", why, "Free some space on the phone.")
        return folder

    def push_bytes(self, content: bytes) -> str:
        """Put one file on the phone, once; returns its path."""
        return self.push({"data": content}, hashlib.sha256(content).hexdigest()) + "/data"

    def _gone(self, why: str) -> MfDeployError:
        return MfDeployError(f"Lost {DEVICE_PREFIX}:{self.serial}", why, CHECK_CABLE)


def _client() -> "AdbClient":
    """The adb server's client; the server is started if it does not run.

    Raises:
        MfDeployError: there is no adb, or its server does not start.
    """
    from adbutils import AdbClient

    client = AdbClient()
    try:
        socket.create_connection((client.host, client.port), timeout=3).close()
    except OSError:
        _start_server(client.port)
    return client


def _start_server(port: int) -> None:
    from adbutils import AdbError, adb_path

    try:
        command = [adb_path(), "-P", str(port), "start-server"]
    except AdbError:
        why, fix = "it is what talks to phones", "Run: apt-get install adb"
        raise MfDeployError("adb is not installed", why, fix, MISSING_TOOL) from None
    what, fix = "The adb server does not start", "Try: adb start-server"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (subprocess.SubprocessError, OSError) as error:
        raise MfDeployError(what, str(error), fix, MISSING_TOOL) from None
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"{command[0]} ended with {done.returncode}"]
        raise MfDeployError(what, said[-1], fix, MISSING_TOOL)


@contextmanager
def _adb_errors(what: str) -> Iterator[None]:
    """adb's own failures as one line."""
    from adbutils import AdbError

    try:
        yield
    except (AdbError, EOFError, ConnectionError, TimeoutError) as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise MfDeployError(what, why, CHECK_CABLE) from None
