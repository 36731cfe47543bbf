"""Accuracy of artifacts against their PyTorch reference, on the same images, in one pass over them."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib import metadata
from typing import Literal

from pydantic import Field

from mf_deploy.artifact import Artifact, Record, Scheme, Target
from mf_deploy.data.images import LabelledImages
from mf_deploy.errors import MfDeployError
from mf_deploy.evaluation.comparison import TOP_K, Comparison, PairedTally, Subject
from mf_deploy.evaluation.gates import GateResult, Gates, judge
from mf_deploy.evaluation.labels import refuse_permuted_labels
from mf_deploy.evaluation.overlap import refuse_overlap
from mf_deploy.evaluation.statistics import PairedDrop, Proportion, paired_drop, proportion
from mf_deploy.runtimes.session import Session

BATCH_SIZE = 32
Progress = Callable[[int, int], None]
MIL_INTERPRETER = "MIL interpreter"


class AccuracyReport(Record):
    """What ``check`` found for one artifact. Intervals are 95 %; percent and points are out of 100.

    ``reference_*`` is the PyTorch model on the same images. Without labels there is no accuracy, only
    the agreement and the difference of the logits.
    """

    schema_version: Literal[1] = 1
    artifact: str = Field(description="name of the artifact folder")
    path: str
    model: str
    target: Target
    scheme: Scheme
    model_sha256: str
    model_bytes: int
    kind: Literal["host", "emulated"]
    device: str = Field("host", description="as mf-check addresses it, e.g. arm:cortex-a76")
    runtime: str = Field(description="what ran the artifact")
    remark: str | None = Field(None, description="what a reader should know of how it was run")
    data: str
    images: int
    skipped: int = Field(description="unreadable images that were left out")
    top1: Proportion | None
    top5: Proportion | None = Field(description="None also for five classes or fewer")
    reference_top1: Proportion | None
    reference_top5: Proportion | None
    drop: PairedDrop | None = Field(description="of top-1 against the reference")
    agreement: Proportion = Field(description="images with the same top-1 as the reference")
    sqnr_db: float
    max_abs_error: float = Field(description="largest |difference| of any logit")
    mean_abs_error: float
    logits_range: float = Field(description="max - min of the reference logits")
    non_finite: int = Field(description="images with a NaN or infinite logit; they count as wrong")
    images_per_s: float | None = Field(
        description="of the inference, beside the other sessions of the pass; None in emulation of a CPU"
    )
    reference_images_per_s: float
    gates: list[GateResult]
    created: str = Field(description="UTC, ISO 8601")

    @property
    def passed(self) -> bool:
        """Whether every gate passed; an undecided gate has not."""
        return all(gate.verdict == "pass" for gate in self.gates)


class AccuracyReports(Record):
    """The file that ``mf-check --json`` writes."""

    schema_version: Literal[1] = 1
    reports: list[AccuracyReport]


def check(
    artifact: Artifact,
    images: LabelledImages,
    against: Session,
    gates: Gates | None = None,
    device: str = "host",
) -> AccuracyReport:
    """Judge one artifact on all of ``images`` against the reference session.

    Raises:
        MfDeployError: as ``check_all``.
    """
    from mf_deploy.runtimes import open_session

    refuse_unfit([artifact], images, gates or Gates())
    return check_all([Subject(artifact, open_session(artifact, device), against)], images, gates)[0]


def check_all(
    subjects: Sequence[Subject],
    images: LabelledImages,
    gates: Gates | None = None,
    on_progress: Progress | None = None,
) -> list[AccuracyReport]:
    """Judge several artifacts, also of several models, reading the images once per preprocessing.

    A reference session that several subjects share runs once. Memory does not grow with the number
    of images, except for a few bytes an image.

    Args:
        on_progress: called after each batch with how many images are done, and of how many; an image
            counts once for each pass.

    Raises:
        MfDeployError: random weights, calibration images among the images, labels that do not fit the
            model or look permuted, a gate on accuracy without labels, no readable image.
    """
    gates = gates or Gates()
    refuse_unfit([subject.artifact for subject in subjects], images, gates)
    reports: dict[int, AccuracyReport] = {}
    groups = _group_by_input(subjects)
    for number, group in enumerate(groups):
        bound = bind_images(group[0].artifact, images)
        comparison = Comparison(group)
        for done in _run(comparison, bound):
            if on_progress is not None:
                on_progress(number * len(images) + done, len(groups) * len(images))
        _refuse_permuted(comparison, bound)
        for subject, tally in comparison.tallies:
            reports[id(subject)] = _report(subject, tally, comparison, bound, gates)
    return [reports[id(subject)] for subject in subjects]


def refuse_unfit(artifacts: Sequence[Artifact], images: LabelledImages, gates: Gates) -> None:
    """Raise an error when the images cannot judge these artifacts, before anything slow is done.

    Raises:
        MfDeployError: random weights, labels that do not fit a model, a gate on accuracy without labels,
            calibration images among the images.
    """
    refuse_random_weights(artifacts)
    for artifact in artifacts:
        bind_images(artifact, images)
    refuse_unlabelled(images, gates)
    refuse_overlap(artifacts, images)


def refuse_unlabelled(images: LabelledImages, gates: Gates) -> None:
    """Raise an error when a gate is on accuracy, and the images have no labels."""
    if gates.max_drop_points is not None and not images.labelled:
        raise MfDeployError(
            f"Cannot judge an accuracy drop on {images.path}",
            "the images have no labels",
            "Give labelled --data, or --min-agreement in place of --max-drop.",
        )


def refuse_random_weights(artifacts: Iterable[Artifact]) -> None:
    """Raise an error when an artifact's weights are not trained: its accuracy would mean nothing."""
    for artifact in artifacts:
        if artifact.manifest.model.random_weights:
            raise MfDeployError(
                f"No accuracy for {artifact.folder}",
                f"{artifact.manifest.model.name} was exported with random weights",
                "Export it from a checkpoint: mf-export MODEL --target all --checkpoint F --force",
            )


