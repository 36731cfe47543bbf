"""What the phone's program says, in pieces, whole, cut off, and wrong."""

from pathlib import Path

import pytest
from tiny_artifacts import write_tiny_artifact

from mf_deploy.benchmarks.devices.native_run import NativeRun
from mf_deploy.benchmarks.latency import Conditions, EngineInfo, Measurement
from mf_deploy.benchmarks.probe import Probe
from mf_deploy.benchmarks.protocol import Protocol
from mf_deploy.errors import MfDeployError

ENGINE = EngineInfo(name="ONNX Runtime", version="1")
OPENED = "pid 12\nengine 1.31.1\nrss_before 7000000\nload 398.6\nfirst 1.8\n"
WARM = "warmup 1.2\nwarmup 0.9\n"
TIMED = "s 0.8382 0.001\ns 0.7646 0.002\ns 5.1380 0.007\n"
END = "peak 51347456\ndone\n"


@pytest.fixture
def probe(tmp_path: Path) -> Probe:
    return Probe.of(write_tiny_artifact(tmp_path / "tiny" / "onnx-fp32"))


def logits_of(probe: Probe) -> str:
    rows = (" ".join(map(str, row)) for row in probe.expected.tolist())
    return "".join(f"logits {index} {row}\n" for index, row in enumerate(rows))


def heard(text: str, size: int = 7, heard_progress: list[float] | None = None) -> NativeRun:
    """A run that heard ``text`` in pieces of ``size`` bytes."""
    progress = (heard_progress if heard_progress is not None else []).append
    run = NativeRun(Protocol(min_runs=4), progress)
    data = text.encode()
    for start in range(0, len(data), size):
        run.hear(data[start : start + size])
    return run


def measured(run: NativeRun, probe: Probe, partial: str | None = None) -> Measurement:
    return run.measurement(ENGINE, 1, Conditions(), Conditions(), probe, partial)


@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_pieces_of_any_length_make_the_same_measurement(probe: Probe, size: int) -> None:
    progress: list[float] = []
    run = heard(OPENED + logits_of(probe) + WARM + TIMED + END, size, progress)
    assert run.done
    assert run.pid == 12
    assert progress[-1] == 0.75
    found = measured(run, probe)
    assert found.samples_ms == [0.8382, 0.7646, 5.1380]
    assert found.sampled_at_s == [0.001, 0.002, 0.007]
    assert found.warmup_ms == [1.2, 0.9]
    assert (found.load_ms, found.first_inference_ms) == (398.6, 1.8)
    assert (found.rss_before_load_bytes, found.peak_rss_bytes) == (7000000, 51347456)
    assert found.correctness is not None
    assert found.correctness.passed


def test_what_was_cut_off_is_partial_and_half_a_line_is_no_sample(probe: Probe) -> None:
    run = heard(OPENED + logits_of(probe) + WARM + TIMED + "s 0.79")
    assert not run.done
    found = measured(run, probe, "the cable was pulled")
    assert len(found.samples_ms) == 3
    assert found.peak_rss_bytes is None
    assert found.partial == "the cable was pulled"


def test_logits_that_are_no_numbers_fail_the_probe(probe: Probe) -> None:
    for logits in ("", "logits 0 nan nan\n", logits_of(probe).replace("logits 1 ", "logits 1 inf ")):
        found = measured(heard(OPENED + logits + WARM + TIMED + END), probe)
        assert found.probe_logits is None
        assert found.correctness is not None
        assert not found.correctness.passed


def test_an_engine_s_error_is_kept() -> None:
    run = heard("pid 3\nerror LiteRT cannot open the model (status 504)\n")
    assert run.error == "LiteRT cannot open the model (status 504)"
    assert not run.done


@pytest.mark.parametrize(
    "said",
    [
        "Segmentation fault\n",
        TIMED,
        OPENED + WARM + "s -1 0\n",
        OPENED + WARM + "s nan 0\n",
        OPENED + WARM + "s 1\n",
        OPENED.replace("398.6", "inf"),
        "pid x\n",
    ],
)
def test_what_the_runner_would_not_say_is_one_line(said: str) -> None:
    with pytest.raises(MfDeployError, match="Cannot understand the phone: it said"):
        heard(said)
