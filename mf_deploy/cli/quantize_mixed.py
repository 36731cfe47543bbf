"""The search behind ``mf-quantize --scheme mixed``: sensitivity, plan, verdict, and what is kept of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import click

from mf_deploy.cli.command import console, progress_bar, working
from mf_deploy.errors import MfDeployError

if TYPE_CHECKING:
    from mf_deploy.artifact import Artifact, Target
    from mf_deploy.calibration.search import Objective, SearchResult
    from mf_deploy.calibration.sensitivity import Sensitivity
    from mf_deploy.calibration.trials import Trials
    from mf_deploy.data import LabelledImages
    from mf_deploy.evaluation.accuracy import AccuracyReport
    from mf_deploy.evaluation.gates import Gates
    from mf_deploy.export import ExportOptions, Probe
    from mf_deploy.export.lower import DeployGraph
    from mf_deploy.quantization import QuantPlan, QuantPolicy
    from mf_deploy.runtimes.arm.lab import Lab

PLANS_FOLDER = "plans"
DEFAULT_MAX_DROP = 0.5
SENSITIVITY_IMAGES = 64
SHOWN_UNITS = 15


@dataclass(frozen=True)
class Budget:
    """What a mixed plan must keep, on which images, and what it should cost least."""

    gates: "Gates"
    images: "LabelledImages"
    objective: "Objective"
    report: bool

    @classmethod
    def of(
        cls,
        max_drop: float | None,
        min_agreement: float | None,
        data: Path | None,
        limit: int | None,
        objective: "Objective",
        report: bool,
    ) -> Self:
        """The budget that the command line asks for: half a point where it names none.

        Raises:
            MfDeployError: there are no images to judge it on, or they cannot decide it.
        """
        from mf_deploy.data import open_images
        from mf_deploy.evaluation.budget import refuse_undecidable
        from mf_deploy.evaluation.gates import Gates

        if data is None:
            raise MfDeployError(
                "No images to judge the accuracy budget on",
                "a mixed plan is searched for",
                "Give labelled --data, not those of --calibration; or give --plan.",
            )
        if max_drop is None and min_agreement is None:
            max_drop = DEFAULT_MAX_DROP
        gates = Gates(max_drop_points=max_drop, min_agreement_percent=min_agreement)
        images = open_images(data, limit)
        refuse_undecidable(images, gates)
        return cls(gates, images, objective, report)

    def refuse_shared(self, calibration: "LabelledImages") -> None:
        """Refuse calibration images among those that judge."""
        shared = len(set(calibration.digests()) & set(self.images.digests()))
        if shared:
            raise MfDeployError(
                f"Cannot judge the budget on {self.images.path}",
                f"{shared} of its images are calibration images",
                "Give other images to --data.",
            )


def search_and_write(
    graph: "DeployGraph",
    target: "Target",
    images: "LabelledImages",
    policy: "QuantPolicy",
    out: Path,
    probe: "Probe",
    options: "ExportOptions",
    force: bool,
    budget: Budget,
) -> "tuple[Artifact, bool]":
    """Find a plan within ``budget`` and write its artifact; where there is none, the best one, apart.

    Returns:
        the artifact, and whether it keeps the budget.
    """
    from mf_deploy.artifact import write_whole
    from mf_deploy.calibration.search import keeps_budget_in_int8, search_plan
    from mf_deploy.calibration.trials import Trials
    from mf_deploy.evaluation.budget import BudgetJudge
    from mf_deploy.export import calibrate, write_quantized

    run, plans = out.parent, out.parent / PLANS_FOLDER
    with working(f"Calibrating {graph.record.source.name} for {target}"):
        calibrated = calibrate(graph, target, images, policy, options)
    trials = Trials(calibrated.exporter, graph, calibrated.quantizer)
    judge = BudgetJudge(run, trials, budget.images, budget.gates)
    judged: dict[str, AccuracyReport] = {}

    def judge_aloud(plan: "QuantPlan") -> "AccuracyReport":
        """What the judge says of a plan, which it is asked about once."""
        key = plan.model_dump_json()
        if key not in judged:
            with working(f"Judging plan {len(judged) + 1} on {len(budget.images)} images"):
                judged[key] = judge(plan)
            click.echo(_verdict_line(plan, judged[key]), err=True)
        return judged[key]

    plans.mkdir(exist_ok=True)
    result, sensitivity = keeps_budget_in_int8(graph.record.source.name, judge_aloud), None
    if result is None or budget.report:
        sensitivity = _measure(trials, images, probe, target, budget, plans)
    if result is None:
        assert sensitivity is not None  # just measured
        result = search_plan(sensitivity, judge_aloud, budget.objective)
    out, other = (out, over_budget(out)) if result.passed else (over_budget(out), out)
    with working(f"Writing {out.name}"):
        artifact = write_quantized(calibrated, result.plan, policy.scheme, out, probe, force)
    write_whole(plans / f"{out.name}.json", result.plan.model_dump_json(indent=2).encode())
    if sensitivity and sensitivity.arm_instructions:
        _print_instructions(artifact, sensitivity.arm_instructions)
    if other.exists():
        click.echo(f"{other.name} is of an earlier search", err=True)
    if not result.passed:
        _print_failure(artifact, budget, result, list(judged.values()))
    return artifact, result.passed


def _print_instructions(artifact: "Artifact", in_int8: int) -> None:
    """What an inference with the plan found costs, beside one with everything in int8."""
    from mf_deploy.calibration.cost import instructions
    from mf_deploy.runtimes.arm.lab import open_lab

    taken = in_int8 if artifact.manifest.plan == {"": "int8"} else instructions(artifact, open_lab())
    counts = f"{taken / 1e6:.2f} M ARM instructions, {in_int8 / 1e6:.2f} M all in int8"
    click.echo(f"{artifact.manifest.target}: {counts}", err=True)


def over_budget(out: Path) -> Path:
    """Where the best artifact goes when no plan keeps the budget."""
    return out.with_name(f"{out.name}-over-budget")


def _lab_for(target: "Target") -> "Lab | None":
    """The ARM lab to count instructions in; without one, says how costs are judged."""
    from mf_deploy.runtimes.arm.lab import find_lab

    lab = None if target == "coreml" else find_lab()
    if lab is None:
        why = "Core ML has no engine there" if target == "coreml" else "mf-deploy setup arm prepares it"
        click.echo(f"{target}: costs are multiply-adds; no ARM instructions counted ({why})", err=True)
    return lab


def _measure(
    trials: "Trials",
    images: "LabelledImages",
    probe: "Probe",
    target: "Target",
    budget: Budget,
    plans: Path,
) -> "Sensitivity":
    """What int8 costs each part, printed and kept in ``plans``; with counts where the objective asks."""
    from mf_deploy.artifact import write_whole
    from mf_deploy.calibration.cost import with_costs
    from mf_deploy.calibration.sensitivity import measure_sensitivity
    from mf_deploy.models.counting import count_layers

    preprocessing = trials.graph.record.preprocessing
    pictures = next(iter(images.batches(preprocessing, SENSITIVITY_IMAGES))).pictures
    macs = count_layers(probe.model, preprocessing.input_size)
    with progress_bar(f"Sensitivity of {target}") as progress:
        sensitivity = measure_sensitivity(trials, pictures, macs, progress)
    lab = _lab_for(target) if budget.objective == "arm" else None
    if lab:
        with progress_bar(f"ARM instructions of {target}") as progress:
            sensitivity = with_costs(sensitivity, trials, lab, progress)
    write_whole(plans / f"{target}-sensitivity.json", sensitivity.model_dump_json(indent=2).encode())
    _print_sensitivity(sensitivity)
    if budget.report:
        from mf_deploy.report.sensitivity import render_sensitivity

        page = plans / f"{target}-sensitivity.html"
        write_whole(page, render_sensitivity(sensitivity).encode())
        click.echo(f"drawn in {page}", err=True)
    return sensitivity


def _print_sensitivity(sensitivity: "Sensitivity") -> None:
    """The most sensitive units, worst first."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, title=f"Alone in int8 ({sensitivity.images} images)")
    costs = [] if sensitivity.arm_instructions is None else ["out: ARM k"]
    for heading in ("unit", "MACs M", "SQNR dB", "agreement", *costs):
        table.add_column(heading, justify="left" if heading == "unit" else "right")
    for unit in sensitivity.units[:SHOWN_UNITS]:
        row = [unit.unit, f"{unit.macs / 1e6:.2f}", f"{unit.sqnr_db:.1f}", f"{unit.agreement:.1%}"]
        table.add_row(*row, *([] if unit.arm_cost is None else [f"{unit.arm_cost / 1000:+.0f}"]))
    console(stderr=True).print(table)


def _verdict_line(plan: "QuantPlan", verdict: "AccuracyReport") -> str:
    left = [path for path, precision in plan.modules.items() if path and precision != "int8"]
    drop = f"drop {verdict.drop.points:+.2f} pt, " if verdict.drop else ""
    failed = any(gate.verdict == "fail" for gate in verdict.gates)
    passed = "keeps the budget" if verdict.passed else "over budget" if failed else "undecided"
    return (
        f"{len(left)} units in float: {drop}agreement {verdict.agreement.percent:.1f} %, "
        f"{verdict.sqnr_db:.1f} dB: {passed}"
    )


def _print_failure(
    artifact: "Artifact", budget: Budget, result: "SearchResult", judged: "list[AccuracyReport]"
) -> None:
    best = max(judged, key=lambda report: report.sqnr_db)
    limits = [
        f"{gate.gate} {gate.limit:g}: {gate.value:+.2f} [{gate.low:+.2f}, {gate.high:+.2f}], {gate.verdict}"
        for gate in best.gates
    ]
    click.echo(
        f"The budget cannot be met on {budget.images.path} ({'; '.join(limits)}). "
        f"The best plan of {len(result.steps)} is kept apart, in {artifact.folder}.",
        err=True,
    )
