"""int8 side by side: what the usual tools give by default, and what mf-quantize gives.

    python -m scripts.int8 [--part accuracy|instructions|all] [--models mobile_former_26m,...] [--samples 256]

``accuracy``: the trained 52M of the folder ``shared`` beside the checkout, calibrated on 256 training images,
judged on 5000: top-1, agreement, SQNR, size, ARM instructions, and time on this host against the float model
of the same engine, in turns. ``instructions``: seeded random weights at 224 px, our int8 against our fp32 on
an emulated cortex-a76. Writes ``results/int8.json`` and its ``.md``; a part left out keeps its figures.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import click
import numpy as np
from pydantic import Field

from mf_deploy.artifact import MANIFEST_NAME, Artifact, Record, Target, read_record, write_whole
from mf_deploy.benchmarks.devices.arm import Arm
from mf_deploy.calibration.equalization import equalized, graph_to_quantize
from mf_deploy.cli.command import run_command
from mf_deploy.cli.options import open_run
from mf_deploy.data import LabelledImages, open_images
from mf_deploy.errors import MfDeployError
from mf_deploy.evaluation.accuracy import check_all
from mf_deploy.evaluation.comparison import Subject
from mf_deploy.export import Probe, calibrate, describe, export, get_exporter, write_quantized
from mf_deploy.export.lower import lower, reference_graph
from mf_deploy.export.onnx import INPUT_NAME
from mf_deploy.export.target import WrittenModel
from mf_deploy.export.tflite_quantizer import why_it_fails
from mf_deploy.quantization import QuantPlan, QuantPolicy
from mf_deploy.runtimes import open_reference, open_session
from mf_deploy.runtimes.remembered import RememberedSession
from scripts.artifacts import RESULTS, ROOT, SHARED, random_model, record_of, save_pictures
from scripts.latency import host_speedup

CPU = "arm:cortex-a76"
COUNTED = tuple(f"mobile_former_{size}m" for size in (26, 52, 294, 508))
ENGINES: dict[Target, str] = {"onnx": "ONNX Runtime", "tflite": "LiteRT", "coreml": "Core ML"}
NEEDS_APPLE = "not run: linear_quantize_activations needs Apple's runtime"


class ToolRow(Record):
    """One way to quantize the trained model; ``failed`` says why there are no figures."""

    engine: str
    tool: str
    failed: str | None = None
    top1_percent: float | None = None
    drop_points: tuple[float, float, float] | None = None
    agreement_percent: float | None = None
    sqnr_db: float | None = None
    int8_macs_percent: float | None = None
    megabytes: float | None = None
    arm_instructions: int | None = None
    host_time_against_fp32: tuple[float, float, float] | None = None


class CountRow(Record):
    """Our int8 against our fp32, instructions of one inference."""

    model: str
    engine: str
    fp32: int
    int8: int

    @property
    def ratio(self) -> float:
        return self.int8 / self.fp32


class Tables(Record):
    """What the JSON file holds."""

    schema_version: Literal[1] = 1
    created: str = ""
    tools: list[ToolRow] = Field(default_factory=list)
    counts: list[CountRow] = Field(default_factory=list)


@dataclass
class Trained:
    """The trained 52M, exported, with its calibration images and the images that judge it."""

    run: Path
    calibration: LabelledImages
    judged_on: LabelledImages

    def __post_init__(self) -> None:
        self.folder, self.model, self.record = open_run(self.run)
        self.probe = Probe.seeded(self.model, self.record.preprocessing.input_size)
        self.reference = RememberedSession(open_reference(self.run, 8))

    def inputs(self) -> Iterator[np.ndarray]:
        """The calibration images one by one, (1, 3, H, W), normalised."""
        for batch in self.calibration.batches(self.record.preprocessing, 1):
            yield self.record.preprocessing.normalize(batch.pictures)


def onnx_default(trained: Trained, plain: Artifact, path: Path) -> str:
    """onnxruntime.quantization.quantize_static as its documentation shows it."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.images = trained.inputs()

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.images, None)
            return None if image is None else {INPUT_NAME: image}

    quantize_static(str(plain.model_path), str(path), Reader())
    return path.name


