"""Write artifacts: float exports and quantized ones, each proven before it is handed over."""

import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from mf_deploy import __version__
from mf_deploy.artifact import (
    MANIFEST_NAME,
    TARGETS,
    Artifact,
    Calibration,
    Manifest,
    Parity,
    Quantization,
    Scheme,
    list_files,
    whole_folder,
)
from mf_deploy.errors import GATE_FAILED, MfDeployError, nearest, require
from mf_deploy.export.arm_proof import RefusedOnArm, prove_on_arm
from mf_deploy.export.lower.graph import DeployGraph
from mf_deploy.export.module_paths import weighted_modules
from mf_deploy.export.parity import gate_parity, measure_parity, seeded_pictures
from mf_deploy.export.target import ExportOptions, Quantizer, TargetExporter, WrittenModel
from mf_deploy.quantization import QuantPlan, QuantPolicy

if TYPE_CHECKING:
    from mf_deploy.data import LabelledImages

__all__ = [
    "MIN_CALIBRATION_IMAGES",
    "Calibrated",
    "ExportOptions",
    "Probe",
    "Quantizer",
    "calibrate",
    "describe",
    "export",
    "get_exporter",
    "quantize",
    "write_quantized",
]

PARITY_SAMPLES = 4
MIN_CALIBRATION_IMAGES = 2


@dataclass(frozen=True)
class Probe:
    """What an artifact is proven on: the reference model and some (N, H, W, 3) uint8 pictures."""

    model: nn.Module
    pictures: np.ndarray
    inputs: str

    @classmethod
    def seeded(cls, model: nn.Module, input_size: int) -> "Probe":
        return cls(model, seeded_pictures(PARITY_SAMPLES, input_size), "seeded pictures")


def get_exporter(target: str) -> TargetExporter:
    """The exporter of ``target``.

    Raises:
        MfDeployError: unknown target, or its packages are not installed (exit code 3).
    """
    if target == "onnx":
        from mf_deploy.export.onnx import OnnxExporter

        exporter: TargetExporter = OnnxExporter()
    elif target == "tflite":
        from mf_deploy.export.tflite import TfliteExporter

        exporter = TfliteExporter()
    elif target == "coreml":
        from mf_deploy.export.coreml import CoremlExporter

        exporter = CoremlExporter()
    else:
        raise MfDeployError(
            f"Unknown target {target!r}", "it is not supported", nearest(target, list(TARGETS))
        )
    for module in exporter.modules:
        require(module, exporter.name)
    return exporter


def artifact_name(target: str, scheme: str, kind: str = "deploy") -> str:
    """The artifact's folder in a run: ``<target>-<scheme>``, with ``-reference`` for the graph as written."""
    return f"{target}-{scheme}" + ("-reference" if kind == "reference" else "")


def export(
    graph: DeployGraph,
    target: str,
    scheme: str,
    out: Path,
    probe: Probe,
    options: ExportOptions = ExportOptions(),  # noqa: B008 (frozen)
    force: bool = False,
) -> Artifact:
    """Write the float model of ``graph`` as the artifact folder ``out``.

    Raises:
        MfDeployError: unknown target or scheme, an output folder that cannot be written or exists, or a
            model file that does not reproduce the reference (exit code 1; nothing is kept).
    """
    exporter = get_exporter(target)
    if scheme not in exporter.float_schemes:
        raise MfDeployError(
            f"Unknown precision {scheme!r}",
            "not a float scheme",
            nearest(scheme, list(exporter.float_schemes)),
        )

    def write(folder: Path, half: bool) -> Artifact:
        chosen = options if half else replace(options, half_precision=False)
        written = exporter.write(graph, scheme, chosen, folder)
        return Artifact(folder, describe(folder, exporter, graph, scheme, written))

    with whole_folder(out, force) as folder:
        _prove_and_keep(write, folder, out.name, probe)
    return Artifact.open(out)


@dataclass(frozen=True)
class Calibrated:
    """A graph that is ready to be quantized by any plan, and the images that made it so."""

    exporter: TargetExporter
    graph: DeployGraph
    quantizer: Quantizer
    images: Calibration | None


def calibrate(
    graph: DeployGraph,
    target: str,
    calibration: "LabelledImages",
    policy: QuantPolicy,
    options: ExportOptions = ExportOptions(),  # noqa: B008 (frozen)
) -> Calibrated:
    """Convert ``graph`` for ``target`` and measure on ``calibration`` what ``policy`` needs to know.

    Raises:
        MfDeployError: a target that has no such arithmetic, a model that it cannot express, or fewer than
            two usable images for a policy that needs them.
    """
    exporter = get_exporter(target)
    exporter.refuse(policy, options)
    digests: list[str] = []

    def batches() -> Iterator[np.ndarray]:
        """Whole batches; the digests are those of the images that were really used."""
        digests.clear()
        for batch in calibration.batches(graph.record.preprocessing, graph.batch):
            if len(batch.pictures) == graph.batch:
                digests.extend(batch.digests)
                yield batch.pictures
        if len(digests) < MIN_CALIBRATION_IMAGES * graph.batch:
            raise MfDeployError(
                f"Too few images in {calibration.path}",
                f"{len(digests)} in whole batches of {graph.batch}; the range of an activation needs more",
                f"Give at least {MIN_CALIBRATION_IMAGES} calibration images, better 256.",
            )

    quantizer = exporter.quantizer(graph, policy, options, batches)
    return Calibrated(exporter, graph, quantizer, _calibration(calibration, digests) if digests else None)


