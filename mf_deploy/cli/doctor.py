"""mf-deploy doctor: what this machine can export, quantize, run and measure, and what adds the rest.

Nothing heavy is imported: installed packages and their versions are read from their metadata.
"""

import importlib.metadata
import json
import platform
import shutil
import sys
from dataclasses import asdict, dataclass, field

import click

from mf_deploy.cli.command import console

DISTRIBUTION = "mf-deploy"

# Target -> the packages that write its models, and the one that runs them; every installation has the others.
WRITERS: dict[str, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxruntime", "onnxscript", "onnxsim"),
    "coreml": ("coremltools",),
    "tflite": ("litert-torch", "ai-edge-litert"),
}
RUNNERS: dict[str, tuple[str, ...]] = {
    "onnx": ("onnxruntime",),
    "coreml": ("coremltools",),
    "tflite": ("ai-edge-litert",),
}
ABILITIES = {"export": WRITERS, "quantize": WRITERS, "run": RUNNERS, "measure": RUNNERS}

# Tool -> programs, any of which will do; what for; the Debian and the Homebrew package that has it.
TOOLS = {
    "Android phones": (("adb",), "reaches a phone over USB", "adb", "android-platform-tools"),
}


@dataclass
class Ability:
    """Something this machine can do, or cannot yet, with the command that changes that."""

    can: bool
    note: str = ""
    fix: str | None = None


@dataclass
class Diagnosis:
    """What was found; ``targets`` maps a target to its abilities, ``tools`` a tool to its own."""

    machine: dict[str, str | int]
    versions: dict[str, str] = field(default_factory=dict)
    targets: dict[str, dict[str, Ability]] = field(default_factory=dict)
    tools: dict[str, Ability] = field(default_factory=dict)

    @property
    def fixes(self) -> list[str]:
        """Every command that adds something, once."""
        abilities = [ability for target in self.targets.values() for ability in target.values()]
        return list(dict.fromkeys(a.fix for a in [*abilities, *self.tools.values()] if a.fix))


@click.command(name="doctor")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def doctor(as_json: bool) -> None:
    """What this machine can export, run and measure, and the command that adds what is missing."""
    diagnosis = diagnose()
    if as_json:
        click.echo(json.dumps({"schema_version": 1, **asdict(diagnosis), "fixes": diagnosis.fixes}, indent=2))
    else:
        _print(diagnosis)


def diagnose() -> Diagnosis:
    """Look at the packages, programs and hardware; takes well under a second."""
    versions, faults = installed_packages()
    diagnosis = Diagnosis(machine=_machine(), versions=versions)
    for target in WRITERS:
        diagnosis.targets[target] = {
            name: _ability(target, name, packages[target], faults) for name, packages in ABILITIES.items()
        }
    diagnosis.tools = {name: _tool(*description) for name, description in TOOLS.items()}
    diagnosis.tools["phones' runner"] = _phone_runner()
    diagnosis.tools["ARM lab"] = _arm_lab()
    diagnosis.tools["phones' browsers"] = _browser_engines(faults)
    diagnosis.tools["parquet data"] = _package_ability(
        ("pyarrow",), faults, "parquet", "reads image datasets"
    )
    return diagnosis


def installed_packages() -> tuple[dict[str, str], dict[str, str]]:
    """Versions of the packages that the targets use, and what is wrong with the others, by name.

    The versions that will do are those of our own package metadata, so that they are written once.
    """
    from packaging.requirements import Requirement

    versions, faults = {}, {}
    for line in importlib.metadata.requires(DISTRIBUTION) or []:
        requirement = Requirement(line)
        if requirement.name == DISTRIBUTION or 'extra == "dev"' in str(requirement.marker or ""):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            faults[requirement.name] = f"no {requirement.name}"
            continue
        versions[requirement.name] = version
        if not requirement.specifier.contains(version, prereleases=True):
            faults[requirement.name] = f"{requirement.name} {version}, needs {requirement.specifier}"
    return versions, faults


