"""Plans tried out: each is written, opened in the target's own runtime, and run."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mf_deploy.artifact import Artifact
from mf_deploy.export import Quantizer, describe
from mf_deploy.export.lower.graph import DeployGraph
from mf_deploy.export.target import TargetExporter
from mf_deploy.quantization import QuantPlan
from mf_deploy.runtimes import Session, open_session


@dataclass(frozen=True)
class Trials:
    """What it takes to run any plan for one graph on one target."""

    exporter: TargetExporter
    graph: DeployGraph
    quantizer: Quantizer

    @contextmanager
    def written(self, plan: QuantPlan) -> Iterator[Artifact]:
        """The model quantized by ``plan``, in a folder that is gone afterwards."""
        with tempfile.TemporaryDirectory(prefix="mf-quantize-") as scratch:
            folder = Path(scratch)
            written = self.quantizer.write(plan, folder)
            manifest = describe(folder, self.exporter, self.graph, "mixed", written, counted=False)
            yield Artifact(folder, manifest)

    @contextmanager
    def opened(self, plan: QuantPlan) -> Iterator[tuple[Artifact, Session]]:
        """The same, in its runtime."""
        with self.written(plan) as artifact:
            yield artifact, open_session(artifact)