def tflite_default(trained: Trained, plain: Artifact, path: Path) -> str:
    """ai-edge-quantizer's static int8 recipe as its documentation shows it."""
    from ai_edge_quantizer import quantizer, recipe

    tool = quantizer.Quantizer(str(plain.model_path), recipe.static_wi8_ai8())
    images = [{"image": np.ascontiguousarray(image.transpose(0, 2, 3, 1))} for image in trained.inputs()]
    ranges = tool.calibrate({"serving_default": images})
    content = tool.quantize(ranges).quantized_model
    assert content is not None
    path.write_bytes(bytes(content))
    return path.name


def coreml_default(trained: Trained, plain: Artifact, path: Path) -> str:
    """coremltools' linear_quantize_weights, which is all of its int8 that runs off macOS."""
    import coremltools as ct
    from coremltools.optimize import coreml as cto

    model = ct.models.MLModel(str(plain.model_path), skip_model_load=True)
    config = cto.OptimizationConfig(global_config=cto.OpLinearQuantizerConfig(mode="linear_symmetric"))
    cto.linear_quantize_weights(model, config).save(str(path))
    return path.name


DEFAULTS: dict[Target, tuple[str, Callable[[Trained, Artifact, Path], str]]] = {
    "onnx": ("onnxruntime quantize_static, default", onnx_default),
    "tflite": ("ai-edge-quantizer static int8, default", tflite_default),
    "coreml": ("coremltools linear_quantize_weights, default", coreml_default),
}


def by_tool(trained: Trained, target: Target, plain: Artifact, folder: Path) -> Artifact:
    """The plain export quantized by the target's own tool, as an artifact that our sessions open."""
    exporter, graph = get_exporter(target), reference_graph(trained.model, trained.record)
    folder.mkdir()
    name = DEFAULTS[target][1](trained, plain, folder / plain.manifest.model_file)
    manifest = plain.manifest
    written = WrittenModel(name, manifest.input, manifest.outputs, manifest.tools)
    described = describe(folder, exporter, graph, "w8a8", written)
    (folder / MANIFEST_NAME).write_text(described.model_dump_json())
    why = why_it_fails(folder / name) if target == "tflite" else None  # in a process of its own: it may crash
    if why is not None:
        raise MfDeployError("LiteRT does not run the file", why, "Use mf-quantize.")
    return Artifact.open(folder)


def ours(trained: Trained, target: Target, scheme: str, folder: Path) -> Artifact:
    """What ``mf-quantize`` writes; mixed by the plan that is committed in examples/plans."""
    policy = QuantPolicy(scheme, committed_plan(target) if scheme == "mixed" else None)  # type: ignore[arg-type]
    graph = graph_to_quantize(trained.model, trained.record, target, 1, trained.calibration, policy)
    calibrated = calibrate(graph, target, trained.calibration, policy)
    return write_quantized(
        calibrated, policy.plan_for(trained.record.source.name), policy.scheme, folder, trained.probe
    )


def committed_plan(target: Target) -> QuantPlan:
    path = ROOT / "examples/plans" / f"mobile_former_52m-{target}.json"
    return read_record(path, QuantPlan, "Search for one with mf-quantize --scheme mixed.")


def compare_tools(
    trained: Trained, targets: list[Target], scratch: Path, device: Arm, keep: Callable[[ToolRow], None]
) -> None:
    """Every tool and scheme, for each of ``targets``; each row is kept as soon as it is there."""
    for target in targets:
        engine = ENGINES[target]
        plain = export(
            reference_graph(trained.model, trained.record), target, "fp32", scratch / target, trained.probe
        )
        tool = DEFAULTS[target][0]
        makers: list[tuple[str, Callable[[Path], Artifact]]] = [
            ("plain export, fp32", lambda folder, plain=plain: plain),
            (tool, lambda folder, target=target, plain=plain: by_tool(trained, target, plain, folder)),
            *(
                (f"mf-quantize {scheme}", lambda folder, t=target, s=scheme: ours(trained, t, s, folder))
                for scheme in ("w8a8", "mixed", "w8")
            ),
        ]
        if target == "coreml":
            keep(ToolRow(engine=engine, tool="coremltools int8 activations", failed=NEEDS_APPLE))
        for number, (name, make) in enumerate(makers):
            click.echo(f"{engine}: {name}", err=True)
            folder = scratch / f"{target}-{number}"
            keep(measured(trained, engine, name, lambda m=make, f=folder: m(f), plain, device))


