"""Tables of families whose task is hidden: what is earned under each task and after a switch, and the model of histories."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from mbrl_lightning.report.tables import OPENING, Group, Table, groups, mean_and_deviation, seeds_of
from mbrl_lightning.runs.results import Row

VALUE = re.compile(r"reward/(.+)=(.+)")
SINCE = {
    "reward/before_switch": "before the first switch",
    "reward/since_0_10": "0-9 steps after one",
    "reward/since_10_25": "10-24",
    "reward/since_25_on": "25 and more",
}
ERRORS = {
    "model/nmse": "nMSE",
    "model/wrong_nmse": "nMSE, another moment's history",
    "model/null_nmse": "nMSE of no change",
    "model/reward_nmse": "nMSE of the reward",
    "model/slope": "slope, worst head",
    "model/nll": "NLL [nats]",
    "policy/kl_cloned": "KL from cloned policy [nats]",
}


def values_of(rows: Sequence[Row]) -> list[str]:
    """Metrics of the reward under each value of the hidden parameter, in the order of the values."""
    found = {row.metric: float(match[2]) for row in rows if (match := VALUE.fullmatch(row.metric))}
    return sorted(found, key=lambda metric: found[metric])


def reward_table(rows: Sequence[Row], env: str, split: str, each_seed: bool = False) -> Table | None:
    """Reward per step by hidden task and by time since a switch; None where no task is hidden.

    Args:
        rows: of one env.
        env: its name.
        split: of tasks.
        each_seed: a line for every seed in place of their mean.
    """
    values = values_of([row for row in rows if row.split == split])
    names = [metric.removeprefix("reward/") for metric in values]
    parameter = names[0].partition("=")[0] if names else ""
    worst = f"the wors{'e' if len(values) == 2 else 't'} {parameter}"
    opening = [*OPENING[:2], "seed" if each_seed else "seeds", OPENING[3]]
    table = Table(f"{env}, {split} tasks: reward per step", [*opening, *names, worst, *SINCE.values()])
    for group in groups(rows, split, "return/policy"):
        for part in _seeds(group) if each_seed else [group]:
            if not any(row.metric.startswith("reward/") for row in part.rows):
                continue
            cells = part.opening()
            if each_seed:
                cells[2] = str(part.rows[0].seed)
            least = _worst(part, values)
            table.rows.append([*cells, *map(part.mean, values), least, *map(part.mean, SINCE)])
    if not table.rows:
        return None
    table.notes.append("deterministic policy; mean over all steps of the evaluation episodes that are of the kind")
    if values and not each_seed:
        table.notes.append(f"{worst}: of each seed, then mean and sd over seeds")
    return table


def history_table(rows: Sequence[Row], env: str, split: str) -> Table | None:
    """One-step error of a model of histories on the policy's own episodes; None where there is none."""
    title = f"{env}, {split} tasks: error of the model [nMSE: share of variance]"
    table = Table(title, [*OPENING, *ERRORS.values()])
    for group in groups(rows, split, "model/nll"):
        table.rows.append([*group.opening(), *map(group.mean, ERRORS)])
    if not table.rows:
        return None
    table.notes.append(
        "slope: correlation of the direction with what is predicted to be gained by acting forwards; 1 is"
    )
    table.notes.append(
        "perfect; NLL: of standardised targets; both divergences as `python -m mbrl_lightning.bounds` reads them"
    )
    return table


def _seeds(group: Group) -> list[Group]:
    split = {seed: [row for row in group.rows if row.seed == seed] for seed in sorted(seeds_of(group.rows))}
    return [Group(group.algorithm, group.shot, rows) for rows in split.values()]


def _worst(group: Group, values: Sequence[str]) -> str:
    """Reward under the task that each seed is worst at, over seeds."""
    scores = [group.scores(metric) for metric in values]
    found = [score for score in scores if score is not None]
    if not found or len({len(score) for score in found}) > 1:
        return "-"
    return mean_and_deviation(np.stack(found).min(0))
