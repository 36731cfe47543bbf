"""mf-check as it is typed: the table, the JSON, the exit codes and the one-line errors."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from colours import fitted, model_source, write_artifact, write_images, write_run

from mf_deploy.artifact import read_record
from mf_deploy.cli import check
from mf_deploy.errors import MfDeployError
from mf_deploy.evaluation.accuracy import AccuracyReport, AccuracyReports
from mf_deploy.evaluation.drift import DriftReports


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("check")
    write_images(folder / "images", per_class=30)
    run = write_run(folder / "run", fitted())
    write_artifact(run / "onnx-fp32", fitted())
    write_artifact(run / "onnx-w8", fitted(), "w8", noise=0.4)
    return folder


def mf_check(folder: Path, *arguments: str) -> int:
    data = [] if "--data" in arguments else ["--data", str(folder / "images")]
    return check.command.main([*arguments, *data], standalone_mode=False)


def test_the_table_has_every_artifact_and_fits_120_columns(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mf_check(folder, str(folder / "run")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "colours on images, 180 images, 95 % intervals"
    assert [line.split()[0] for line in lines if line.strip().startswith(("PyTorch", "onnx"))] == [
        "PyTorch",
        "onnx-fp32",
        "onnx-w8",
    ]
    assert max(map(len, lines)) <= 120
    assert re.search(r" \+0\.00 \(-\d\.\d\d…\+\d\.\d\d\) +100\.00 ", "\n".join(lines))


def test_results_are_kept_where_the_report_looks(folder: Path) -> None:
    mf_check(folder, str(folder / "run" / "onnx-w8"))
    path = folder / "run" / "results" / "check-onnx-w8.json"
    assert read_record(path, AccuracyReport, "").artifact == "onnx-w8"


def test_a_gate_that_passes(folder: Path) -> None:
    assert (
        mf_check(folder, str(folder / "run" / "onnx-fp32"), "--max-drop", "3", "--min-agreement", "95") == 0
    )


def test_a_gate_that_fails(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mf_check(folder, str(folder / "run"), "--min-agreement", "97.5") == 1
    out = capsys.readouterr().out
    assert "fail: colours/onnx-w8: agreement" in out
    assert "fail: colours/onnx-fp32" not in out


def test_a_gate_that_cannot_be_decided_says_how_many_images_it_takes(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mf_check(folder, str(folder / "run" / "onnx-fp32"), "--max-drop", "0.1") == 1
    assert (
        "undecided at 180 images, take about 7,900: colours/onnx-fp32: top-1 drop 0.00"
        in capsys.readouterr().out
    )


def test_json_on_standard_output_is_alone_there(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mf_check(folder, str(folder / "run"), "--json", "-", "--limit", "50")
    captured = capsys.readouterr()
    reports = AccuracyReports.model_validate(json.loads(captured.out)).reports
    assert [(report.artifact, report.images) for report in reports] == [("onnx-fp32", 50), ("onnx-w8", 50)]
    assert "onnx-w8" in captured.err


def test_layers_names_the_first_layer_that_drifts(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert mf_check(folder, str(folder / "run"), "--layers", "--json", str(tmp_path / "layers.json")) == 0
    assert "colours/onnx-w8: first drifts at head" in capsys.readouterr().out
    written = read_record(tmp_path / "layers.json", DriftReports, "")
    assert [report.first_drift for report in written.reports] == [None, "head"]


def test_an_artifact_folder_may_be_the_current_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder / "run" / "onnx-fp32")
    assert mf_check(folder, ".") == 0


def test_random_weights_are_refused_before_the_data_is_looked_at(folder: Path, tmp_path: Path) -> None:
    artifact = write_artifact(tmp_path / "r" / "onnx-fp32", fitted(), model=model_source(random_weights=True))
    with pytest.raises(MfDeployError, match="random weights") as caught:
        mf_check(folder, str(artifact.folder), "--data", str(tmp_path / "nowhere"))
    assert caught.value.exit_code == 2


def test_wrong_classes_are_refused(folder: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "set", per_class=2)
    (tmp_path / "set" / "red").rename(tmp_path / "set" / "crimson")
    with pytest.raises(MfDeployError, match="crimson"):
        mf_check(folder, str(folder / "run"), "--data", str(tmp_path / "set"))


def test_gates_need_an_accuracy(folder: Path) -> None:
    with pytest.raises(MfDeployError, match="--layers"):
        mf_check(folder, str(folder / "run"), "--layers", "--max-drop", "1")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nowhere", "--data", "images"], "error: No artifact at"),
        (["run", "--data", "nothing"], "error: No images at nothing"),
        (["run", "--data", "images", "--max-drop", "-1"], "error: Invalid value for '--max-drop'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(folder: Path, arguments: list[str], line: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mf_deploy.cli.check", *arguments], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith(line)
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""
