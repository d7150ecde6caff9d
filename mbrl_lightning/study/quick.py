"""A standing check of what is learned: one seed of six families again, each against the band of its committed results.

The band is the mean of the committed seeds and, on either side, three deviations between them and 5 % of the way from random
actions to that mean. It is wide where seeds scatter: what falls out of it has changed, what stays inside may have changed too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mbrl_lightning.errors import ConfigError
from mbrl_lightning.runs.results import Row, read_results
from mbrl_lightning.study.base import Study, written

RESULTS = Path(__file__).parents[2] / "results"
"""Committed rows, `<conf>/<algorithm>/seed<n>.csv`: they are part of a checkout, not of an installed package."""
CHECKED = (
    "cartpole gssm_aps",
    "acrobot gssm_aps",
    "point_switch m3po",
    "point2d mb_mpo",
    "half_cheetah_disabled grbal",
    "slim_humanoid sac",
)


class Band(NamedTuple):
    """What is expected of a family and an algorithm: the mean of the committed seeds, and how far from it is still inside."""

    seeds: int
    mean: float
    margin: float

    def holds(self, value: float) -> bool:
        """Whether a run's return is inside; a NaN is not."""
        return abs(value - self.mean) <= self.margin


def band_of(rows: Sequence[Row]) -> Band:
    """The band of one algorithm's committed rows."""
    import numpy as np

    from mbrl_lightning.report.curves import at_context
    from mbrl_lightning.report.statistics import score_matrix

    ends = at_context(rows)
    returns, random = (
        score_matrix([row for row in ends if row.metric == f"return/{who}"])[2] for who in ("policy", "random")
    )
    means = returns.mean(1)
    deviation = float(means.std(ddof=1)) if len(means) > 1 else 0.0
    way = abs(float(np.mean(returns) - np.mean(random))) if random.size else abs(float(np.mean(returns)))
    return Band(len(means), float(means.mean()), 3 * deviation + 0.05 * way)


def compare(name: str, study: Study, folder: Path, rows: Sequence[Row]) -> tuple[int, str]:
    """A line for each family and new seed: its return, the committed band, and whether it is inside; status 1 if one is not."""
    from mbrl_lightning.report.curves import at_context, by_algorithm
    from mbrl_lightning.report.statistics import score_matrix
    from mbrl_lightning.report.tables import Table, number

    header = ["family, algorithm", "seed", "return", "committed", "seeds", "band", "minutes", "verdict"]
    table, left = Table("one seed each, again", header), list[str]()
    for arm, mine in by_algorithm(rows).items():
        band = band_of(committed(arm))
        seeds, _, returns = score_matrix([row for row in at_context(mine) if row.metric == "return/policy"])
        for seed, value in zip(seeds, returns.mean(1), strict=True):
            ends = f"{number(band.mean - band.margin)} to {number(band.mean + band.margin)}"
            minutes = max(row.value for row in mine if row.metric == "time/total" and row.seed == seed) / 60
            verdict = "inside" if band.holds(value) else "OUTSIDE"
            said = [number(value), number(band.mean), str(band.seeds), ends, number(minutes, 2), verdict]
            table.rows.append([arm, str(seed), *said])
            left += [f"{arm}, seed {seed}"] * (verdict != "inside")
    closing = f"left their band: {'; '.join(left)}" if left else "all are inside their bands"
    return int(bool(left)), "\n\n".join([*written(folder, study.question, [table]), closing])


def committed(arm: str) -> list[Row]:
    """Committed rows of a family and algorithm; a ConfigError where there are none."""
    folder = RESULTS.joinpath(*arm.split())
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no committed results", "run this study in a checkout of the project")
    return read_results(folder)


STUDIES = {
    "quick": Study(
        "",
        "One seed of six families, trained again: has a result left its committed band?",
        {arm: "conf={} algorithm={}".format(*arm.split()) for arm in CHECKED},
        "",
        compare,
        "0",
    )
}
