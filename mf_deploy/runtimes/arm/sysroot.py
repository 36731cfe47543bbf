"""ARM64 builds on disk: a system from the distribution's own packages, and engines from their wheels.

The host's package system is not changed.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

from mf_deploy.errors import MISSING_TOOL, MfDeployError

PACKAGES = ("python3-minimal", "libpython3-stdlib", "libstdc++6", "libgomp1")
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64")
UBUNTU_PORTS = "http://ports.ubuntu.com/ubuntu-ports"
UBUNTU_KEYS = "/usr/share/keyrings/ubuntu-archive-keyring.gpg"

_APT_CONF = """\
APT::Architecture "arm64";
APT::Architectures {{ "arm64"; }};
APT::Install-Recommends "false";
APT::Sandbox::User "";
Dir::State "{work}/state";
Dir::State::status "{work}/state/status";
Dir::Cache "{work}/cache";
"""


def make_sysroot(root: Path, work: Path, packages: Sequence[str] = PACKAGES) -> None:
    """Fill ``root`` with ARM64 packages and what they need; ``work`` is an empty folder for apt.

    The host's package sources and keys are used with a private apt state, so nothing is installed.

    Raises:
        MfDeployError: not Debian or Ubuntu, or the packages could not be fetched.
    """
    distribution = require_debian()
    conf = _private_apt(work, distribution)
    environment = {**os.environ, "APT_CONFIG": str(conf), "LC_ALL": "C"}
    run(["apt-get", "-q", "update"], environment)
    run(["apt-get", "-q", "-y", "--download-only", "install", *packages], environment)
    root.mkdir()
    for package in sorted((work / "cache/archives").glob("*.deb")):
        run(["dpkg-deb", "-x", str(package), str(root)], environment)


def unpack_wheels(wheels: dict[str, str], python: str, site: Path) -> None:
    """Unpack the ARM64 builds of ``wheels`` (name -> version), for a ``python`` like 3.11, into ``site``.

    Raises:
        MfDeployError: pip is missing, or could not fetch them.
    """
    if importlib.util.find_spec("pip") is None:
        what, why = "pip is not installed", "it fetches the engines' ARM wheels"
        raise MfDeployError(what, why, f"Run: {sys.executable} -m ensurepip", MISSING_TOOL)
    downloads = site.with_name(f"{site.name}-wheels")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += [word for platform in PLATFORMS for word in ("--platform", platform)]
    command += ["--implementation", "cp", "--python-version", python, "--dest", str(downloads)]
    run([*command, *(f"{name}=={version}" for name, version in wheels.items())])
    for wheel in downloads.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
    shutil.rmtree(downloads)


def require_debian() -> dict[str, str]:
    """The fields of ``/etc/os-release``.

    Raises:
        MfDeployError: this is not Debian or one of its descendants.
    """
    path = Path("/etc/os-release")
    lines = path.read_text().splitlines() if path.exists() else []
    fields = {key: value.strip('"') for key, _, value in (line.partition("=") for line in lines)}
    family = {fields.get("ID", ""), *fields.get("ID_LIKE", "").split()}
    if not family & {"debian", "ubuntu"}:
        name = fields.get("PRETTY_NAME", "this system")
        raise MfDeployError(
            "Cannot set up the ARM builds here",
            f"{name} is not Debian or Ubuntu",
            "Use Debian or Ubuntu, e.g. in a container of debian:12.",
            MISSING_TOOL,
        )
    return fields


def _private_apt(work: Path, distribution: dict[str, str]) -> Path:
    """An apt configuration of its own, with everything that apt writes below ``work``."""
    for folder in ("state/lists/partial", "cache/archives/partial"):
        (work / folder).mkdir(parents=True)
    (work / "state/status").touch()
    text = _APT_CONF.format(work=work)
    if "ubuntu" in (distribution.get("ID"), *distribution.get("ID_LIKE", "").split()):
        text += _ubuntu_sources(work, distribution["UBUNTU_CODENAME"])
    conf = work / "apt.conf"
    conf.write_text(text)
    return conf


def _ubuntu_sources(work: Path, codename: str) -> str:
    """Ubuntu serves ARM packages from another address than those that the host's sources name."""
    sources = work / "sources.list"
    suites = (codename, f"{codename}-updates", f"{codename}-security")
    sources.write_text(
        "".join(f"deb [signed-by={UBUNTU_KEYS}] {UBUNTU_PORTS} {suite} main universe\n" for suite in suites)
    )
    return f'Dir::Etc::sourcelist "{sources}";\nDir::Etc::sourceparts "/dev/null";\n'


def run(
    command: Sequence[str],
    environment: dict[str, str] | None = None,
    fix: str = "Check the network and the disk, then run it again.",
) -> None:
    """Run a command of the set-up; one that fails becomes an error with the last line that it printed."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()
        why = f"{' '.join(command[:4])} …: {said[-1]}"
        raise MfDeployError("Cannot set up the ARM builds", why, fix, MISSING_TOOL)
