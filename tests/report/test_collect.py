"""Which results a report uses, and what it says about those that it cannot use."""

from pathlib import Path

import pytest
from sample_results import accuracy_of, keep, latency_of, not_run
from tiny_artifacts import write_tiny_artifact

from mf_deploy.artifact import ModelSource, write_whole
from mf_deploy.errors import MfDeployError
from mf_deploy.report import collect, load_results, save_result
from mf_deploy.report.collect import Setting


def test_each_artifact_gets_its_own_results(tmp_path: Path) -> None:
    first = write_tiny_artifact(tmp_path / "tiny" / "onnx-fp32")
    second = write_tiny_artifact(tmp_path / "tiny" / "onnx-w8a8", scheme="w8a8", depth=2)
    keep(first, accuracy_of(first), latency_of(first, 5.0), latency_of(first, 3.0, threads=2))
    keep(second, accuracy_of(second, lost=30), latency_of(second, 2.0))
    found = collect(tmp_path / "tiny")
    assert found.problems == []
    assert [entry.artifact.name for entry in found.entries] == ["onnx-fp32", "onnx-w8a8"]
    assert [
        entry.accuracy.drop.lost for entry in found.entries if entry.accuracy and entry.accuracy.drop
    ] == [4, 30]
    assert found.settings == [Setting("host", "host", "Test CPU", threads=number) for number in (1, 2)]
    assert [len(entry.latency) for entry in found.entries] == [2, 1]
    assert [entry.not_run for entry in found.entries] == [[], []]


def test_results_of_an_earlier_file_are_left_out_and_named(tmp_path: Path) -> None:
    old = write_tiny_artifact(tmp_path / "old" / "onnx-fp32", depth=2)
    new = write_tiny_artifact(tmp_path / "tiny" / "onnx-fp32", depth=1)
    keep(new, accuracy_of(old), latency_of(old))
    found = collect(tmp_path / "tiny")
    assert found.entries[0].accuracy is None
    assert found.entries[0].latency == {}
    assert [problem.endswith("again.") for problem in found.problems] == [True, True]
    assert "Run mf-check again" in found.problems[0]
    assert "Run mf-bench again" in found.problems[1]


def test_unreadable_results_and_damaged_artifacts_are_named_not_fatal(tmp_path: Path) -> None:
    good = write_tiny_artifact(tmp_path / "tiny" / "onnx-fp32")
    damaged = write_tiny_artifact(tmp_path / "tiny" / "onnx-w8a8")
    (damaged.folder / "model.onnx").write_bytes(b"changed")
    keep(good, latency_of(good))
    results = tmp_path / "tiny" / "results"
    (results / "check-onnx-fp32.json").write_text('{"schema_version": 1, "artifact": ')
    (results / "bench-x.json").write_text('{"schema_version": 99}')
    (results / "notes.json").write_text("{}")
    (results / ".check-y.json.tmp-1").write_text("half")
    found = collect(tmp_path / "tiny")
    assert len(found.entries) == 1
    assert len(found.entries[0].latency) == 1
    assert len(found.problems) == 4
    named = ("onnx-w8a8", "bench-x.json", "check-onnx-fp32.json", "notes.json")
    assert all(name in problem for name, problem in zip(named, found.problems, strict=True))
    assert not any(str(tmp_path) in problem for problem in found.problems)


def test_what_was_not_run_says_why(tmp_path: Path) -> None:
    source = ModelSource(name="tiny", num_classes=10, random_weights=True)
    coreml = write_tiny_artifact(tmp_path / "tiny" / "coreml-fp32", target="coreml")
    random = write_tiny_artifact(tmp_path / "tiny" / "onnx-fp32", model=source)
    keep(coreml, not_run(coreml, "Core ML needs macOS"))
    second, first = collect(tmp_path / "tiny").entries
    assert first.not_run == [
        "latency on Test CPU, 1 thread (host): Core ML needs macOS",
        "accuracy: run mf-check",
    ]
    assert second.not_run == ["accuracy: the weights are random", "latency: run mf-bench"]
    assert random.manifest.model.random_weights


def test_a_folder_of_runs_an_artifact_and_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = write_tiny_artifact(tmp_path / "a" / "onnx-fp32", model="a")
    second = write_tiny_artifact(tmp_path / "b" / "onnx-fp32", model="b", depth=2)
    keep(first, latency_of(first))
    keep(second, latency_of(second))
    both = collect(tmp_path)
    assert [both.label(entry) for entry in both.entries] == ["a/onnx-fp32", "b/onnx-fp32"]
    one = collect(first.folder)
    assert [one.label(entry) for entry in one.entries] == ["onnx-fp32"]
    assert len(one.entries[0].latency) == 1
    monkeypatch.chdir(first.folder)
    assert collect(Path(".")).entries[0].artifact.name == "onnx-fp32"


def test_a_result_without_its_artifact_is_named_only_when_the_whole_run_is_shown(tmp_path: Path) -> None:
    first = write_tiny_artifact(tmp_path / "tiny" / "onnx-fp32")
    gone = write_tiny_artifact(tmp_path / "elsewhere" / "onnx-w8")
    save_result(tmp_path / "tiny", "check-onnx-w8", accuracy_of(gone))
    assert "onnx-w8, which is not there" in collect(tmp_path / "tiny").problems[0]
    assert collect(first.folder).problems == []


def test_nothing_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MfDeployError, match="No artifact at"):
        collect(tmp_path)
    with pytest.raises(MfDeployError, match="no such folder"):
        collect(tmp_path / "nowhere")


def test_saved_results_come_back_equal(tmp_path: Path) -> None:
    artifact = write_tiny_artifact(tmp_path / "my run" / "onnx fp32")
    saved = [accuracy_of(artifact), latency_of(artifact)]
    keep(artifact, *saved)
    results = load_results(artifact.folder.parent)
    assert [*results.accuracy, *results.latency] == saved
    assert all(" " not in path.name for path in (tmp_path / "my run" / "results").iterdir())


def test_a_result_too_large_is_refused_unread(tmp_path: Path) -> None:
    write_whole(tmp_path / "results" / "check-x.json", b" " * (17 << 20))
    assert "larger than" in load_results(tmp_path).problems[0]


def test_files_of_other_versions_say_so(tmp_path: Path) -> None:
    artifact = write_tiny_artifact(tmp_path / "tiny" / "onnx-fp32")
    keep(artifact, latency_of(artifact))
    results = tmp_path / "tiny" / "results"
    (results / "bench-new.json").write_text('{"schema_version": 99}')
    (results / "bench-old.json").write_text('{"schema_version": 0}')
    new, old = collect(tmp_path / "tiny").problems
    assert new.endswith("bench-new.json: schema version 99 of a newer mf-deploy, not 2. Update mf-deploy.")
    assert "schema version 0 of an older mf-deploy, not 2. Measure again" in old


def test_the_newest_whole_run_counts(tmp_path: Path) -> None:
    artifact = write_tiny_artifact(tmp_path / "tiny" / "onnx-fp32")
    for name, created, partial in (
        ("a", "2026-01-03", None),
        ("b", "2026-01-02", None),
        ("c", "2026-01-04", "x"),
    ):
        report = latency_of(artifact)
        assert report.measurement is not None
        measurement = report.measurement.model_copy(update={"partial": partial})
        changed = report.model_copy(update={"created": created, "measurement": measurement})
        save_result(tmp_path / "tiny", f"bench-{name}", changed)
    (entry,) = collect(tmp_path / "tiny").entries
    ((setting, kept),) = entry.latency.items()
    assert (kept.created, entry.repeats[setting]) == ("2026-01-03", 3)
