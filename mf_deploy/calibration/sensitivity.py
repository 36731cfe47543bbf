"""What int8 costs each part of a model, measured one part at a time in the target's own runtime."""

import math
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
from pydantic import Field

from mf_deploy.artifact import Record, Target
from mf_deploy.calibration.trials import Trials
from mf_deploy.export.target import OUTPUT_NAME
from mf_deploy.quantization import QuantPlan, unit_of

Progress = Callable[[int, int], None]

SILENT_DB = 120.0
"""SQNR of a part whose quantization changes nothing."""


class UnitSensitivity(Record):
    """One part of the model (a bridge, a convolution, a dynamic ReLU), alone in int8."""

    unit: str = Field(description="path in the reference model")
    macs: int = Field(description="its multiply-adds of one inference")
    sqnr_db: float = Field(description="of the logits against the float model")
    agreement: float = Field(description="fraction of images with the same top-1 as the float model")
    arm_cost: int | None = Field(
        None, description="ARM instructions that an inference takes more with this part out of int8"
    )

    @property
    def noise(self) -> float:
        """Power of the error over that of the logits; of parts that err independently, powers add up."""
        return 0.0 if self.sqnr_db >= SILENT_DB else 10 ** (-self.sqnr_db / 10)


class Sensitivity(Record):
    """The parts of a model, the most sensitive one first."""

    schema_version: Literal[1] = 1
    model: str
    target: Target
    images: int
    arm_instructions: int | None = Field(None, description="of one inference with every part in int8")
    units: list[UnitSensitivity]


def measure_sensitivity(
    trials: Trials, pictures: np.ndarray, macs: Mapping[str, int], progress: Progress
) -> Sensitivity:
    """Quantize each unit alone, the rest in float, and compare the logits with those of the float model.

    Args:
        pictures: (N, H, W, 3) uint8, from the calibration images.
        macs: multiply-adds by module of the reference model.
        progress: called with how many trials are done, and of how many.
    """
    model = trials.graph.record.source.name
    units = list(dict.fromkeys(unit_of(path) for path in trials.quantizer.modules))
    everything_float = QuantPlan.uniform(model, "fp32")
    expected = _logits(trials, everything_float, pictures)
    found = []
    for done, unit in enumerate(units):
        progress(done, len(units))
        actual = _logits(trials, everything_float.with_precision([unit], "int8"), pictures)
        found.append(
            UnitSensitivity(
                unit=unit,
                macs=sum(count for path, count in macs.items() if unit_of(path) == unit),
                sqnr_db=_sqnr_db(expected, actual),
                agreement=float((expected.argmax(1) == actual.argmax(1)).mean()),
            )
        )
    progress(len(units), len(units))
    return Sensitivity(
        model=model,
        target=trials.exporter.name,
        images=len(pictures),
        units=sorted(found, key=lambda unit: unit.sqnr_db),
    )


def _logits(trials: Trials, plan: QuantPlan, pictures: np.ndarray) -> np.ndarray:
    with trials.opened(plan) as (_, session):
        return session.run(pictures)[OUTPUT_NAME].astype(np.float64)


def _sqnr_db(expected: np.ndarray, actual: np.ndarray) -> float:
    noise = float(np.square(expected - actual).sum()) / max(float(np.square(expected).sum()), 1e-30)
    return min(SILENT_DB, -10 * math.log10(noise)) if noise > 0 else SILENT_DB