def measured(
    trained: Trained,
    engine: str,
    tool: str,
    make: Callable[[], Artifact],
    plain: Artifact,
    device: Arm,
) -> ToolRow:
    """All figures of one artifact; a tool that fails is a row that says so."""
    try:
        artifact = make()
        session = open_session(artifact)
        subject = Subject(artifact, session, trained.reference)
        report = check_all([subject], trained.judged_on)[0]
    except Exception as error:  # whatever a tool or an engine raises is its result
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return ToolRow(engine=engine, tool=tool, failed=f"fails: {reason[:160]}")
    counts = None
    if artifact.manifest.target != "coreml":
        counted = device.count(artifact).instructions
        counts = counted.total if counted else None
    macs, drop = artifact.manifest.quantization.macs, report.drop
    timed = artifact.manifest.target != "coreml" and artifact.folder != plain.folder
    return ToolRow(
        engine=engine,
        tool=tool,
        top1_percent=report.top1.percent if report.top1 else None,
        drop_points=(drop.points, drop.low_points, drop.high_points) if drop else None,
        agreement_percent=report.agreement.percent,
        sqnr_db=report.sqnr_db,
        int8_macs_percent=100 * macs.get("int8", 0) / max(sum(macs.values()), 1),
        megabytes=artifact.size_bytes / 1e6,
        arm_instructions=counts,
        host_time_against_fp32=host_speedup(artifact, plain) if timed else None,
    )


def count_int8(name: str, target: Target, device: Arm) -> CountRow:
    """Instructions of our fp32 and our w8a8 artifact of one variant, random weights, 224 px."""
    model, record = random_model(name), record_of(name)
    probe = Probe.seeded(model, record.preprocessing.input_size)
    with tempfile.TemporaryDirectory() as scratch:
        images = seeded_images(Path(scratch) / "images", record.preprocessing.input_size)
        fp32 = export(lower(model, record, target), target, "fp32", Path(scratch) / "fp32", probe)
        graph = equalized(model, record, target, 1, images)
        calibrated = calibrate(graph, target, images, QuantPolicy("w8a8"))
        plan = QuantPlan.uniform(name, "int8")
        int8 = write_quantized(calibrated, plan, "w8a8", Path(scratch) / "int8", probe)
        totals = [total_of(device, artifact) for artifact in (fp32, int8)]
    row = CountRow(model=name, engine=ENGINES[target], fp32=totals[0], int8=totals[1])
    click.echo(
        f"{name} {row.engine}: {row.fp32 / 1e6:.2f} -> {row.int8 / 1e6:.2f} M, {row.ratio:.2f}", err=True
    )
    return row


def total_of(device: Arm, artifact: Artifact) -> int:
    instructions = device.count(artifact).instructions
    assert instructions is not None
    return instructions.total


def seeded_images(folder: Path, side: int) -> LabelledImages:
    """Eight pictures on disk: enough for ranges, which instruction counts do not depend on."""
    save_pictures(folder, 8, side)
    return open_images(folder)


