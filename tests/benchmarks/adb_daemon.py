"""The device side of adb, for tests: a phone on TCP whose ARM programs run in QEMU.

    python adb_daemon.py ROOT PORT

It speaks the real protocol (https://android.googlesource.com/platform/packages/modules/adb: protocol.txt,
SYNC.TXT, shell_protocol.h): a connection without authentication, the shell service version 2 with output
and exit status, and sync's STAT, LIST, SEND and RECV. ``/data/local/tmp`` is a folder below ROOT, ``getprop``
and ``dumpsys`` are scripts in ROOT/bin, and every command and pushed file becomes a line in ROOT/log, as does
``timed``: the host has samples of a benchmark. Where there is a file ROOT/fuse, that is the daemon's end: a
pulled cable.
"""

import asyncio
import contextlib
import os
import signal
import struct
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

VERSION, MAX_DATA = 0x01000001, 256 << 10
CHUNK = 64 << 10
STDOUT, STDERR, EXIT = 1, 2, 3
LOADER = "./ld-linux-aarch64.so.1"
BANNER = b"device::ro.product.name=p;ro.product.model=Pretend;ro.product.device=p;features=shell_v2,cmd"


class Stream:
    """One service that the host opened: bytes in both directions, each write acknowledged."""

    def __init__(self, link: "Link", local: int, remote: int) -> None:
        self.link, self.local, self.remote = link, local, remote
        self.incoming = asyncio.StreamReader()
        self.acknowledged = asyncio.Event()
        self.closed = asyncio.Event()

    async def write(self, data: bytes) -> None:
        for start in range(0, len(data), MAX_DATA):
            if self.closed.is_set():
                raise ConnectionResetError
            self.acknowledged.clear()
            await self.link.send(b"WRTE", self.local, self.remote, data[start : start + MAX_DATA])
            await self.acknowledged.wait()

    def end(self) -> None:
        """The host has closed it."""
        self.closed.set()
        self.acknowledged.set()
        self.incoming.feed_eof()


