"""The kinds of tables of a report: which metrics, what is said of each, and what a reader must know."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase

import numpy as np

from mbrl_lightning.report.statistics import Array, iqm, sign_test, stratified_bootstrap
from mbrl_lightning.report.tables import Cell, Column, Group, Kind, mean_and_deviation, number, seeds_of


def interval(scores: Array) -> str:
    """Interquartile mean of `[seeds, tasks]` and, with two seeds or more, its bootstrap interval."""
    if len(scores) == 1:
        return number(iqm(scores))
    low, high = stratified_bootstrap(scores)
    return f"{number(iqm(scores))} [{number(low)}, {number(high)}]"


def _of(say: Callable[[Array], str]) -> Cell:
    """A cell of the scores `[seeds, tasks]`, where there are any."""

    def cell(group: Group, name: str) -> str:
        scores = group.scores(name)
        return "-" if scores is None else say(scores)

    return cell


def _median(group: Group, name: str) -> str:
    """Of the seeds' means; where the task is hidden a seed learns all tasks or one, and half of a mean is no seed's."""
    scores = group.scores(name)
    hidden = any(row.metric.startswith("reward/") for row in group.rows)
    return number(float(np.median(scores.mean(1)))) if hidden and scores is not None and len(scores) > 1 else "-"


def _with_least(group: Group, name: str) -> str:
    scores = group.scores(name)
    least = "" if scores is None or len(scores) == 1 else f" (least {number(scores.mean(1).min())})"
    return group.mean(name) + least


def _worst(group: Group, pattern: str) -> str:
    """Reward under the task that each seed is worst at, over seeds."""
    names = {row.metric for row in group.rows if fnmatchcase(row.metric, pattern)}
    found = [score for name in names if (score := group.scores(name)) is not None]
    if not found or len({len(score) for score in found}) > 1:
        return "-"
    return mean_and_deviation(np.stack(found).min(0))


def _larger(less: str) -> Cell:
    """For each seed, on how many tasks a metric is above the one called `less`, with the p-value of a sign test."""

    @np.errstate(invalid="ignore")
    def cell(group: Group, more: str) -> str:
        low, high = group.scores(less), group.scores(more)
        if low is None or high is None or low.shape != high.shape:
            return "-"
        outcomes = [None if np.isnan(seed).any() else sign_test(seed) for seed in high - low]
        return ", ".join(f"{each.positive}/{low.shape[1]} ({each.p:.1g})" if each else "nan" for each in outcomes)

    return cell


RETURN = Kind(
    "return [{unit}]",
    "return/policy",
    (
        Column("return/policy", "tasks", _of(lambda scores: str(scores.shape[1]))),
        Column("return/policy", "mean +- sd"),
        Column("return/policy", "median", _median),
        Column("return/policy", "IQM [95 %]", _of(interval)),
        Column("return/policy", "each seed", _of(lambda s: " ".join(map(number, s.mean(1))) if len(s) > 1 else "-")),
        Column("return/*"),
    ),
    (
        "policy: deterministic where the column does not say otherwise; mean, IQM: over seeds and tasks; sd: between seeds;",
        "95 %: stratified bootstrap over seeds within tasks; median, where the task is hidden: of the seeds' means",
    ),
    "mean +- sd",
)
REWARD = Kind(
    "reward per step",
    "return/policy",
    (Column("reward/*=*"), Column("reward/*=*", "the worst of these, of each seed", _worst), Column("reward/*")),
    ("deterministic policy; mean over all steps of the evaluation episodes that are of the kind",),
)
BODY = Kind(
    "what the body did",
    "return/policy",
    (Column("upright/share"), Column("upright/first_fall"), Column("distance"), Column("info/*")),
)


def _errors(suffix: str, targets: str) -> Kind:
    names = [f"{which}{error}" for error in ("mse", "nmse") for which in ("", "wrong_", "null_", "blind_", "told_")]
    worse = "worse with wrong context, each seed: tasks (p)"
    return Kind(
        f"error of the model on {targets} [MSE: raw units squared; nMSE: share of variance]",
        f"model/mse{suffix}",
        (
            *(Column(f"model/{name}{suffix}") for name in [*names, "multi_step_nmse"]),
            Column(f"model/wrong_nmse{suffix}", worse, _larger(f"model/nmse{suffix}")),
        ),
        ("p: exact two-sided sign test over tasks, error with wrong minus with right context (nMSE)",),
        "" if suffix else "MSE",
    )


MODEL, EXPLORED = _errors("", "the policy's episodes"), _errors("_random", "what gathers a context")
LESS = "less after, each seed: tasks (p)"
ADAPTATION = Kind(
    "error of the model on the next transitions",
    "model/nmse_before",
    (
        Column("model/nmse_before"),
        Column("model/nmse_after"),
        Column("model/nmse_before", f"nMSE, {LESS}", _larger("model/nmse_after")),
        Column("model/loss_before"),
        Column("model/loss_after"),
        Column("model/loss_before", f"L, {LESS}", _larger("model/loss_after")),
    ),
    (
        "nMSE: share of the variance in these very episodes, mean over outputs: one that hardly moves in them weighs most;",
        "L: what training minimises, squared errors of targets standardised by its data; p: exact two-sided sign test over",
        "tasks; a wide state is a poor model before it has read anything",
    ),
)
HISTORY = Kind(
    "error of the model of histories [nMSE: share of variance]",
    "model/nll",
    tuple(
        Column(name)
        for name in (
            *(f"model/{error}" for error in ("nmse", "wrong_nmse", "null_nmse", "reward_nmse", "slope", "nll")),
            "policy/kl_cloned",
        )
    ),
    (
        "wrong context: another moment's history; slope: correlation of the direction with what is predicted to be gained by",
        "acting forwards, 1 is perfect; NLL: of standardised targets; `python -m mbrl_lightning.bounds` reads NLL and KL",
    ),
)
PROBE = Kind(
    "latent [R2 of a linear probe, 1 is perfect]",
    "probe/r2/*",
    (Column("probe/r2/*", None, _with_least), Column("latent/*")),
)


def _gap(group: Group, real: str) -> str:
    ours, imagined = group.scores(real), group.scores("imagined/return")
    both = ours is not None and imagined is not None and imagined.shape == ours.shape
    return mean_and_deviation(imagined - ours) if both else "-"  # type: ignore[operator]


def _times(group: Group) -> dict[str, float]:
    """Seconds of all seeds by stage, `total` first. `time/<stage>` rows add up from the start of a run."""
    spent = {"total": 0.0}
    for row in group.rows:
        if row.metric.startswith("time/"):
            stage = row.metric.removeprefix("time/")
            spent[stage] = spent.get(stage, 0.0) + row.value
    stages = sum(spent.values()) - spent["total"]
    return spent | {"total": max(spent["total"], stages), "other": max(spent["total"] - stages, 0.0)}


def _minutes(group: Group, _: str) -> str:
    return number(_times(group)["total"] / 60 / len(seeds_of(group.rows)))


def _stages(group: Group, _: str) -> str:
    total, *rest = _times(group).items()
    return ", ".join(f"{stage} {seconds / (total[1] or 1.0):.0%}" for stage, seconds in rest)


TRAINING = Kind(
    "return of the last iteration [{unit}]",
    "time/total",
    (
        Column("imagined/return", "imagined"),
        Column("real/return", "real"),
        Column("real/return", "imagined - real", _gap),
        Column("time/total", "minutes a seed", _minutes),
        Column("time/*", "time by stage", _stages),
    ),
)
KINDS = (RETURN, REWARD, BODY, MODEL, EXPLORED, ADAPTATION, HISTORY, PROBE)
