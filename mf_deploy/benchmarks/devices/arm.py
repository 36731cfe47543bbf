"""An emulated ARM CPU: it counts instructions, because emulated times mean nothing."""

from datetime import UTC, datetime

from mf_deploy.artifact import Artifact
from mf_deploy.benchmarks.instructions import InstructionReport, Instructions, OperatorInstructions
from mf_deploy.benchmarks.latency import EngineInfo
from mf_deploy.benchmarks.operator_names import with_names
from mf_deploy.errors import MfDeployError
from mf_deploy.runtimes.arm import cpu_of
from mf_deploy.runtimes.arm.counting import Operator, count_inference, count_operators, median
from mf_deploy.runtimes.arm.lab import LabRecord, open_lab
from mf_deploy.runtimes.arm.session import require_engine

ENGINES = {"onnx": ("ONNX Runtime", "onnxruntime"), "tflite": ("LiteRT", "ai-edge-litert")}


class Arm:
    """The device that a name like ``arm:cortex-a76`` stands for.

    Raises:
        MfDeployError: there is no such CPU, or the ARM lab is not set up.
    """

    def __init__(self, name: str) -> None:
        self.name, self.cpu = name, cpu_of(name)
        self.lab, self.made_of = open_lab(), LabRecord.of_this_machine()

    @property
    def slug(self) -> str:
        """A name for files."""
        return self.name.replace(":", "-")

    def reason_not_to_run(self, artifact: Artifact) -> str | None:
        """Why ``artifact`` cannot run here; None where it can."""
        try:
            require_engine(artifact)
        except MfDeployError as error:
            return error.why
        return None

    def count(self, artifact: Artifact, runs: int = 3, per_op: bool = False) -> InstructionReport:
        """The instructions of one inference on a random input, and of each operator with ``per_op``.

        Raises:
            MfDeployError: the engine refuses the model or dies, or its operators cannot be told apart.
        """
        reason = self.reason_not_to_run(artifact)
        if reason:
            return self.not_run(artifact, reason)
        model = artifact.model_path
        counted, inputs = count_inference(self.lab, self.cpu, model, runs)
        whole = median(counted)
        operators = count_operators(self.lab, self.cpu, model, inputs, whole) if per_op else []
        if artifact.manifest.target == "tflite":
            operators = with_names(operators, model)
        name, distribution = ENGINES[artifact.manifest.target]
        return self._report(
            artifact,
            engine=EngineInfo(name=name, version=self.made_of.wheels[distribution]),
            instructions=Instructions(**whole),
            totals=[sum(counts.values()) for counts in counted],
            operators=[_operator(of) for of in operators] or None,
        )

    def not_run(self, artifact: Artifact, reason: str) -> InstructionReport:
        """The report of an artifact that could not be counted."""
        return self._report(artifact, not_run=reason)

    def _report(self, artifact: Artifact, **outcome: object) -> InstructionReport:
        manifest = artifact.manifest
        fields = {
            "artifact": artifact.name,
            "model": manifest.model.name,
            "target": manifest.target,
            "scheme": manifest.scheme,
            "model_sha256": artifact.sha256,
            "model_bytes": artifact.size_bytes,
            "batch": manifest.input.shape[0],
            "macs": sum(manifest.quantization.macs.values()),
            "device": self.name,
            "emulator": f"QEMU {self.made_of.qemu.split()[0]}",
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        return InstructionReport.model_validate(fields | outcome)


def _operator(of: Operator) -> OperatorInstructions:
    return OperatorInstructions(
        kind=of.kind, name=of.name, shape=of.shape, instructions=Instructions(**of.counts)
    )
