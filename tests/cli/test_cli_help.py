"""Every command answers --help at once: without the packages that take a second or more to import."""

import json
import subprocess
import sys
from importlib.metadata import entry_points

import pytest

HEAVY = {"torch", "numpy", "coremltools", "litert_torch", "ai_edge_litert", "onnx", "onnxruntime"}
HEAVY |= {"scipy", "pandas", "pydantic", "PIL", "sklearn", "jinja2", "rich"}
COMMANDS = {
    entry.name: entry.value
    for entry in entry_points(group="console_scripts")
    if entry.value.startswith("mf_deploy.")
}
SUBCOMMANDS = ["mf-deploy doctor", "mf-deploy models", "mf-deploy setup"]
SUBCOMMANDS += ["mf-deploy setup arm", "mf-deploy setup adb"]

ASK = """
import json, sys
from importlib import import_module
module, _, function = sys.argv[1].partition(":")
sys.argv = sys.argv[2:]
try:
    getattr(import_module(module), function)()
except SystemExit as done:
    print(json.dumps({"exit": done.code, "modules": sorted(sys.modules)}), file=sys.stderr)
"""


def ask(line: str) -> tuple[str, set[str]]:
    """What a command line prints, and the top-level modules that it imported."""
    name = line.split()[0]
    done = subprocess.run(
        [sys.executable, "-c", ASK, COMMANDS[name], *line.split()], capture_output=True, text=True, check=True
    )
    outcome = json.loads(done.stderr)
    assert outcome["exit"] == 0, done.stdout
    return done.stdout, {module.partition(".")[0] for module in outcome["modules"]}


def test_the_six_commands_are_installed() -> None:
    expected = {"mf-export", "mf-quantize", "mf-check", "mf-bench", "mf-report", "mf-deploy"}
    assert set(COMMANDS) == expected


@pytest.mark.parametrize("line", [*COMMANDS, *SUBCOMMANDS])
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_imports_nothing_heavy(line: str, option: str) -> None:
    printed, modules = ask(f"{line} {option}")
    assert printed.startswith("Usage:")
    assert not modules & HEAVY


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_examples_that_begin_with_the_command(name: str) -> None:
    printed, _ = ask(f"{name} --help")
    _, _, examples = printed.partition("Examples:\n")
    lines = [line.strip() for line in examples.strip().replace(" \\\n", " ").splitlines()]
    assert lines
    assert all(line.startswith(f"{name} ") for line in lines)