class Link:
    """One host."""

    def __init__(self, phone: "Phone", reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.phone, self.reader, self.writer = phone, reader, writer
        self.streams: dict[int, Stream] = {}
        self.tasks: set[asyncio.Task[None]] = set()
        self.next_id = 1

    async def send(self, command: bytes, first: int, second: int, data: bytes = b"") -> None:
        magic = struct.unpack("<I", command)[0] ^ 0xFFFFFFFF
        checksum = sum(data) & 0xFFFFFFFF
        self.writer.write(command + struct.pack("<5I", first, second, len(data), checksum, magic) + data)
        await self.writer.drain()

    async def serve(self) -> None:
        try:
            while True:
                header = await self.reader.readexactly(24)
                first, second, size = struct.unpack_from("<3I", header, 4)
                await self.take(header[:4], first, second, await self.reader.readexactly(size))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            for stream in self.streams.values():
                stream.end()
            self.writer.close()

    async def take(self, command: bytes, first: int, second: int, data: bytes) -> None:
        if command == b"CNXN":
            await self.send(b"CNXN", VERSION, MAX_DATA, BANNER)
        elif command == b"OPEN":
            await self.open(first, data.rstrip(b"\0").decode())
        elif (stream := self.streams.get(second)) is not None:
            if command == b"WRTE":
                stream.incoming.feed_data(data)
                await self.send(b"OKAY", stream.local, stream.remote)
            elif command == b"OKAY":
                stream.acknowledged.set()
            elif command == b"CLSE":
                stream.end()

    async def open(self, remote: int, service: str) -> None:
        name, _, argument = service.partition(":")
        run: Callable[[Stream], Awaitable[None]]
        if name.split(",")[:2] == ["shell", "v2"]:
            run = lambda stream: self.phone.shell(stream, argument)  # noqa: E731
        elif name == "sync":
            run = self.phone.sync
        else:
            await self.send(b"CLSE", 0, remote)
            return
        stream = self.streams[self.next_id] = Stream(self, self.next_id, remote)
        self.next_id += 1
        await self.send(b"OKAY", stream.local, remote)
        task = asyncio.create_task(self.finish(stream, run))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def finish(self, stream: Stream, run: Callable[[Stream], Awaitable[None]]) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await run(stream)
        del self.streams[stream.local]
        await self.send(b"CLSE", stream.local, stream.remote)


class Phone:
    """The folder ROOT as a phone."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def log(self, line: str) -> None:
        with (self.root / "log").open("a") as file:
            file.write(line + "\n")

    def path(self, remote: str) -> Path:
        return self.root / remote.lstrip("/")

    async def shell(self, stream: Stream, command: str) -> None:
        """Run it; like adbd, hang up on it when the host has gone."""
        self.log(f"shell {command}")
        emulator = f"qemu-aarch64 -cpu max,sve=off -L {self.root}/machine {LOADER}"
        command = command.replace("/data/local/tmp", f"{self.root}/data/local/tmp").replace(LOADER, emulator)
        process = await asyncio.create_subprocess_exec(
            *("sh", "-c", command),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={"PATH": f"{self.root}/bin:{os.environ['PATH']}"},
            start_new_session=True,
        )
        lock = asyncio.Lock()

        async def pass_on(kind: int, output: asyncio.StreamReader | None) -> None:
            while output and (data := await output.read(CHUNK)):
                async with lock:
                    await stream.write(struct.pack("<BI", kind, len(data)) + data)
                if b"\ns " in data:
                    self.log("timed")
                    if (self.root / "fuse").exists():
                        os.kill(os.getpid(), signal.SIGKILL)

        async def hang_up() -> None:
            await stream.closed.wait()
            os.killpg(process.pid, signal.SIGHUP)

        waiting = asyncio.create_task(hang_up())
        try:
            await asyncio.gather(pass_on(STDOUT, process.stdout), pass_on(STDERR, process.stderr))
            status = await process.wait()
            exit_code = status if status >= 0 else 128 - status  # as adbd reports a signal
            await stream.write(struct.pack("<BIB", EXIT, 1, exit_code))
        finally:
            waiting.cancel()
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGHUP)

    async def sync(self, stream: Stream) -> None:
        while True:
            try:
                name, size = struct.unpack("<4sI", await stream.incoming.readexactly(8))
            except asyncio.IncompleteReadError:
                return
            if name == b"QUIT":
                return
            argument = (await stream.incoming.readexactly(size)).decode()
            answers = {b"STAT": self.stat, b"LIST": self.list, b"SEND": self.receive, b"RECV": self.give}
            await answers[name](stream, argument)

    async def stat(self, stream: Stream, remote: str) -> None:
        path = self.path(remote)
        found = path.stat() if path.exists() else None
        fields = (found.st_mode, found.st_size, int(found.st_mtime)) if found else (0, 0, 0)
        await stream.write(b"STAT" + struct.pack("<3I", *fields))

    async def list(self, stream: Stream, remote: str) -> None:
        for path in sorted(self.path(remote).glob("*")):
            found, name = path.stat(), path.name.encode()
            fields = (found.st_mode, found.st_size, int(found.st_mtime), len(name))
            await stream.write(b"DENT" + struct.pack("<4I", *fields) + name)
        await stream.write(b"DONE" + bytes(16))

    async def receive(self, stream: Stream, target: str) -> None:
        """SEND: the host pushes a file."""
        remote, _, mode = target.rpartition(",")
        path = self.path(remote)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            while True:
                name, size = struct.unpack("<4sI", await stream.incoming.readexactly(8))
                if name == b"DONE":
                    break
                file.write(await stream.incoming.readexactly(size))
        path.chmod(int(mode) & 0o777)
        self.log(f"push {remote} {path.stat().st_size}")
        await stream.write(b"OKAY" + bytes(4))

    async def give(self, stream: Stream, remote: str) -> None:
        """RECV: the host pulls a file."""
        path = self.path(remote)
        if not path.is_file():
            await stream.write(b"FAIL" + struct.pack("<I", 12) + b"no such file")
            return
        data = path.read_bytes()
        for start in range(0, len(data), CHUNK):
            part = data[start : start + CHUNK]
            await stream.write(b"DATA" + struct.pack("<I", len(part)) + part)
        await stream.write(b"DONE" + bytes(4))


async def serve(root: Path, port: int) -> None:
    phone = Phone(root)
    server = await asyncio.start_server(lambda r, w: Link(phone, r, w).serve(), "127.0.0.1", port)
    print("ready", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), int(sys.argv[2])))
