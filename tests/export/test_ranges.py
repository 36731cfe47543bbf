"""Histograms of activations: streamed, exact at the ends, and the range methods."""

import numpy as np
import pytest

from mf_deploy.export.ranges import BINS, Histogram


def filled(*batches: np.ndarray) -> Histogram:
    histogram = Histogram()
    for batch in batches:
        histogram.update(batch)
    return histogram


def test_ends_are_exact_and_nothing_is_lost() -> None:
    rng = np.random.default_rng(0)
    batches = [rng.normal(0, scale, (7, 11)).astype(np.float32) for scale in (1e-3, 1.0, 300.0, 5.0)]
    histogram = filled(*batches)
    values = np.concatenate([batch.ravel() for batch in batches])
    assert histogram.low == values.min()
    assert histogram.high == values.max()
    assert histogram.counts.sum() == values.size
    assert len(histogram.counts) == BINS


def test_order_of_the_batches_does_not_matter_much() -> None:
    rng = np.random.default_rng(1)
    batches = [rng.normal(shift, 1, 5000).astype(np.float32) for shift in (-40, 0, 25)]
    forth, back = filled(*batches), filled(*batches[::-1])
    for method in ("minmax", "percentile", "mse"):
        assert forth.range(method) == pytest.approx(back.range(method), rel=0.05)


def test_range_contains_zero() -> None:
    assert filled(np.array([3.0, 5.0])).range("minmax") == (0.0, 5.0)
    assert filled(np.array([-3.0, -5.0])).range("mse")[1] == 0.0
    assert Histogram().range("mse") == (0.0, 0.0)


def test_percentile_and_mse_leave_out_an_outlier_that_minmax_keeps() -> None:
    values = np.random.default_rng(2).normal(0, 1, 200_000).astype(np.float32)
    histogram = filled(values, np.array([1000.0]))
    assert histogram.range("minmax")[1] == 1000.0
    assert histogram.range("percentile")[1] < 10


def test_mse_beats_minmax_on_heavy_tails() -> None:
    values = np.random.default_rng(3).laplace(0, 1, 200_000).astype(np.float32)
    histogram = filled(values)

    def error(low: float, high: float) -> float:
        step = (high - low) / 255
        coded = np.rint((np.clip(values, low, high) - low) / step) * step + low
        return float(((coded - values) ** 2).mean())

    assert error(*histogram.range("mse")) < 0.9 * error(*histogram.range("minmax"))


def test_values_that_are_not_finite_are_left_out() -> None:
    histogram = filled(np.array([1.0, np.nan, np.inf, -2.0]))
    assert (histogram.low, histogram.high) == (-2.0, 1.0)


def test_constant_zero() -> None:
    assert filled(np.zeros(10)).range("mse") == (0.0, 0.0)
