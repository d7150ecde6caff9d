"""Statistics over seeds and tasks: interquartile mean, stratified bootstrap, exact sign test.

The first two follow Agarwal et al. 2021 (NeurIPS, "Deep RL at the edge of the statistical precipice"), whose
package `rliable` does not import with today's pandas.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mbrl_lightning.runs.results import Row


def score_matrix(rows: Sequence[Row]) -> tuple[list[int], list[int], NDArray[np.float64]]:
    """Arranges rows of one metric as scores per seed and task.

    Rows that agree in seed and task (repeated episodes) are averaged. A task that not every seed has is left
    out.

    Returns:
        seeds, tasks (both ascending) and scores `[len(seeds), len(tasks)]`.
    """
    cells: dict[tuple[int, int], list[float]] = {}
    for row in rows:
        cells.setdefault((row.seed, row.task), []).append(row.value)
    seeds = sorted({seed for seed, _ in cells})
    tasks = sorted(task for task in {task for _, task in cells} if all((seed, task) in cells for seed in seeds))
    scores = [[float(np.mean(cells[seed, task])) for task in tasks] for seed in seeds]
    return seeds, tasks, np.asarray(scores, dtype=np.float64).reshape(len(seeds), len(tasks))


def iqm(values: ArrayLike) -> float:
    """Interquartile mean of all entries: what is left when the lowest and the highest quarter are cut off; a NaN gives NaN.

    With n values `floor(n / 4)` are cut at each end, as `scipy.stats.trim_mean(values, 0.25)` does and with it `rliable`;
    below four values it is the plain mean.

    Raises:
        ValueError: no values.
    """
    flat = np.sort(np.asarray(values, dtype=np.float64), axis=None)
    if flat.size == 0:
        raise ValueError("iqm of no values")
    cut = flat.size // 4
    # NaN sorts to the end, where it would be cut off and a diverged task would go unseen.
    return math.nan if np.isnan(flat[-1]) else float(flat[cut : flat.size - cut].mean())


def stratified_bootstrap(
    scores: ArrayLike,
    statistic: Callable[[NDArray[np.float64]], float] = iqm,
    reps: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """95 % percentile interval of a statistic; seeds are drawn with replacement within each task on its own.

    The interval says how far the statistic would move with other seeds on the same tasks. Drawing per task
    treats the tasks of one seed as independent; where one policy serves all tasks of a seed, look at the
    spread between seeds too, which may be wider. With a single seed low equals high; both ends are NaN where
    a score is NaN or infinite.

    Args:
        scores: `[seeds, tasks]`.
        statistic: takes `[seeds, tasks]`, gives a number.
        reps: number of resamples.
        seed: of the resampling's own generator; no global random state is read or changed.

    Returns:
        The 2.5 % and 97.5 % percentiles.
    """
    array = np.asarray(scores, dtype=np.float64)
    if array.ndim != 2 or array.size == 0:
        raise ValueError(f"scores must be [seeds, tasks] with at least one of each, got shape {array.shape}")
    if not np.isfinite(array).all():
        return math.nan, math.nan
    generator = np.random.default_rng(seed)
    columns = np.arange(array.shape[1])
    draws = [statistic(array[generator.integers(array.shape[0], size=array.shape), columns]) for _ in range(reps)]
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


class SignTest(NamedTuple):
    """Outcome of `sign_test`: how many differences are above and below zero, and the two-sided p-value."""

    positive: int
    negative: int
    p: float


def sign_test(differences: ArrayLike) -> SignTest:
    """Exact two-sided sign test: is a difference as often above zero as below? Zeros are left out.

    Args:
        differences: one per task, any shape, for instance error with a wrong context minus the right one's.

    Raises:
        ValueError: a difference is NaN, which has no sign.
    """
    array = np.asarray(differences, dtype=np.float64)
    if np.isnan(array).any():
        raise ValueError("sign test of a NaN")
    positive, negative = int((array > 0).sum()), int((array < 0).sum())
    total = positive + negative
    tail = sum(math.comb(total, k) for k in range(min(positive, negative) + 1))
    # Integers up to the last division: 2 ** total overflows a float beyond 1,023 tasks.
    return SignTest(positive, negative, min(1.0, 2 * tail / 2**total))
