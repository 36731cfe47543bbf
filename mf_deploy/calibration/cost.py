"""What it costs to take a part of a model out of int8: ARM instructions, counted one part at a time."""

from mf_deploy.artifact import Artifact
from mf_deploy.calibration.search import fallback
from mf_deploy.calibration.sensitivity import Progress, Sensitivity
from mf_deploy.calibration.trials import Trials
from mf_deploy.quantization import QuantPlan
from mf_deploy.runtimes.arm.counting import Counter
from mf_deploy.runtimes.arm.lab import Lab

CPU = "cortex-a76"
"""The first one with half-precision arithmetic and int8 dot products; phones since 2018 have both."""


def with_costs(sensitivity: Sensitivity, trials: Trials, lab: Lab, progress: Progress) -> Sensitivity:
    """Count an inference with each part out of int8, and with all of them in it.

    Args:
        progress: called with how many counts are done, and of how many.
    """
    everything = QuantPlan.uniform(sensitivity.model, "int8")
    units, counted = sensitivity.units, []
    instead = fallback(sensitivity.target, "arm")
    with Counter(lab, CPU) as counter:

        def count(plan: QuantPlan) -> int:
            with trials.written(plan) as artifact:
                return counter.instructions(artifact.model_path)

        all_int8 = count(everything)
        for done, unit in enumerate(units, start=1):
            progress(done, len(units) + 1)
            without = count(everything.with_precision([unit.unit], instead))
            counted.append(unit.model_copy(update={"arm_cost": without - all_int8}))
    progress(len(units) + 1, len(units) + 1)
    return sensitivity.model_copy(update={"units": counted, "arm_instructions": all_int8})


def instructions(artifact: Artifact, lab: Lab) -> int:
    """Of one inference on the emulated CPU, with one thread."""
    with Counter(lab, CPU) as counter:
        return counter.instructions(artifact.model_path)
