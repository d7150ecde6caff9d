"""The statistics give values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mbrl_lightning.report.statistics import iqm, score_matrix, sign_test, stratified_bootstrap
from mbrl_lightning.runs.results import Row


def row(seed: int, task: int, value: float) -> Row:
    """A row of which only seed, task and value matter."""
    return Row("a", "e", seed, 0, 0, "test", task, 0, "m", value, "")


def test_score_matrix_averages_episodes_and_drops_tasks_not_all_seeds_have():
    rows = [row(1, 7, 4.0), row(0, 7, 1.0), row(0, 7, 2.0), row(0, 8, 9.0)]
    seeds, tasks, scores = score_matrix(rows)
    assert (seeds, tasks) == ([0, 1], [7])
    assert scores.tolist() == [[1.5], [4.0]]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([8, 1, 7, 2, 6, 3, 5, 4], 4.5),  # (3 + 4 + 5 + 6) / 4
        ([0, 1, 2, 10], 1.5),  # the 10 does not count
        ([1, 2, 3, 4, 100], 3.0),  # floor(5 / 4) = 1 off each end
        ([1, 2, 6], 3.0),  # floor(3 / 4) = 0: plain mean
        ([[1, 2], [3, 60]], 2.5),  # shape does not matter
        ([1, 2, 3, math.nan], math.nan),
        ([5], 5.0),
    ],
)
def test_iqm_by_hand(values, expected):
    assert iqm(values) == pytest.approx(expected, nan_ok=True)


def test_iqm_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="no values"):
        iqm([])


def test_bootstrap_draws_seeds_within_each_task():
    # Constant within a task: nothing to draw, however far the tasks lie apart. (0 + 1 + 1 + 5) / 4 = 1.75.
    assert stratified_bootstrap([[0.0, 1.0, 5.0], [0.0, 1.0, 5.0]], reps=50) == (1.75, 1.75)


def test_bootstrap_interval_by_hand():
    # Two seeds score 0 and 1 on each of 6 tasks: 12 x the mean of a resample is Binomial(12, 1/2), and
    # P(X <= 2) = 79 / 4096 = 1.9 % < 2.5 % < 7.3 % = 299 / 4096 = P(X <= 3): the interval is 3/12 to 9/12.
    # (Whole seeds drawn at once would give 0 to 1.)
    scores = np.array([[0.0] * 6, [1.0] * 6])
    low, high = stratified_bootstrap(scores, statistic=np.mean, reps=20_000)
    assert (low, high) == (pytest.approx(3 / 12), pytest.approx(9 / 12))


def test_bootstrap_is_reproducible_and_leaves_global_random_state_alone():
    scores = np.arange(12.0).reshape(3, 4) ** 2
    np.random.seed(5)  # noqa: NPY002  (the global state is the point)
    expected = np.random.random()  # noqa: NPY002
    np.random.seed(5)  # noqa: NPY002
    assert stratified_bootstrap(scores, reps=50) == stratified_bootstrap(scores, reps=50)
    assert stratified_bootstrap(scores, reps=50) != stratified_bootstrap(scores, reps=50, seed=1)
    assert np.random.random() == expected  # noqa: NPY002


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_diverged_run_has_no_interval(value):
    assert np.isnan(stratified_bootstrap([[0.0, value], [1.0, 2.0]])).all()


@pytest.mark.parametrize("scores", [[1.0, 2.0], np.zeros((0, 3))])
def test_bootstrap_wants_seeds_by_tasks(scores):
    with pytest.raises(ValueError, match=r"\[seeds, tasks\]"):
        stratified_bootstrap(scores)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("positive", "negative", "zero", "p"),
    [
        (5, 0, 0, 2 / 32),
        (0, 5, 3, 2 / 32),  # zeros are left out
        (8, 2, 0, 2 * (1 + 10 + 45) / 1024),
        (5, 5, 0, 1.0),  # 2 x 638 / 1024 is capped
        (16, 0, 0, 2 / 65536),
        (0, 0, 4, 1.0),
    ],
)
def test_sign_test_by_hand(positive, negative, zero, p):
    outcome = sign_test([0.1] * positive + [-3.0] * negative + [0.0] * zero)
    assert outcome == (positive, negative, pytest.approx(p))


def test_sign_test_of_many_tasks_and_of_nan():
    assert sign_test([1.0] * 3000).p == 0.0  # 2 ** -2999, below the smallest float
    with pytest.raises(ValueError, match="NaN"):
        sign_test([1.0, math.nan])
