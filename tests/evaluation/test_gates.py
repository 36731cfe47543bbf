"""Gates pass, fail, or say how many images would decide them."""

import pytest
from pydantic import ValidationError

from mf_deploy.evaluation.gates import Gates, judge
from mf_deploy.evaluation.statistics import paired_drop, proportion


@pytest.mark.parametrize(
    ("lost", "gained", "n", "limit", "verdict"),
    [
        (30, 25, 5000, 1.0, "pass"),
        (400, 100, 5000, 1.0, "fail"),
        (40, 30, 1000, 1.0, "undecided"),
        (0, 0, 5000, 0.1, "pass"),
        (0, 0, 100, 0.5, "undecided"),
    ],
)
def test_a_drop_is_judged_by_its_interval(lost: int, gained: int, n: int, limit: float, verdict: str) -> None:
    [result] = judge(Gates(max_drop_points=limit), paired_drop(lost, gained, n), proportion(n, n), 0)
    assert result.verdict == verdict
    assert result.value == pytest.approx(100 * (lost - gained) / n)
    assert (result.images_needed is not None) == (verdict == "undecided" and result.value != limit)


@pytest.mark.parametrize(
    ("agreed", "n", "limit", "verdict"),
    [
        (5000, 5000, 99.9, "pass"),
        (1000, 1000, 99.9, "undecided"),
        (900, 1000, 94, "fail"),
        (949, 1000, 94, "undecided"),
    ],
)
def test_agreement_is_judged_by_its_interval(agreed: int, n: int, limit: float, verdict: str) -> None:
    [result] = judge(Gates(min_agreement_percent=limit), None, proportion(agreed, n), 0)
    assert result.verdict == verdict


def test_the_sample_size_asked_for_decides_the_gate_at_the_same_rates() -> None:
    drop = paired_drop(40, 36, 1000)
    [result] = judge(Gates(max_drop_points=1.0), drop, proportion(900, 1000), 0)
    assert result.verdict == "undecided"
    needed = result.images_needed
    assert needed is not None
    assert needed > 1000
    larger = paired_drop(round(0.040 * needed), round(0.036 * needed), needed)
    [decided] = judge(Gates(max_drop_points=1.0), larger, proportion(900, 1000), 0)
    assert decided.verdict == "pass"


def test_a_drop_right_at_the_limit_is_never_decided() -> None:
    [result] = judge(Gates(max_drop_points=1.0), paired_drop(40, 30, 1000), proportion(900, 1000), 0)
    assert (result.verdict, result.images_needed) == ("undecided", None)


def test_nan_logits_fail_without_being_asked_for() -> None:
    [result] = judge(Gates(), None, proportion(5, 10), 3)
    assert (result.gate, result.verdict, result.value) == ("finite_logits", "fail", 3)


def test_no_gate_no_verdict() -> None:
    assert judge(Gates(), paired_drop(5, 0, 10), proportion(5, 10), 0) == []


def test_a_limit_out_of_range_is_refused() -> None:
    with pytest.raises(ValidationError):
        Gates(max_drop_points=-1)
