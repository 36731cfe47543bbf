"""Intervals against published figures, brute force and simulation."""

import numpy as np
import pytest

from mf_deploy.evaluation.statistics import (
    LogitError,
    _tango_score,
    images_needed,
    label_ranks,
    paired_drop,
    paired_interval,
    proportion,
    sqnr_db,
)


def test_wilson_interval_of_a_known_count() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), Table I, method 3: 81 of 263 and 0 of 20.
    interval = proportion(81, 263)
    assert interval.percent == pytest.approx(30.80, abs=0.005)
    assert (interval.low_percent, interval.high_percent) == pytest.approx((25.53, 36.62), abs=0.005)
    assert proportion(0, 20).high_percent == pytest.approx(16.11, abs=0.005)


def test_paired_interval_of_a_known_table() -> None:
    # Fagerland, Lydersen, Laake, Statistics in Medicine 33 (2014): airway hyper-responsiveness,
    # 1 and 7 discordant pairs of 21: Tango's interval is -0.517 to -0.026.
    assert paired_interval(1, 7, 21) == pytest.approx((-0.517, -0.026), abs=0.0005)


def test_paired_interval_without_discordant_pairs_is_not_of_zero_width() -> None:
    z2 = 1.959963984540054**2
    assert paired_interval(0, 0, 5000) == pytest.approx((-z2 / (5000 + z2), z2 / (5000 + z2)))


@pytest.mark.parametrize(
    ("lost", "gained", "n"), [(5, 0, 5), (0, 5, 5), (3, 3, 6), (1, 0, 1), (40, 30, 5000)]
)
def test_paired_interval_holds_the_estimate_and_mirrors(lost: int, gained: int, n: int) -> None:
    low, high = paired_interval(lost, gained, n)
    assert -1 <= low <= (lost - gained) / n <= high <= 1
    assert paired_interval(gained, lost, n) == pytest.approx((-high, -low), abs=1e-9)


@pytest.mark.parametrize("difference", [-0.4, -0.1, 0.0, 0.05, 0.3])
def test_tango_score_is_at_the_maximum_of_the_constrained_likelihood(difference: float) -> None:
    lost, gained, n = 9, 4, 60
    low = max(0.0, -difference)
    grid = np.linspace(low + 1e-9, (1 - difference) / 2 - 1e-9, 200_001)  # P(gained); P(lost) = + difference
    likelihood = lost * np.log(grid + difference) + gained * np.log(grid)
    likelihood += (n - lost - gained) * np.log1p(-2 * grid - difference)
    best = grid[np.nanargmax(likelihood)]
    variance = n * (2 * best + difference - difference**2)
    expected = (lost - gained - n * difference) / np.sqrt(variance)
    assert _tango_score(difference, lost, gained, n) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("p_lost", "p_gained", "n"), [(0.05, 0.04, 500), (0.01, 0.01, 1000), (0.1, 0.02, 200)]
)
def test_the_paired_interval_covers_the_truth_95_times_in_a_hundred(
    p_lost: float, p_gained: float, n: int
) -> None:
    rng = np.random.default_rng(0)
    draws = rng.multinomial(n, [p_lost, p_gained, 1 - p_lost - p_gained], size=2000)
    covered = 0
    for lost, gained, _ in draws:
        low, high = paired_interval(int(lost), int(gained), n)
        covered += low <= p_lost - p_gained <= high
    assert covered / len(draws) == pytest.approx(0.95, abs=0.012)


def test_paired_drop_agrees_with_a_bootstrap_over_images() -> None:
    rng = np.random.default_rng(1)
    reference = rng.random(4000) < 0.6
    artifact = np.where(rng.random(4000) < 0.08, rng.random(4000) < 0.3, reference)
    drop = paired_drop(int((reference & ~artifact).sum()), int((~reference & artifact).sum()), 4000)
    samples = rng.integers(0, 4000, size=(4000, 4000))
    difference = reference.astype(float) - artifact
    low, high = np.percentile([100 * difference[sample].mean() for sample in samples], [2.5, 97.5])
    assert drop.points == pytest.approx(100 * difference.mean())
    assert (drop.low_points, drop.high_points) == pytest.approx((low, high), abs=0.1)


def test_mcnemar_of_a_known_table() -> None:
    assert paired_drop(1, 9, 100).mcnemar_p == pytest.approx(2 * (1 + 10) / 2**10)
    assert paired_drop(0, 0, 100).mcnemar_p == 1.0


def test_images_needed_finds_the_first_size_that_decides() -> None:
    assert images_needed(lambda n, z: n < 7321, 1000) in range(7321, 7501)
    assert images_needed(lambda n, z: True, 1000) is None


def test_images_needed_decides_four_times_in_five() -> None:
    def straddles(n: int, z: float) -> bool:
        low, high = paired_interval(round(0.03 * n), round(0.025 * n), n, z)
        return low <= 0.01 < high

    needed = images_needed(straddles, 1000)
    assert needed is not None
    rng = np.random.default_rng(0)
    draws = rng.multinomial(needed, [0.03, 0.025, 0.945], size=400)
    decided = [paired_interval(int(lost), int(gained), needed)[1] <= 0.01 for lost, gained, _ in draws]
    assert np.mean(decided) == pytest.approx(0.8, abs=0.06)


def test_label_ranks_break_ties_as_argmax_does() -> None:
    logits = np.array([[1.0, 3, 3, 0], [2, 2, 2, 2], [np.nan, 0, 9, 1], [0, 1, 2, np.inf]], np.float32)
    assert label_ranks(logits, np.array([2, 3, 2, 3])).tolist() == [1, 3, 4, 4]
    rng = np.random.default_rng(0)
    coarse = rng.integers(-4, 4, size=(200, 10)).astype(np.float32)
    labels = rng.integers(0, 10, 200)
    assert ((label_ranks(coarse, labels) == 0) == (coarse.argmax(1) == labels)).all()
    order = np.argsort(-coarse, axis=1, kind="stable")[:, :5]
    assert ((label_ranks(coarse, labels) < 5) == (order == labels[:, None]).any(1)).all()


def test_logit_error_in_batches_is_that_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(50, 7)).astype(np.float32)
    logits = reference + rng.normal(scale=0.01, size=(50, 7)).astype(np.float32)
    error = LogitError()
    for start in range(0, 50, 8):
        error.add(reference[start : start + 8], logits[start : start + 8])
    difference = np.abs(logits.astype(float) - reference)
    assert error.max_abs == pytest.approx(difference.max())
    assert error.mean_abs == pytest.approx(difference.mean())
    assert error.reference_range == pytest.approx(float(reference.max() - reference.min()))
    whole = 10 * np.log10((reference.astype(float) ** 2).sum() / (difference**2).sum())
    assert error.sqnr_db == pytest.approx(whole)


def test_sqnr_stays_finite() -> None:
    assert sqnr_db(1.0, 0.0) == 200
    assert sqnr_db(0.0, 1.0) == -200
    assert sqnr_db(1.0, 0.01) == pytest.approx(20)