def markdown(tables: Tables) -> str:
    lines = [
        "# int8 side by side",
        "",
        "Made by `python -m scripts.int8`. The trained Mobile-Former 52M at 96 px, calibrated on 256 "
        "training images, judged on 5,000 validation images against PyTorch. Drop with its 95 % interval. "
        "ARM: instructions of one inference on an emulated cortex-a76, which is no latency. Host: time "
        "against the plain fp32 export of the same engine, in turns in one process on x86, below 1 is "
        "faster. Core ML runs on the MIL interpreter.",
        "",
        "| engine | tool | top-1 % | drop, points | agreement % | SQNR dB | int8 MACs % | MB | ARM M "
        "| host |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in tables.tools:
        if row.failed:
            lines.append(f"| {row.engine} | {row.tool} | {row.failed} | | | | | | | |")
            continue
        lines.append(
            f"| {row.engine} | {row.tool} | {_number(row.top1_percent, 2)} | {_interval(row.drop_points)} | "
            f"{_number(row.agreement_percent, 1)} | {_number(row.sqnr_db, 1)} | "
            f"{_number(row.int8_macs_percent, 0)} | {_number(row.megabytes, 2)} | "
            f"{_number(row.arm_instructions and row.arm_instructions / 1e6, 1)} | "
            f"{_number(row.host_time_against_fp32 and row.host_time_against_fp32[0], 2)} |"
        )
    lines += [
        "",
        "## Our int8 against our fp32",
        "",
        "Million ARM instructions of one inference at 224 × 224, emulated cortex-a76, one thread, random "
        "weights.",
        "",
        "| model | engine | fp32 | int8 | ratio |",
        "|---|---|---:|---:|---:|",
        *(
            f"| {row.model} | {row.engine} | {row.fp32 / 1e6:.2f} | {row.int8 / 1e6:.2f} | {row.ratio:.2f} |"
            for row in tables.counts
        ),
    ]
    return "\n".join(lines) + "\n"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _interval(value: tuple[float, float, float] | None) -> str:
    return "" if value is None else f"{value[0]:+.2f} ({value[1]:+.2f} … {value[2]:+.2f})"


@click.command("scripts.int8")
@click.option("--part", type=click.Choice(["accuracy", "instructions", "all"]), default="all")
@click.option("--models", default=",".join(COUNTED), help="Variants to count, comma-separated.")
@click.option("--targets", default=",".join(ENGINES), help="Targets of the accuracy part.")
@click.option("--samples", default=256, help="Calibration images.")
@click.option("--limit", type=int, help="Judge on so many images only.")
def command(part: str, models: str, targets: str, samples: int, limit: int | None) -> None:
    """Quantize by every tool, and measure."""
    path, device = RESULTS / "int8.json", Arm(CPU)
    tables = read_record(path, Tables, "Remove it.") if path.exists() else Tables()
    if part in ("accuracy", "all"):

        def keep(row: ToolRow) -> None:
            same = (row.engine, row.tool)
            tables.tools = [*(old for old in tables.tools if (old.engine, old.tool) != same), row]
            tables.tools.sort(key=lambda of: list(ENGINES.values()).index(of.engine))
            _save(path, tables)

        _accuracy([t for t in ENGINES if t in targets.split(",")], samples, limit, device, keep)
    if part in ("instructions", "all"):
        for name in models.split(","):
            for target in ("tflite", "onnx"):
                row = count_int8(name, target, device)
                same = (row.model, row.engine)
                kept = [old for old in tables.counts if (old.model, old.engine) != same]
                order = [(model, engine) for model in COUNTED for engine in ENGINES.values()]
                tables.counts = sorted([*kept, row], key=lambda of: order.index((of.model, of.engine)))
                _save(path, tables)


def _accuracy(
    targets: list[Target], samples: int, limit: int | None, device: Arm, keep: Callable[[ToolRow], None]
) -> None:
    if not SHARED.is_dir():
        raise MfDeployError(f"No data at {SHARED}", "no such folder", "Put images and checkpoint there.")
    data = SHARED / "data"
    scratch = Path(tempfile.mkdtemp())
    try:
        from mf_deploy.cli.export import command as export_command

        options = ["mobile_former_52m", "--target", "onnx", "--out", str(scratch / "runs")]
        options += ["--checkpoint", str(SHARED / "reference/mobile_former_52m_tiny_imagenet.pth")]
        options += ["--input-size", "96", "--crop-fraction", "1", "--labels", "tiny-imagenet-200"]
        export_command.main(options, standalone_mode=False)
        trained = Trained(
            scratch / "runs/mobile_former_52m",
            open_images(data / "tiny-imagenet-calibration.tar", samples),
            open_images(data / "tiny-imagenet-val.tar", limit),
        )
        compare_tools(trained, targets, scratch, device, keep)
    finally:
        shutil.rmtree(scratch)


def _save(path: Path, tables: Tables) -> None:
    tables.created = datetime.now(UTC).isoformat(timespec="seconds")
    write_whole(path, (tables.model_dump_json(indent=1) + "\n").encode())
    write_whole(path.with_suffix(".md"), markdown(tables).encode())


if __name__ == "__main__":
    run_command(command)
