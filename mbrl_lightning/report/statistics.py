"""Statistics over seeds and tasks: interquartile mean, stratified bootstrap, exact sign test.

The first two follow Agarwal et al. 2021 (NeurIPS, "Deep RL at the edge of the statistical precipice"), whose
package `rliable` does not import with today's pandas.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mbrl_lightning.runs.results import Row

Array = NDArray[np.float64]


def score_matrix(rows: Sequence[Row], *spot: str) -> tuple[list[Any], list[int], Array]:
    """Scores of one metric by seed (or other fields of the rows) and task: seeds, tasks, `[len(seeds), len(tasks)]`.

    Repeated episodes are averaged. A task that not every seed has is left out.
    """
    cells: dict[tuple[Any, int], list[float]] = {}
    for row in rows:
        place = tuple(getattr(row, name) for name in spot) if spot else row.seed
        cells.setdefault((place, row.task), []).append(row.value)
    spots = sorted({place for place, _ in cells})
    tasks = sorted(task for task in {task for _, task in cells} if all((place, task) in cells for place in spots))
    scores = [[float(np.mean(cells[place, task])) for task in tasks] for place in spots]
    return spots, tasks, np.asarray(scores, dtype=np.float64).reshape(len(spots), len(tasks))


def iqm(values: ArrayLike) -> float:
    """Interquartile mean of all entries: what is left when the lowest and the highest quarter are cut off; a NaN gives NaN.

    With n values `floor(n / 4)` are cut at each end, as `scipy.stats.trim_mean(values, 0.25)` does and with it `rliable`.
    """
    flat = np.sort(np.asarray(values, dtype=np.float64), axis=None)
    if flat.size == 0:
        raise ValueError("iqm of no values")
    cut = flat.size // 4
    # NaN sorts to the end, where it would be cut off and a diverged task would go unseen.
    return math.nan if np.isnan(flat[-1]) else float(flat[cut : flat.size - cut].mean())


def stratified_bootstrap(
    scores: ArrayLike, statistic: Callable[[Array], float] = iqm, reps: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Ends of the 95 % percentile interval of a statistic of `[seeds, tasks]`, from `reps` resamples.

    Seeds are drawn with replacement within each task on its own: how far would the statistic move with other seeds on the
    same tasks? That treats the tasks of one seed as independent; where one policy serves all tasks of a seed, look at
    the spread between seeds too, which may be wider. With a single seed low equals high; both ends are NaN where
    a score is NaN or infinite. No global random state is read or changed.
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
    """Exact two-sided sign test: is a difference (one per task) as often above zero as below? Zeros are left out."""
    array = np.asarray(differences, dtype=np.float64)
    if np.isnan(array).any():
        raise ValueError("sign test of a NaN")
    positive, negative = int((array > 0).sum()), int((array < 0).sum())
    total = positive + negative
    tail = sum(math.comb(total, k) for k in range(min(positive, negative) + 1))
    # Integers up to the last division: 2 ** total overflows a float beyond 1,023 tasks.
    return SignTest(positive, negative, min(1.0, 2 * tail / 2**total))
