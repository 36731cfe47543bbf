"""Gates: what an artifact must keep of the reference, judged by intervals and not by luck."""

from typing import Literal

from pydantic import Field

from mf_deploy.artifact import Record
from mf_deploy.evaluation.statistics import (
    PairedDrop,
    Proportion,
    images_needed,
    paired_drop,
    paired_interval,
    proportion,
)

Verdict = Literal["pass", "fail", "undecided"]


class Gates(Record):
    """The limits to keep. A limit is kept when the whole 95 % interval keeps it."""

    max_drop_points: float | None = Field(None, ge=0, le=100, description="top-1, percentage points")
    min_agreement_percent: float | None = Field(None, ge=0, le=100, description="same top-1 as the reference")


class GateResult(Record):
    """One gate on one artifact; ``images_needed`` decide an undecided one if the rates stay as they are."""

    gate: Literal["max_drop", "min_agreement", "finite_logits"]
    limit: float
    value: float
    low: float
    high: float
    verdict: Verdict
    images_needed: int | None = Field(None, description="None: not undecided, or more than ten million")


def judge(gates: Gates, drop: PairedDrop | None, agreement: Proportion, non_finite: int) -> list[GateResult]:
    """Every gate that was asked for, and always the one for NaN or infinite logits when there are any."""
    results = []
    if non_finite:
        results.append(
            GateResult(
                gate="finite_logits",
                limit=0,
                value=non_finite,
                low=non_finite,
                high=non_finite,
                verdict="fail",
            )
        )
    if gates.max_drop_points is not None and drop is not None:
        results.append(_judge_drop(gates.max_drop_points, drop))
    if gates.min_agreement_percent is not None:
        results.append(_judge_agreement(gates.min_agreement_percent, agreement))
    return results


def undecidable(gates: Gates, n: int) -> GateResult | None:
    """A gate that not even a flawless artifact passes on ``n`` images; None where there is none."""
    drop, agreement = paired_drop(0, 0, n), proportion(n, n)
    return next((gate for gate in judge(gates, drop, agreement, 0) if gate.verdict != "pass"), None)


def _judge_drop(limit: float, drop: PairedDrop) -> GateResult:
    def straddles(n: int, z: float) -> bool:
        lost, gained = round(drop.lost * n / drop.n), round(drop.gained * n / drop.n)
        low, high = paired_interval(lost, gained, n, z)
        return 100 * low <= limit < 100 * high

    if drop.high_points <= limit:
        verdict: Verdict = "pass"
    else:
        verdict = "fail" if drop.low_points > limit else "undecided"
    return GateResult(
        gate="max_drop",
        limit=limit,
        value=drop.points,
        low=drop.low_points,
        high=drop.high_points,
        verdict=verdict,
        images_needed=images_needed(straddles, drop.n) if verdict == "undecided" else None,
    )


def _judge_agreement(limit: float, agreement: Proportion) -> GateResult:
    def straddles(n: int, z: float) -> bool:
        scaled = proportion(round(agreement.count * n / agreement.n), n, z)
        return scaled.low_percent < limit <= scaled.high_percent

    if agreement.low_percent >= limit:
        verdict: Verdict = "pass"
    else:
        verdict = "fail" if agreement.high_percent < limit else "undecided"
    return GateResult(
        gate="min_agreement",
        limit=limit,
        value=agreement.percent,
        low=agreement.low_percent,
        high=agreement.high_percent,
        verdict=verdict,
        images_needed=images_needed(straddles, agreement.n) if verdict == "undecided" else None,
    )
