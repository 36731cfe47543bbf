"""The artifacts that the benchmark app may run, and what the host makes of the probe's inputs."""

import hashlib
import threading
from dataclasses import dataclass, field
from typing import Literal

from mf_deploy.artifact import Artifact, Target
from mf_deploy.benchmarks.probe import Probe

EngineName = Literal["ort", "litert"]

MAX_BATCH = 5  # a result holds 16 rows of logits, and the probe has 3 inputs
ENGINE_OF: dict[Target, EngineName] = {"onnx": "ort", "tflite": "litert"}


@dataclass
class Offer:
    """One artifact for browsers; its probe is made when the first phone asks for it."""

    artifact: Artifact
    engine: EngineName
    _probe: Probe | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def id(self) -> str:
        """What phones call it: the same as long as the artifact is at the same place."""
        return hashlib.sha256(str(self.artifact.folder.resolve()).encode()).hexdigest()[:16]

    def probe(self) -> Probe:
        """The probe's inputs and the host's logits of them.

        Raises:
            MfDeployError: the host cannot run the artifact.
        """
        with self._lock:
            if self._probe is None:
                self._probe = Probe.of(self.artifact)
            return self._probe

    def describe(self) -> dict[str, object]:
        """What the page shows, and what it needs to run the model."""
        manifest = self.artifact.manifest
        return {
            "id": self.id,
            "name": self.artifact.name,
            "model": manifest.model.name,
            "scheme": manifest.scheme,
            "engine": self.engine,
            "sha256": self.artifact.sha256,
            "bytes": self.artifact.size_bytes,
            "input": manifest.input.model_dump(include={"name", "shape", "dtype"}),
            "output": manifest.outputs[0].name,
        }


def offers_of(artifacts: list[Artifact]) -> list[Offer]:
    """Those of ``artifacts`` that a browser's engines can run and whose answers fit into a result."""
    return [
        Offer(artifact, ENGINE_OF[artifact.manifest.target])
        for artifact in artifacts
        if artifact.manifest.target in ENGINE_OF
        and artifact.manifest.input.shape[0] <= MAX_BATCH
        and artifact.manifest.outputs[0].dtype == "float32"
    ]
