"""The search for a mixed plan: the fewest parts in float that keep the budget."""

import math
from dataclasses import dataclass

import pytest

from mf_deploy.calibration.search import Objective, fallback, rank, search_plan
from mf_deploy.calibration.sensitivity import Sensitivity, UnitSensitivity
from mf_deploy.quantization import QuantPlan

NOISE = {f"features.{i}.conv1": 10.0 ** (-1 - i / 4) for i in range(20)}
SENSITIVITY = Sensitivity(
    model="m",
    target="onnx",
    images=8,
    units=[
        UnitSensitivity(unit=unit, macs=1000, sqnr_db=-10 * math.log10(noise), agreement=1.0)
        for unit, noise in NOISE.items()
    ],
)


@dataclass
class Verdict:
    passed: bool
    sqnr_db: float


@dataclass
class AdditiveNoise:
    """A model whose parts err independently: the truth that the search relies on."""

    budget: float
    judged: int = 0

    def __call__(self, plan: QuantPlan) -> Verdict:
        self.judged += 1
        noise = sum(value for unit, value in NOISE.items() if plan.precision(unit) == "int8")
        return Verdict(noise <= self.budget, -10 * math.log10(max(noise, 1e-12)))


@pytest.mark.parametrize("in_float", range(20))
def test_finds_the_fewest_parts_in_float(in_float: int) -> None:
    kept = sorted(NOISE.values())[: 20 - in_float]
    judge = AdditiveNoise(budget=sum(kept) * 1.0001)
    result = search_plan(SENSITIVITY, judge)
    assert result.passed
    assert sum(result.plan.precision(unit) != "int8" for unit in NOISE) == in_float
    assert judge.judged <= 2 * math.ceil(math.log2(20)) + 2


def test_an_impossible_budget_gives_the_best_plan_and_says_so() -> None:
    result = search_plan(SENSITIVITY, AdditiveNoise(budget=-1))
    assert not result.passed
    assert all(result.plan.precision(unit) == fallback("onnx", "arm") for unit in NOISE)


def test_int8_weights_that_cost_instructions_are_no_way_out() -> None:
    """ONNX Runtime turns them into floats for every inference."""
    assert fallback("onnx", "arm") == "fp32"
    assert {fallback("onnx", "size"), fallback("onnx", "npu"), fallback("tflite", "arm")} == {"w8"}


def test_nothing_leaves_int8_without_need() -> None:
    result = search_plan(SENSITIVITY, AdditiveNoise(budget=10))
    assert result.plan == QuantPlan.uniform("m", "int8")
    assert len(result.steps) == 1


def of_units(*units: UnitSensitivity, arm_instructions: int | None = None) -> Sensitivity:
    return SENSITIVITY.model_copy(update={"units": list(units), "arm_instructions": arm_instructions})


def test_arm_prefers_to_give_up_cheap_parts() -> None:
    cheap = UnitSensitivity(unit="cheap", macs=10, sqnr_db=30, agreement=1)
    dear = UnitSensitivity(unit="dear", macs=1_000_000, sqnr_db=28, agreement=1)
    silent = UnitSensitivity(unit="silent", macs=10, sqnr_db=120, agreement=1)
    assert rank(of_units(cheap, dear, silent), "arm") == ["cheap", "dear"]
    assert rank(of_units(cheap, dear, silent), "npu") == ["dear", "cheap"]


def counted(unit: str, sqnr_db: float, arm_cost: int) -> UnitSensitivity:
    return UnitSensitivity(unit=unit, macs=10, sqnr_db=sqnr_db, agreement=1, arm_cost=arm_cost)


COUNTED = of_units(
    counted("few", 30, 100),
    counted("many", 28, 10_000),
    counted("cheaper", 60, -2_000),
    counted("same", 62, -10),
    arm_instructions=100_000,
)


def test_counted_instructions_decide_for_arm() -> None:
    assert rank(COUNTED, "arm") == ["cheaper", "few", "same", "many"]
    assert rank(COUNTED, "npu") == ["many", "few", "cheaper", "same"]


@pytest.mark.parametrize(("objective", "in_float"), [("arm", ["cheaper"]), ("size", []), ("npu", [])])
def test_what_is_cheaper_in_float_is_there_in_any_case(objective: Objective, in_float: list[str]) -> None:
    result = search_plan(COUNTED, lambda plan: Verdict(True, 40), objective)
    assert [step.in_float for step in result.steps] == [in_float]
    assert [path for path in result.plan.modules if path] == in_float
