"""The doctor's findings against the package metadata, and on machines that lack something."""

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from packaging.requirements import Requirement

from mf_deploy.cli.doctor import ABILITIES, WRITERS, diagnose, doctor
from mf_deploy.export import get_exporter


def test_every_package_it_asks_for_comes_with_the_extra_that_it_names() -> None:
    provided: dict[str, set[str]] = {target: set() for target in WRITERS}
    for requirement in map(Requirement, importlib.metadata.requires("mf-deploy") or []):
        for target, packages in provided.items():
            if requirement.marker and requirement.marker.evaluate({"extra": target}):
                packages.add(requirement.name)
    for needed in ABILITIES.values():
        for target, packages in needed.items():
            assert set(packages) <= provided[target]


@pytest.mark.parametrize("target", list(WRITERS))
def test_it_asks_for_what_the_exporters_ask_for(target: str) -> None:
    modules = get_exporter(target).modules
    assert {name.replace("_", "-") for name in modules} == set(WRITERS[target])


def test_it_is_quick_and_imports_no_engine() -> None:
    code = (
        "import sys\n"
        "from mf_deploy.cli.doctor import doctor\n"
        "doctor(standalone_mode=False)\n"
        "assert not {'torch', 'onnx', 'onnxruntime', 'coremltools', 'ai_edge_litert'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_missing_and_an_outdated_package_are_named_with_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "onnxruntime":
            raise importlib.metadata.PackageNotFoundError(name)
        return "8.3" if name == "coremltools" else real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    diagnosis = diagnose()
    run, export = diagnosis.targets["onnx"]["run"], diagnosis.targets["coreml"]["export"]
    assert (run.can, run.note, run.fix) == (False, "no onnxruntime", "pip install 'mf-deploy[onnx]'")
    assert (export.can, export.note) == (False, "coremltools 8.3, needs ==9.0")
    assert "pip install 'mf-deploy[coreml]'" in diagnosis.fixes


@pytest.mark.skipif(sys.platform == "darwin", reason="Core ML can be measured on macOS")
def test_core_ml_cannot_be_measured_off_macos() -> None:
    ability = diagnose().targets["coreml"]["measure"]
    assert not ability.can
    assert "macOS" in ability.note


def test_a_tool_is_found_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert diagnose().tools["Android phones"].fix
    adb = tmp_path / "adb"
    adb.write_text("#!/bin/sh\n")
    os.chmod(adb, 0o755)
    found = diagnose().tools["Android phones"]
    assert found.can
    assert str(adb) in found.note
    assert found.fix is None


def test_what_was_not_set_up_is_named_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MF_DEPLOY_CACHE", str(tmp_path))
    found = diagnose().tools["phones' runner"]
    assert not found.can
    assert found.fix == "mf-deploy setup adb"


def test_json_holds_the_same_as_the_table() -> None:
    found = json.loads(CliRunner().invoke(doctor, ["--json"]).output)
    assert set(found["targets"]) == set(WRITERS)
    assert found["versions"]["torch"] == importlib.metadata.version("torch")
    table = CliRunner().invoke(doctor, []).output
    for target in WRITERS:
        assert target in table
    for fix in found["fixes"]:
        assert fix in table
