"""The engines that the benchmark app runs in a browser: fetched once with npm, pinned by digest, kept."""

import base64
import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from mf_deploy.artifact import FileInfo, Record, list_files, read_record, whole_folder
from mf_deploy.cache import cache_folder
from mf_deploy.errors import MISSING_TOOL, MfDeployError

RECORD_NAME = "engines.json"
MAX_MEMBER_BYTES = 64 << 20
NPM_TIMEOUT_S = 900

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Package:
    """An npm package: ``integrity`` is the sha512 that its registry entry has, ``files`` what is kept of it.

    ``files`` maps paths in the package to paths below the engines' folder.
    """

    name: str
    version: str
    integrity: str
    licence: str
    owner: str
    files: dict[str, str]


ORT, LITERT = "ort", "litert"
_ORT_FILES = (
    "ort.wasm.min.mjs",
    "ort-wasm-simd-threaded.mjs",
    "ort-wasm-simd-threaded.wasm",
    "ort.webgpu.min.mjs",
    "ort-wasm-simd-threaded.asyncify.mjs",
    "ort-wasm-simd-threaded.asyncify.wasm",
)
_LITERT_FILES = tuple(
    f"litert_wasm{build}_internal.{ending}"
    for build in ("", "_compat", "_threaded", "_jspi")
    for ending in ("js", "wasm")
)

PACKAGES = (
    Package(
        name="onnxruntime-web",
        version="1.30.0",
        integrity="sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==",
        licence="MIT",
        owner="Microsoft Corporation",
        files={f"package/dist/{name}": f"{ORT}/{name}" for name in _ORT_FILES},
    ),
    Package(
        name="@litertjs/core",
        version="2.5.3",
        integrity="sha512-PlGmbMOq9WitX7FO0jhbdJw9GthatsyuCQXjTt/wJZo0FLaw48q4tz8IwqgqCIkviYGr9OFDL1kCnN4nzWoyJQ==",
        licence="Apache-2.0",
        owner="Google LLC",
        files={
            "package/dist/index.js": f"{LITERT}/litert.mjs",
            **{f"package/wasm/{name}": f"{LITERT}/{name}" for name in _LITERT_FILES},
        },
    ),
    Package(
        name="@litertjs/wasm-utils",
        version="2.5.3",
        integrity="sha512-4fJiw6tBQnIs+0jH/OQ16nYOiSl8/+zZnn5h2ul8aTKHi05sVqZW580Tmk78pC2kT39A9OYBVdFawteZ/sI1kQ==",
        licence="Apache-2.0",
        owner="Google LLC",
        files={"package/dist/index.js": f"{LITERT}/wasm-utils.mjs"},
    ),
)

# A browser resolves a bare name only with an import map, and workers have none.
IMPORTS = {f"{LITERT}/litert.mjs": ('"@litertjs/wasm-utils"', '"./wasm-utils.mjs"')}


class PackageRecord(Record):
    """One package as the page names it."""

    name: str
    version: str
    licence: str
    owner: str


class EnginesRecord(Record):
    """What is in a folder of engines; written last."""

    packages: list[PackageRecord]
    files: list[FileInfo] = Field(description="as they were when they were unpacked")


@dataclass(frozen=True)
class Engines:
    """A folder with the engines' files, and what it was made of."""

    folder: Path
    record: EnginesRecord

    @property
    def digest(self) -> str:
        """A name that changes with the engines: part of their addresses, so that browsers may keep them."""
        return self.folder.name.rpartition("-")[2]

    def version(self, name: str) -> str:
        """The version of the package called ``name``."""
        return next(package.version for package in self.record.packages if package.name == name)


def engines_folder() -> Path:
    """Where the pinned engines are kept: another pin, another folder."""
    pinned = "".join(f"{package.name} {package.integrity} {package.files}" for package in PACKAGES)
    return cache_folder() / f"web-{hashlib.sha256(pinned.encode()).hexdigest()[:12]}"


