"""TFLite artifacts in the host's LiteRT."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_artifacts import with_manifest
from tiny_tflite import CLASSES, SIDE, tiny_graph

from mf_deploy.artifact import Artifact, ModelSource, Quantization, TensorInfo
from mf_deploy.errors import MfDeployError
from mf_deploy.export.parity import seeded_pictures
from mf_deploy.export.target import ExportOptions, WrittenModel
from mf_deploy.export.tflite import TfliteExporter, convert
from mf_deploy.export.tflite_write import MODEL_FILE, finish
from mf_deploy.quantization import Interface, QuantPolicy
from mf_deploy.runtimes import open_session
from mf_deploy.runtimes.native_log import quiet_native

pytest.importorskip("litert_torch")

from mf_deploy.export.tflite_file import read_operators
from mf_deploy.export.tflite_graph import TfliteGraph

GRAPH = tiny_graph()


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return seeded_pictures(6, SIDE)


@pytest.fixture(scope="module")
def expected(pictures: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return GRAPH.module(torch.from_numpy(GRAPH.record.preprocessing.normalize(pictures))).numpy()


@pytest.fixture(scope="module")
def float_model() -> bytes:
    return convert(GRAPH, ExportOptions())


def float_tensors(shape: tuple[int, ...] = (1, SIDE, SIDE, 3)) -> WrittenModel:
    taken = TensorInfo(name="image", shape=shape, layout="NHWC", dtype="float32")
    logits = TensorInfo(name="logits", shape=(1, CLASSES), layout="NC", dtype="float32")
    return WrittenModel(MODEL_FILE, taken, [logits], {})


def write_artifact(folder: Path, model: bytes, written: WrittenModel | None = None) -> Artifact:
    written = written or float_tensors()
    folder.mkdir(exist_ok=True)
    (folder / "model.tflite").write_bytes(model)
    return with_manifest(
        folder,
        target="tflite",
        model=ModelSource(name="tiny", num_classes=CLASSES),
        model_file="model.tflite",
        input=written.input,
        outputs=written.outputs,
        preprocessing=GRAPH.record.preprocessing,
        quantization=Quantization(macs={}, parameters={}),
    )


@pytest.fixture(scope="module")
def artifact(float_model: bytes, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    model = finish(TfliteGraph(float_model), GRAPH, "fp32", ExportOptions())
    return write_artifact(tmp_path_factory.mktemp("run") / "tflite-fp32", model)


def test_pictures_and_floats_give_the_logits(
    artifact: Artifact, pictures: np.ndarray, expected: np.ndarray
) -> None:
    session = open_session(artifact)
    normalized = GRAPH.record.preprocessing.normalize(pictures)
    for batch in (pictures, normalized):
        np.testing.assert_allclose(session.run(batch)["logits"], expected, atol=1e-5 * np.ptp(expected))
    prepared = session.prepare(pictures[:1])
    np.testing.assert_array_equal(
        session.run_prepared(prepared)["logits"], session.run(pictures[:1])["logits"]
    )


def test_one_session_serves_several_threads(artifact: Artifact, pictures: np.ndarray) -> None:
    session = open_session(artifact, threads=2)
    alone = [session.run(picture[None])["logits"] for picture in pictures]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda picture: session.run(picture[None])["logits"], [*pictures] * 20))
    for index, logits in enumerate(together):
        np.testing.assert_array_equal(logits, alone[index % len(pictures)])


@pytest.mark.parametrize("interface", ["uint8", "int8"])
def test_integer_inputs_and_outputs_are_floats_outside(
    interface: Interface, pictures: np.ndarray, expected: np.ndarray, tmp_path: Path
) -> None:
    options, policy = ExportOptions(input=interface, output=interface), QuantPolicy("w8a8")
    quantizer = TfliteExporter().quantizer(GRAPH, policy, options, lambda: iter(pictures[:, None]))
    folder = tmp_path / "tflite-w8a8"
    folder.mkdir()
    written = quantizer.write(policy.plan_for("tiny"), folder)
    artifact = write_artifact(folder, (folder / MODEL_FILE).read_bytes(), written)
    operators = read_operators(artifact.model_path)
    assert (operators[0].inputs[0].dtype, operators[-1].output.dtype) == (interface, interface)

    session = open_session(artifact)
    logits = session.run(pictures)["logits"]
    assert logits.dtype == np.float32
    assert np.abs(logits - expected).max() < 0.1 * np.ptp(expected)


def test_a_file_that_does_not_load_is_one_line(float_model: bytes, tmp_path: Path) -> None:
    broken = write_artifact(tmp_path / "broken", float_model[: len(float_model) // 2])
    with pytest.raises(MfDeployError, match="Cannot load broken") as raised:
        open_session(broken)
    assert "\n" not in str(raised.value)


def test_a_manifest_that_does_not_fit_the_file_is_refused(float_model: bytes, tmp_path: Path) -> None:
    model = finish(TfliteGraph(float_model), GRAPH, "fp32", ExportOptions())
    with pytest.raises(MfDeployError, match="the manifest says"):
        open_session(write_artifact(tmp_path / "shape", model, float_tensors((4, SIDE, SIDE, 3))))
    unnamed = write_artifact(tmp_path / "names", float_model.replace(b"logits", b"scores"))
    with pytest.raises(MfDeployError, match="it has no tensor 'logits'"):
        open_session(unnamed)


def test_opening_is_silent(artifact: Artifact, capfd: pytest.CaptureFixture[str]) -> None:
    open_session(artifact)
    assert capfd.readouterr() == ("", "")


def test_native_errors_are_let_through_and_small_talk_is_not(capfd: pytest.CaptureFixture[str]) -> None:
    with quiet_native():
        os.write(2, b"INFO: Created a delegate\nI0000 00:00:12.3 file.cc:4] told\nERROR: it broke\n")
    assert capfd.readouterr().err == "ERROR: it broke\n"
