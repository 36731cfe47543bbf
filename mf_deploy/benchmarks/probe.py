"""Is a device's answer right: the logits of fixed inputs against those of the host's session.

Every device that times an artifact also runs it on the same few seeded pictures and returns the logits, so
that a model which is fast because it is wrong is caught.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from mf_deploy.artifact import Artifact, Scheme
from mf_deploy.benchmarks.engines import engine_of
from mf_deploy.benchmarks.latency import Correctness
from mf_deploy.errors import MfDeployError
from mf_deploy.runtimes import Session, open_session

INFERENCES = 3
SEED = 20

# Largest allowed |difference| of a logit, in parts of the range of the host's logits. Other kernels add in
# another order (fp32) or round to half precision; in int8 a sum beside a rounding boundary flips one step,
# and later layers spread that. A wrong graph, layout or preprocessing is off by tenths of the range.
TOLERANCES: dict[Scheme, float] = {
    "fp32": 1e-4,
    "fp16": 0.02,
    "w8": 0.02,
    "w8a8": 0.1,
    "w8a16": 0.05,
    "mixed": 0.1,
}
CORE_ML_TOLERANCE = 0.02  # at least: its GPU and Neural Engine compute in half precision


@dataclass(frozen=True)
class Probe:
    """Inputs for a device, and what the artifact's session on the host makes of them.

    ``inputs`` is (INFERENCES, *the model's input shape) in the model's own dtype and layout: raw tensors.
    ``expected`` is (INFERENCES × batch, classes) float32, ``tolerance`` in units of a logit.
    """

    inputs: np.ndarray
    expected: np.ndarray
    reference: str
    tolerance: float

    @classmethod
    def of(cls, artifact: Artifact, session: Session | None = None) -> "Probe":
        """The probe of one artifact; it runs the artifact on the host, in ``session`` if that is open.

        Raises:
            MfDeployError: the host cannot run it.
        """
        engine = engine_of(artifact.manifest.target)
        session = session or open_session(artifact)
        batch = session.batch_size
        pictures = probe_pictures(INFERENCES * batch, session.preprocessing.input_size)
        inputs = session.prepare(pictures).reshape(INFERENCES, *artifact.manifest.input.shape)
        expected = session.run(pictures)[artifact.manifest.outputs[0].name]
        if not np.isfinite(expected).all():
            why = "its logits of the probe's pictures are not finite on the host"
            raise MfDeployError(f"Cannot probe {artifact.name}", why, "Export it again.")
        return cls(
            inputs=np.ascontiguousarray(inputs),
            expected=expected,
            reference=f"{engine.name} {engine.version} on the host",
            tolerance=_tolerance(artifact) * max(float(np.ptp(expected)), 1e-6),
        )

    def judge(self, logits: list[list[float]] | np.ndarray) -> Correctness:
        """What a device's logits (as ``expected``) are worth; a wrong number of them never passes."""
        try:
            given = np.asarray(logits, np.float64)
        except ValueError:  # rows of different lengths
            given = np.empty(0)
        fits = given.shape == self.expected.shape and bool(np.isfinite(given).all())
        error = float(np.abs(given - self.expected).max()) if fits else None
        return Correctness(
            reference=self.reference,
            inputs=len(self.expected),
            max_abs_error=error,
            tolerance=self.tolerance,
            passed=error is not None and error <= self.tolerance,
        )


def probe_pictures(count: int, side: int) -> np.ndarray:
    """(count, side, side, 3) uint8: smooth random colours with noise, the same on every machine."""
    random = np.random.default_rng(SEED)
    pictures = np.empty((count, side, side, 3), np.uint8)
    for index in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), np.int16)
        pictures[index] = (smooth + random.integers(-24, 25, smooth.shape)).clip(0, 255)
    return pictures


def _tolerance(artifact: Artifact) -> float:
    """In parts of the range of the logits."""
    allowed = TOLERANCES[artifact.manifest.scheme]
    return max(allowed, CORE_ML_TOLERANCE) if artifact.manifest.target == "coreml" else allowed
