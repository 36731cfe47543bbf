"""Real artifacts against their reference on real images: counts by brute force, refusals, shared passes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from colours import (
    COLOURS,
    PREPROCESSING,
    ColourNet,
    fitted,
    model_source,
    write_artifact,
    write_images,
    write_run,
)

from mf_deploy.artifact import Artifact, Calibration
from mf_deploy.data import LabelledImages, open_images
from mf_deploy.errors import MfDeployError
from mf_deploy.evaluation.accuracy import AccuracyReport, check, check_all
from mf_deploy.evaluation.comparison import Subject
from mf_deploy.evaluation.gates import Gates
from mf_deploy.evaluation.labels import accuracy_when_renamed
from mf_deploy.runtimes import open_session
from mf_deploy.runtimes.session import Session
from mf_deploy.runtimes.torch import TorchSession


@pytest.fixture(scope="module")
def model() -> ColourNet:
    return fitted()


@pytest.fixture(scope="module")
def reference(model: ColourNet) -> Session:
    return TorchSession(model, PREPROCESSING, batch=32)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> LabelledImages:
    return open_images(write_images(tmp_path_factory.mktemp("images") / "set", per_class=25))


@pytest.fixture
def noisy(model: ColourNet, tmp_path: Path) -> Artifact:
    return write_artifact(tmp_path / "onnx-w8", model, "w8", noise=0.4)


def test_the_report_counts_what_brute_force_counts(
    model: ColourNet, reference: Session, images: LabelledImages, noisy: Artifact
) -> None:
    report = check(noisy, images, reference)
    [batch] = list(images.bind(list(COLOURS), 6).batches(PREPROCESSING, 1000))
    expected = model(torch.from_numpy(PREPROCESSING.normalize(batch.pictures))).numpy()
    logits = open_session(noisy).run(batch.pictures)["logits"]
    right, reference_right = (x.argmax(1) == batch.labels for x in (logits, expected))
    top5 = (np.argsort(-logits, axis=1)[:, :5] == batch.labels[:, None]).any(1)
    assert report.top1 is not None
    assert report.top5 is not None
    assert report.reference_top1 is not None
    assert report.drop is not None
    assert (report.images, report.top1.n) == (150, 150)
    assert report.top1.count == right.sum() < report.reference_top1.count == reference_right.sum()
    assert report.top5.count == top5.sum()
    assert report.drop.lost == (reference_right & ~right).sum() > 0
    assert report.drop.gained == (~reference_right & right).sum()
    assert report.drop.points == pytest.approx(100 * (reference_right.mean() - right.mean()))
    assert report.agreement.count == (logits.argmax(1) == expected.argmax(1)).sum()
    assert report.max_abs_error == pytest.approx(np.abs(logits - expected).max(), rel=1e-4)
    assert report.mean_abs_error == pytest.approx(np.abs(logits - expected).mean(), rel=1e-4)
    sqnr = 10 * np.log10((expected**2).sum() / ((logits - expected) ** 2).sum())
    assert report.sqnr_db == pytest.approx(sqnr, abs=0.01)


def test_the_report_survives_json(reference: Session, images: LabelledImages, noisy: Artifact) -> None:
    report = check(noisy, images, reference, Gates(max_drop_points=1, min_agreement_percent=90))
    assert AccuracyReport.model_validate_json(report.model_dump_json()) == report
    assert [gate.gate for gate in report.gates] == ["max_drop", "min_agreement"]


def test_artifacts_of_equal_preprocessing_share_one_pass(
    model: ColourNet,
    reference: Session,
    images: LabelledImages,
    tmp_path: Path,
) -> None:
    small = PREPROCESSING.model_copy(update={"mean": (0.5, 0.5, 0.5)})
    artifacts = [
        write_artifact(tmp_path / "a", model),
        write_artifact(tmp_path / "b", model, preprocessing=small),
        write_artifact(tmp_path / "c", model, noise=0.4),
    ]
    sessions = [reference, TorchSession(model, small, batch=8), reference]
    subjects = [Subject(a, open_session(a), s) for a, s in zip(artifacts, sessions, strict=True)]
    seen: list[tuple[int, int]] = []
    reports = check_all(subjects, images, on_progress=lambda done, total: seen.append((done, total)))
    assert [report.artifact for report in reports] == ["a", "b", "c"]
    assert reports[0].agreement.percent == 100 > reports[2].agreement.percent
    assert seen[-1] == (300, 300), "two passes over 150 images, for two ways to preprocess them"
    assert len(seen) == 10


def test_random_weights_are_refused(
    model: ColourNet, reference: Session, images: LabelledImages, tmp_path: Path
) -> None:
    artifact = write_artifact(tmp_path / "onnx-fp32", model, model=model_source(random_weights=True))
    with pytest.raises(MfDeployError, match="random weights"):
        check(artifact, images, reference)


def test_calibration_images_are_refused_and_counted(
    model: ColourNet, reference: Session, images: LabelledImages, tmp_path: Path
) -> None:
    digests = images.digests()
    calibration = Calibration(
        source="calibration.tar", samples=40, digest="0", image_digests=[*digests[10:17], "0" * 16]
    )
    artifact = write_artifact(tmp_path / "onnx-w8a8", model, "w8a8", calibration=calibration)
    with pytest.raises(
        MfDeployError, match=r"7 of the 150 images in .* are among the 40 from calibration\.tar"
    ):
        check(artifact, images, reference)
    disjoint = calibration.model_copy(update={"image_digests": ["0" * 16]})
    artifact = write_artifact(tmp_path / "other", model, "w8a8", calibration=disjoint)
    assert check(artifact, images, reference).images == 150


def test_images_without_labels_give_agreement_but_no_accuracy(
    reference: Session, noisy: Artifact, tmp_path: Path
) -> None:
    folder = write_images(tmp_path / "set", per_class=5) / "red"
    report = check(noisy, open_images(folder), reference, Gates(min_agreement_percent=50))
    assert report.top1 is report.top5 is report.drop is None
    assert report.agreement.n == report.images == 5
    with pytest.raises(MfDeployError, match="no labels"):
        check(noisy, open_images(folder), reference, Gates(max_drop_points=1))


class WithNaN(Session):
    """A session whose logits are NaN for every other image."""

    def __init__(self, inner: Session) -> None:
        super().__init__("broken", inner.input, inner.preprocessing)
        self.inner = inner

    def _infer(self, prepared: np.ndarray) -> dict[str, np.ndarray]:
        logits = self.inner.run_prepared(prepared)["logits"].copy()
        logits[::2, 3] = np.nan
        return {"logits": logits}


def test_nan_logits_are_counted_wrong_and_fail(
    model: ColourNet, reference: Session, images: LabelledImages, noisy: Artifact
) -> None:
    broken = WithNaN(TorchSession(model, PREPROCESSING, batch=2))
    [report] = check_all([Subject(noisy, broken, reference)], images)
    assert report.non_finite == 75
    assert report.agreement.count == 75
    assert report.max_abs_error < 1e-5
    assert not report.passed
    with pytest.raises(MfDeployError, match="NaN or infinite logits on"):
        check_all([Subject(noisy, reference, broken)], images)


def test_permuted_labels_are_refused(model: ColourNet, reference: Session, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "set", per_class=40)
    names = list(COLOURS)
    listing = [f"{path.name} {(names.index(path.parent.name) + 1) % 6}" for path in folder.rglob("*.png")]
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in folder.rglob("*.png"):
        path.rename(flat / path.name)
    (tmp_path / "labels.txt").write_text("\n".join(listing))
    artifact = write_artifact(tmp_path / "onnx-fp32", model)
    with pytest.raises(MfDeployError, match="look permuted"):
        check(artifact, open_images(flat, label_file=tmp_path / "labels.txt"), reference)


@pytest.mark.parametrize("kind", ["random", "constant", "weak", "one image a class"])
def test_poor_models_are_not_taken_for_permuted_labels(kind: str) -> None:
    rng = np.random.default_rng(0)
    classes = 1000 if kind == "one image a class" else 50
    labels = np.arange(1000) % classes
    predictions = rng.integers(0, classes, 1000)
    if kind == "constant":
        predictions[:] = 7
    if kind == "weak":
        predictions = np.where(rng.random(1000) < 0.15, labels, predictions)
    own, renamed = accuracy_when_renamed(labels, predictions, classes)
    assert own == renamed


def test_a_run_with_its_own_reference_is_checked_like_a_session(
    model: ColourNet, images: LabelledImages, tmp_path: Path
) -> None:
    from mf_deploy.runtimes import open_reference

    run = write_run(tmp_path / "colours", model)
    report = check(write_artifact(run / "onnx-fp32", model), images, open_reference(run, batch=32))
    assert report.agreement.percent == 100
    assert report.sqnr_db > 100
    assert (report.kind, report.model, report.target) == ("host", "colours", "onnx")
