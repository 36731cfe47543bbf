"""The search for a mixed plan: all of int8 that an accuracy budget allows."""

from collections.abc import Callable
from typing import Literal, Protocol, get_args

from pydantic import Field

from mf_deploy.artifact import Record, Target
from mf_deploy.calibration.sensitivity import Sensitivity, UnitSensitivity
from mf_deploy.quantization import Precision, QuantPlan

Objective = Literal["arm", "size", "npu"]
"""What the plan should cost least: ARM instructions (as counted, or else multiply-adds), bytes (int8 weights
cost nothing either way), or work outside an NPU (each float part is one more island)."""

OBJECTIVES: tuple[Objective, ...] = get_args(Objective)


def fallback(target: Target, objective: Objective) -> Precision:
    """What a part gets that may not be int8: float arithmetic, and weights that keep their size.

    Except for instructions on ONNX Runtime, which turns int8 weights into floats again for every inference.
    """
    return "fp32" if (target, objective) == ("onnx", "arm") else "w8"


NOTICEABLE = 0.01
"""Of all instructions: what a part must save in float to leave int8 wherever parts must."""


class Verdict(Protocol):
    """What a judge says of a plan; an accuracy report is one."""

    @property
    def passed(self) -> bool:
        """Whether the budget is kept."""

    sqnr_db: float


class SearchStep(Record):
    """One plan that was judged."""

    in_float: list[str] = Field(description="units taken out of int8")
    passed: bool
    sqnr_db: float


class SearchResult(Record):
    """The plan found, whether it keeps the budget, and the way there."""

    plan: QuantPlan
    passed: bool
    steps: list[SearchStep]


def rank(sensitivity: Sensitivity, objective: Objective) -> list[str]:
    """Units in the order in which they leave int8: the most noise for the least cost first."""
    cheaper = cheaper_in_float(sensitivity, objective)

    def gain(unit: UnitSensitivity) -> tuple[bool, float]:
        cost = unit.macs if unit.arm_cost is None else unit.arm_cost
        return unit.unit in cheaper, unit.noise / max(cost, 1) if objective == "arm" else unit.noise

    leaving = [unit for unit in sensitivity.units if unit.noise > 0]
    return [unit.unit for unit in sorted(leaving, key=gain, reverse=True)]


def cheaper_in_float(sensitivity: Sensitivity, objective: Objective) -> set[str]:
    """Units that int8 makes noisy and slow: without it an inference takes noticeably fewer instructions."""
    if objective != "arm" or sensitivity.arm_instructions is None:
        return set()
    limit = -NOTICEABLE * sensitivity.arm_instructions
    return {
        u.unit for u in sensitivity.units if u.noise > 0 and u.arm_cost is not None and u.arm_cost < limit
    }


def keeps_budget_in_int8(model: str, judge: Callable[[QuantPlan], Verdict]) -> SearchResult | None:
    """The search that is over at once: everything in int8 keeps the budget. None where it does not."""
    everything = QuantPlan.uniform(model, "int8")
    verdict = judge(everything)
    if not verdict.passed:
        return None
    return SearchResult(
        plan=everything, passed=True, steps=[SearchStep(in_float=[], passed=True, sqnr_db=verdict.sqnr_db)]
    )


def search_plan(
    sensitivity: Sensitivity, judge: Callable[[QuantPlan], Verdict], objective: Objective = "arm"
) -> SearchResult:
    """The plan with the fewest ranked units in float that keeps the budget.

    Units that are cheaper in float are there in any case. The number of the others is doubled
    until the judge is content, then halved in on: about 2·log₂(units) plans are judged. Where none is good
    enough, the result is the one with the best SQNR.

    Args:
        judge: says whether a plan keeps the accuracy budget, on images that calibration has not seen.
    """
    ranked = rank(sensitivity, objective)
    everything = QuantPlan.uniform(sensitivity.model, "int8")
    instead = fallback(sensitivity.target, objective)
    judged: dict[int, SearchStep] = {}

    def plan_of(count: int) -> QuantPlan:
        return everything.with_precision(sorted(ranked[:count]), instead)

    def passes(count: int) -> bool:
        if count not in judged:
            verdict = judge(plan_of(count))
            judged[count] = SearchStep(
                in_float=ranked[:count], passed=verdict.passed, sqnr_db=verdict.sqnr_db
            )
        return judged[count].passed

    good = len(cheaper_in_float(sensitivity, objective))
    bad = good - 1
    while not passes(good):
        bad = good
        if good == len(ranked):
            break
        good = min(max(1, 2 * good), len(ranked))
    while good - bad > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if passes(middle) else (good, middle)
    passed = judged[good].passed
    best = good if passed else max(judged, key=lambda count: judged[count].sqnr_db)
    return SearchResult(plan=plan_of(best), passed=passed, steps=list(judged.values()))