def write_quantized(
    calibrated: Calibrated, plan: QuantPlan, scheme: Scheme, out: Path, probe: Probe, force: bool = False
) -> Artifact:
    """Write the artifact folder ``out``: the model quantized by ``plan``, proven on this machine and on ARM.

    Raises:
        MfDeployError: as ``export``; also for a plan of unknown modules, or when nothing was quantized.
    """
    exporter, graph = calibrated.exporter, calibrated.graph
    plan.check(weighted_modules(probe.model).values())

    def write(folder: Path, half: bool) -> Artifact:
        quantizer = calibrated.quantizer if half else calibrated.quantizer.in_single_precision()
        manifest = describe(folder, exporter, graph, scheme, quantizer.write(plan, folder))
        manifest.plan, manifest.calibration = dict(plan.modules), calibrated.images
        if not manifest.quantization.parameters.get("int8"):
            raise MfDeployError(
                f"Nothing was quantized for {exporter.name}",
                "no weight is int8",
                "Choose another scheme, or a plan that leaves less in fp32.",
                GATE_FAILED,
            )
        return Artifact(folder, manifest)

    with whole_folder(out, force) as folder:
        _prove_and_keep(write, folder, out.name, probe)
    return Artifact.open(out)


def quantize(
    graph: DeployGraph,
    target: str,
    calibration: "LabelledImages",
    policy: QuantPolicy,
    out: Path,
    probe: Probe,
    options: ExportOptions = ExportOptions(),  # noqa: B008 (frozen)
    force: bool = False,
) -> Artifact:
    """Write ``graph`` quantized by ``policy`` as the artifact folder ``out``.

    Raises:
        MfDeployError: as ``calibrate`` and ``write_quantized``.
    """
    if policy.scheme == "fp16":
        return export(graph, target, policy.scheme, out, probe, options, force)
    calibrated = calibrate(graph, target, calibration, policy, options)
    plan = policy.plan_for(graph.record.source.name)
    return write_quantized(calibrated, plan, policy.scheme, out, probe, force)


def _calibration(images: "LabelledImages", digests: list[str]) -> Calibration:
    from mf_deploy.data.images import digest_of

    return Calibration(
        source=images.path.name,
        samples=len(digests),
        digest=digest_of(digests),
        image_digests=sorted(digests),
    )


def describe(
    folder: Path,
    exporter: TargetExporter,
    graph: DeployGraph,
    scheme: str,
    written: WrittenModel,
    counted: bool = True,
) -> Manifest:
    """The manifest of the model file in ``folder``; nothing is proven yet.

    Args:
        counted: read the file and count its precisions; a search that tries many plans does without.
    """
    counts = exporter.count(folder / written.model_file) if counted else Quantization(macs={}, parameters={})
    return Manifest(
        target=exporter.name,
        scheme=scheme,
        graph=graph.kind,
        model=graph.record.source,
        model_file=written.model_file,
        input=written.input,
        outputs=written.outputs,
        preprocessing=graph.record.preprocessing,
        labels=graph.record.labels,
        reference_sha256=graph.record.weights_sha256 or None,
        quantization=counts,
        half_precision=written.half_precision,
        weight_type=written.weight_type,
        rewrites=list(graph.rewrites),
        parity=Parity(
            inputs="", samples=0, max_abs_error=0, logits_range=0, agreement=0, sqnr_db=0, tolerance=None
        ),
        tools={
            "mf-deploy": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            **written.tools,
        },
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        files=list_files(folder),
    )


def _prove_and_keep(write: Callable[[Path, bool], Artifact], folder: Path, name: str, probe: Probe) -> None:
    """Write a model file and its manifest into ``folder``, once it is proven here and on ARM.

    A file whose floats an ARM CPU refuses, or gets wrong, in half precision is written again without it.
    Float files have no other kernels on ARM, and are proven here only.

    Args:
        write: writes the model file and describes it; the flag allows half precision.
    """
    artifact = write(folder, True)
    try:
        _prove(artifact, name, probe)
    except RefusedOnArm as error:
        if not artifact.manifest.half_precision:
            raise
        artifact = write(folder, False)
        artifact.manifest.remarks.append(f"without half precision: {error.what}, {error.why}")
        _prove(artifact, name, probe)
    (folder / MANIFEST_NAME).write_text(artifact.manifest.model_dump_json(indent=2))


def _prove(artifact: Artifact, name: str, probe: Probe) -> None:
    """Compare the model file with the reference on this machine, and this machine with ARM CPUs."""
    manifest = artifact.manifest
    manifest.parity = measure_parity(artifact, probe.model, probe.pictures, probe.inputs)
    gate_parity(name, manifest.parity)
    if manifest.half_precision or manifest.quantization.parameters.get("int8"):
        manifest.ran_on = prove_on_arm(artifact, name, probe.pictures)