def _group_by_input(subjects: Sequence[Subject]) -> list[list[Subject]]:
    """Subjects that take the same pictures and labels, in the order of their first members."""
    groups: dict[tuple[str, int, tuple[str, ...]], list[Subject]] = {}
    for subject in subjects:
        manifest = subject.artifact.manifest
        key = (
            manifest.preprocessing.model_dump_json(),
            manifest.model.num_classes,
            tuple(manifest.labels or ()),
        )
        groups.setdefault(key, []).append(subject)
    return list(groups.values())


def bind_images(artifact: Artifact, images: LabelledImages) -> LabelledImages:
    """The images with their labels, if they have any, as the artifact's class indices."""
    if not images.labelled:
        return images
    return images.bind(artifact.manifest.labels, artifact.manifest.model.num_classes)


def runtime_name(target: Target) -> str:
    """What runs a target on this machine; off macOS a Core ML program runs in our interpreter."""
    if target == "coreml":
        return "Core ML" if sys.platform == "darwin" else MIL_INTERPRETER
    name, package = {"onnx": ("ONNX Runtime", "onnxruntime"), "tflite": ("LiteRT", "ai-edge-litert")}[target]
    return f"{name} {metadata.version(package)}"


def _run(comparison: Comparison, images: LabelledImages) -> Iterator[int]:
    """One pass over the images; yields how many are done."""
    preprocessing = comparison.tallies[0][0].artifact.manifest.preprocessing
    cores = os.cpu_count() or 1
    with ThreadPoolExecutor(cores) as pool:
        for batch in images.batches(preprocessing, BATCH_SIZE, workers=max(2, cores // 2)):
            comparison.add(batch, pool)
            yield comparison.images


def _refuse_permuted(comparison: Comparison, images: LabelledImages) -> None:
    num_classes = comparison.tallies[0][0].artifact.manifest.model.num_classes
    for labels, predictions in comparison.labels_and_predictions():
        refuse_permuted_labels(str(images.path), labels, predictions, num_classes)


def _report(
    subject: Subject, tally: PairedTally, comparison: Comparison, images: LabelledImages, gates: Gates
) -> AccuracyReport:
    manifest = subject.artifact.manifest
    runtime, device = runtime_name(manifest.target), subject.session.device
    reference = comparison.references[id(subject.against)]
    n = comparison.labelled
    has_top5 = n > 0 and manifest.model.num_classes > TOP_K
    drop = paired_drop(tally.lost, tally.gained, n) if n else None
    agreement = proportion(tally.agreed, comparison.images)
    return AccuracyReport(
        artifact=subject.artifact.name,
        path=str(subject.artifact.folder),
        model=manifest.model.name,
        target=manifest.target,
        scheme=manifest.scheme,
        model_sha256=subject.artifact.sha256,
        model_bytes=subject.artifact.size_bytes,
        kind="host" if runtime != MIL_INTERPRETER and device == "host" else "emulated",
        device=device,
        runtime=runtime if device == "host" else f"{runtime} on {device}",
        remark=subject.session.remark,
        data=str(images.path),
        images=comparison.images,
        skipped=len(images.skipped),
        top1=proportion(tally.top1, n) if n else None,
        top5=proportion(tally.top5, n) if has_top5 else None,
        reference_top1=proportion(reference.top1, n) if n else None,
        reference_top5=proportion(reference.top5, n) if has_top5 else None,
        drop=drop,
        agreement=agreement,
        sqnr_db=tally.error.sqnr_db,
        max_abs_error=tally.error.max_abs,
        mean_abs_error=tally.error.mean_abs,
        logits_range=tally.error.reference_range,
        non_finite=tally.non_finite,
        images_per_s=comparison.images / max(tally.seconds, 1e-9) if device == "host" else None,
        reference_images_per_s=comparison.images / max(reference.seconds, 1e-9),
        gates=judge(gates, drop, agreement, tally.non_finite),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
