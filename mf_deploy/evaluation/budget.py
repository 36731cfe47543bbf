"""Does a quantization plan keep an accuracy budget? The judge that a search for a plan asks."""

from pathlib import Path

from mf_deploy.calibration.trials import Trials
from mf_deploy.data import LabelledImages
from mf_deploy.errors import MfDeployError
from mf_deploy.evaluation.accuracy import AccuracyReport, check_all, refuse_unlabelled
from mf_deploy.evaluation.comparison import Subject
from mf_deploy.evaluation.gates import Gates, undecidable
from mf_deploy.quantization import QuantPlan
from mf_deploy.runtimes import open_reference
from mf_deploy.runtimes.remembered import RememberedSession

REFERENCE_BATCH = 8


def refuse_undecidable(images: LabelledImages, gates: Gates) -> None:
    """Refuse a budget that these images cannot decide, before anything slow is done.

    Raises:
        MfDeployError: a gate on accuracy without labels, or one that not even a flawless model would pass.
    """
    refuse_unlabelled(images, gates)
    gate = undecidable(gates, len(images))
    if gate is not None:
        option = f"--{gate.gate.replace('_', '-')} {gate.limit:g}"
        more = f"Take about {gate.images_needed:,} images, or" if gate.images_needed else "Choose"
        raise MfDeployError(
            f"Cannot decide {option} on {images.path}",
            f"on {len(images):,} images even a flawless model has {gate.low:+.2f}…{gate.high:+.2f}",
            f"{more} a wider budget.",
        )


class BudgetJudge:
    """Writes a plan's model, runs it on labelled images, and judges it as ``mf-check`` would.

    PyTorch runs on the images once, however many plans are judged.
    """

    def __init__(self, run: Path, trials: Trials, images: LabelledImages, gates: Gates) -> None:
        self.trials, self.images, self.gates = trials, images, gates
        self.reference = RememberedSession(open_reference(run, REFERENCE_BATCH))

    def __call__(self, plan: QuantPlan) -> AccuracyReport:
        with self.trials.opened(plan) as (artifact, session):
            subject = Subject(artifact, session, self.reference)
            return check_all([subject], self.images, self.gates)[0]
