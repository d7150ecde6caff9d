"""Rows of several seeds as lines to draw and compare: which rows, at which places, with what spread."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mbrl_lightning.report.metrics import place_in_order
from mbrl_lightning.report.statistics import Array, iqm, score_matrix, stratified_bootstrap
from mbrl_lightning.runs.results import Row

REPS = 1000  # resamples for each point of a band
GRID = 40  # most places at which seeds are compared


@dataclass(frozen=True)
class Curve:
    """One metric of one algorithm over several seeds.

    Attributes:
        seeds: for each seed its places `[n]` and its mean over tasks `[n]`.
        grid: places `[G]` that all seeds reach.
        scores: `[G, seeds, tasks]` there, linear between a seed's own places.
    """

    seeds: list[tuple[Array, Array]]
    grid: Array
    scores: Array

    def mean(self) -> tuple[Array, Array]:
        """Grid and mean over seeds and tasks, `[G]` each."""
        with np.errstate(invalid="ignore"):
            return self.grid, self.scores.mean((1, 2))

    def band(self) -> tuple[Array, Array, Array]:
        """Interquartile mean and the ends of its 95 % stratified bootstrap interval, `[G]` each."""
        middle = np.array([iqm(scores) for scores in self.scores])
        ends = np.array([stratified_bootstrap(scores, reps=REPS) for scores in self.scores])
        return middle, ends[:, 0], ends[:, 1]


@np.errstate(invalid="ignore")  # infinite values of a diverged run are drawn as far as they can be
def curve(rows: Sequence[Row], place: Literal["real_steps", "shot"]) -> Curve:
    """The line of one metric of one algorithm.

    Seeds need not have been measured at the same places (an episode cut by a fall makes fewer steps): they
    are compared over the range all of them cover, or measurement by measurement where the places differ by
    little. Tasks that a seed lacks somewhere are left out for all.
    """
    spots, _, scores = score_matrix(rows, "seed", place)
    which, at = np.array(spots, dtype=np.float64).T
    own = [(at[which == seed], scores[which == seed]) for seed in np.unique(which)]
    seeds, places = [(at, cells.mean(1)) for at, cells in own], [at for at, _ in own]
    grid = _aligned(places)
    if grid is not None:
        return Curve(seeds, grid, np.stack([cells for _, cells in own], axis=1))
    grid = _grid(places)
    cells = np.stack([[np.interp(grid, at, column) for column in cells.T] for at, cells in own])
    return Curve(seeds, grid, cells.transpose(2, 0, 1))


def choose(rows: Sequence[Row], metric: str, split: str | None = None, shot: int | None = None) -> list[Row]:
    """Rows of one metric and split (None: "test", or the first that comes) and, of each algorithm, one shot.

    `shot`: None takes each algorithm's own: the one measured at most iterations, the longest among equals.
    """
    chosen = [row for row in rows if row.metric == metric and split in (None, row.split)]
    splits = [row.split for row in chosen]
    if splits and split is None:
        chosen = [row for row in chosen if row.split == ("test" if "test" in splits else splits[0])]
    times: dict[str, dict[int, set[int]]] = {}
    for row in chosen:
        times.setdefault(row.algorithm, {}).setdefault(row.shot, set()).add(row.iteration)
    most = {name: max(shots, key=lambda each: (len(shots[each]), each)) for name, shots in times.items()}
    chosen = [row for row in chosen if row.shot == (most[row.algorithm] if shot is None else shot)]
    one_env(chosen, metric)
    return chosen


def last(rows: Sequence[Row]) -> list[Row]:
    """The rows of each run's last iteration."""
    final: dict[tuple[str, str, int], int] = {}
    for row in rows:
        final[row[:3]] = max(row.iteration, final.get(row[:3], row.iteration))
    return [row for row in rows if row.iteration == final[row[:3]]]


def at_context(rows: Iterable[Row]) -> list[Row]:
    """Rows of unseen tasks at each run's end, after the family's context: the one at which random actions were measured."""
    runs: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        if row.split == "test" and row.task >= 0:
            runs.setdefault((row.algorithm, row.seed), []).append(row)
    kept = []
    for mine in runs.values():
        shot = next((row.shot for row in last(mine) if row.metric == "return/random"), last(mine)[0].shot)
        kept += [row for row in last(mine) if row.shot == shot]
    return kept


def by_algorithm(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows of each algorithm, algorithms in their order (`metrics.place_in_order`)."""
    names = sorted({row.algorithm for row in rows}, key=place_in_order)
    return {name: [row for row in rows if row.algorithm == name] for name in names}


def one_env(rows: Sequence[Row], what: str) -> None:
    """Raises ValueError unless there are rows, all of one env: curves of two envs share no axis."""
    envs = {row.env for row in rows}
    if len(envs) != 1:
        raise ValueError(f"no rows of {what}" if not envs else f"rows of several envs: {sorted(envs)}")


def seed_count(groups: Mapping[str, Sequence[Row]]) -> str:
    """How many seeds each group has, in words."""
    counts = {name: len({row.seed for row in rows}) for name, rows in groups.items()}
    if len(set(counts.values())) == 1:
        count = next(iter(counts.values()))
        return f"{count} seed" + "s" * (count != 1)
    return ", ".join(f"{name}: {count}" for name, count in counts.items()) + " seeds"


def _aligned(places: Sequence[Array]) -> Array | None:
    """Mean place of each measurement if seeds differ by less than half the way to the next one, else None."""
    if len({len(at) for at in places}) > 1:
        return None
    stacked = np.stack(places)
    common = stacked.mean(0)
    gap = np.diff(common).min() if len(common) > 1 else np.inf
    return common if np.ptp(stacked, axis=0).max() < 0.5 * gap and len(common) <= GRID else None


def _grid(places: Sequence[Array]) -> Array:
    low, high = max(at[0] for at in places), min(at[-1] for at in places)
    if low > high:  # no range in common: every seed counts with the end that is nearer
        return np.array([(low + high) / 2])
    grid = np.unique(np.concatenate(places))
    grid = grid[(grid >= low) & (grid <= high)]
    return grid[np.unique(np.linspace(0, len(grid) - 1, GRID).astype(int))]