def open_engines() -> Engines:
    """The engines that ``mf-deploy setup web`` fetched.

    Raises:
        MfDeployError: they are not there, or a file is missing or has another size.
    """
    folder, fix = engines_folder(), "Run: mf-deploy setup web"
    if not (folder / RECORD_NAME).exists():
        raise MfDeployError("No engines for browsers", "they are fetched once", fix, MISSING_TOOL)
    record = read_record(folder / RECORD_NAME, EnginesRecord, fix)
    for file in record.files:
        path = folder / file.name
        if not path.is_file() or path.stat().st_size != file.bytes:
            why = f"{file.name} is missing or changed"
            raise MfDeployError("Damaged engines for browsers", why, f"{fix} --force", MISSING_TOOL)
    return Engines(folder, record)


def set_up(force: bool = False, progress: Progress = lambda step: None) -> Engines:
    """The engines, fetched now unless they are there; whole or not at all.

    A package that was fetched before a failure comes from npm's own cache the next time.

    Raises:
        MfDeployError: npm is missing, a download failed, or a package is not the one that was pinned.
    """
    if not force:
        try:
            return open_engines()
        except MfDeployError:
            pass
    npm = shutil.which("npm")
    if npm is None:
        raise MfDeployError("npm is not installed", "it fetches the engines", _npm_command(), MISSING_TOOL)
    with whole_folder(engines_folder(), force=True) as folder:
        for package in PACKAGES:
            progress(f"{package.name} {package.version}")
            with tempfile.TemporaryDirectory(dir=folder) as work:
                _unpack(_fetch(npm, package, Path(work)), package, folder)
        for name, (bare, relative) in IMPORTS.items():
            _replace_once(folder / name, bare, relative)
        packages = [
            PackageRecord(name=of.name, version=of.version, licence=of.licence, owner=of.owner)
            for of in PACKAGES
        ]
        record = EnginesRecord(packages=packages, files=list_files(folder))
        (folder / RECORD_NAME).write_text(record.model_dump_json(indent=2))
    return open_engines()


def _npm_command() -> str:
    apt = shutil.which("apt-get") is not None
    return "Run: apt-get install npm" if apt else "Install Node.js, which brings npm."


def _fetch(npm: str, package: Package, work: Path) -> Path:
    """Download a package's archive into ``work`` and check its digest."""
    what = f"Cannot fetch {package.name} {package.version}"
    command = [npm, "pack", "--silent", "--ignore-scripts", f"{package.name}@{package.version}"]
    try:
        done = subprocess.run(
            command, cwd=work, capture_output=True, text=True, check=False, timeout=NPM_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        why = f"npm took more than {NPM_TIMEOUT_S} s"
        raise MfDeployError(what, why, "Run it again: what is there is kept.", MISSING_TOOL) from None
    archives = list(work.glob("*.tgz"))
    if done.returncode or len(archives) != 1:
        said = [line for line in done.stderr.splitlines() if "error" in line.lower()] or [
            "npm made no archive"
        ]
        fix = "Check the network and npm's registry, then run it again."
        raise MfDeployError(what, said[0][:300], fix, MISSING_TOOL)
    digest = base64.b64encode(hashlib.sha512(archives[0].read_bytes()).digest()).decode()
    if f"sha512-{digest}" != package.integrity:
        why = f"its sha512 is {digest[:16]}..., not the pinned {package.integrity[7:23]}..."
        raise MfDeployError(what, why, "Look at npm's registry: it serves another file.", MISSING_TOOL)
    return archives[0]


def _unpack(archive: Path, package: Package, folder: Path) -> None:
    """Take the files that are kept out of an archive."""
    with tarfile.open(archive) as tar:
        for inside, name in package.files.items():
            member = tar.getmember(inside)
            stream = tar.extractfile(member)
            if stream is None or member.size > MAX_MEMBER_BYTES:
                why = f"{inside} is not a file of at most {MAX_MEMBER_BYTES >> 20} MB"
                raise MfDeployError(f"Cannot unpack {package.name}", why, "Report it.", MISSING_TOOL)
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            with stream, path.open("wb") as out:
                shutil.copyfileobj(stream, out)


def _replace_once(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    if text.count(old) != 1:
        raise MfDeployError(f"Cannot adapt {path.name}", f"it has no {old}", "Report it.", MISSING_TOOL)
    path.write_text(text.replace(old, new), encoding="utf-8")