def _ability(target: str, name: str, packages: tuple[str, ...], faults: dict[str, str]) -> Ability:
    ability = _package_ability(packages, faults, target)
    if target != "coreml" or sys.platform == "darwin":
        return ability
    if name == "measure":
        return Ability(False, "needs macOS")
    if name == "run" and ability.can:
        return Ability(True, "interpreter, not Apple's runtime")
    return ability


def _package_ability(
    packages: tuple[str, ...], faults: dict[str, str], extra: str, note: str = ""
) -> Ability:
    wrong = [faults[package] for package in ("torch", *packages) if package in faults]
    if not wrong:
        return Ability(True, note)
    return Ability(False, "; ".join(wrong), f"pip install '{DISTRIBUTION}[{extra}]'")


def _tool(programs: tuple[str, ...], purpose: str, debian: str, homebrew: str | None) -> Ability:
    found = next((path for program in programs if (path := shutil.which(program))), None)
    if found:
        return Ability(True, f"{purpose}: {found}")
    if sys.platform == "darwin":
        return Ability(False, purpose, f"brew install {homebrew}" if homebrew else None)
    return Ability(False, purpose, f"apt-get install {debian}")


def _phone_runner() -> Ability:
    """Whether mf-bench --device adb has the program that it pushes to phones."""
    from mf_deploy.benchmarks.native.runner import open_runner
    from mf_deploy.errors import MfDeployError

    try:
        return Ability(True, f"mf-bench --device adb: {open_runner().folder}")
    except MfDeployError as error:
        return Ability(False, f"mf-bench --device adb: {error.what}", error.fix.removeprefix("Run: "))


def _arm_lab() -> Ability:
    """Whether the engines' ARM builds can run in emulation; tools that are missing come first."""
    from mf_deploy.errors import MfDeployError
    from mf_deploy.runtimes.arm.lab import open_lab

    if sys.platform != "linux":
        return Ability(False, "needs Debian or Ubuntu")
    try:
        return Ability(True, f"runs ARM64 engines: {open_lab().folder}")
    except MfDeployError as error:
        return Ability(False, f"runs ARM64 engines: {error.what}", error.fix.removeprefix("Run: "))


def _browser_engines(faults: dict[str, str]) -> Ability:
    """Whether mf-bench serve has what it needs."""
    from mf_deploy.benchmarks.server.engines import open_engines
    from mf_deploy.errors import MfDeployError

    packages = _package_ability(("aiohttp", "cryptography", "segno"), faults, "serve")
    if not packages.can:
        return packages
    try:
        return Ability(True, f"mf-bench serve: {open_engines().folder}")
    except MfDeployError as error:
        return Ability(False, f"mf-bench serve: {error.what}", error.fix.removeprefix("Run: "))


def _machine() -> dict[str, str | int]:
    import psutil

    return {
        "os": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "cores": psutil.cpu_count() or 1,
        "memory_bytes": psutil.virtual_memory().total,
        "disk_free_bytes": shutil.disk_usage(".").free,
    }


def _print(diagnosis: Diagnosis) -> None:
    from rich import box
    from rich.table import Table

    machine, out = diagnosis.machine, console()
    memory, disk = (int(machine[key]) / 1e9 for key in ("memory_bytes", "disk_free_bytes"))
    click.echo(
        f"{machine['os']}, Python {machine['python']}, {machine['cores']} cores,"
        f" {memory:.0f} GB memory, {disk:.0f} GB free here"
    )
    table = Table("target", *ABILITIES, box=box.SIMPLE_HEAD, pad_edge=False)
    for target, abilities in diagnosis.targets.items():
        table.add_row(target, *(_cell(abilities[name]) for name in ABILITIES))
    out.print(table)
    tools = Table("also", "", box=box.SIMPLE_HEAD, pad_edge=False)
    for name, ability in diagnosis.tools.items():
        tools.add_row(name, _cell(ability))
    out.print(tools)
    click.echo(", ".join(f"{name} {version}" for name, version in sorted(diagnosis.versions.items())))
    for fix in diagnosis.fixes:
        click.echo(f"To add what is missing: {fix}")


def _cell(ability: Ability) -> str:
    from rich.markup import escape

    word = "[green]yes[/green]" if ability.can else "[red]no[/red]"
    return f"{word} {escape(ability.note)}".strip()
