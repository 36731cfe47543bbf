"""Does a quantization plan keep an accuracy budget? The judge that a search for a plan asks."""

from pathlib import Path

from mf_deploy.calibration.trials import Trials
from mf_deploy.data import LabelledImages
from mf_deploy.evaluation.accuracy import AccuracyReport, check_all
from mf_deploy.evaluation.comparison import Subject
from mf_deploy.evaluation.gates import Gates
from mf_deploy.quantization import QuantPlan
from mf_deploy.runtimes import open_reference
from mf_deploy.runtimes.remembered import RememberedSession

REFERENCE_BATCH = 8


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
