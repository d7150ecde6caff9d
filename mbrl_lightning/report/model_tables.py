"""Tables of a model's errors: with the right context and a wrong one, before it adapts and after, beside the paper's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mbrl_lightning.report.statistics import sign_test
from mbrl_lightning.report.tables import OPENING, Group, Table, add_paper, groups
from mbrl_lightning.runs.results import Row

ERRORS = {
    "mse": "MSE",
    "wrong_mse": "MSE, wrong context",
    "null_mse": "MSE of no change",
    "nmse": "nMSE",
    "wrong_nmse": "nMSE, wrong context",
    "null_nmse": "nMSE of no change",
    "blind_nmse": "nMSE, MLP told nothing",
    "told_nmse": "nMSE, MLP told the task",
    "blind_mse": "MSE, MLP told nothing",
    "told_mse": "MSE, MLP told the task",
    "multi_step_nmse": "multi-step nMSE",
}
TARGETS = {"": "policy's episodes", "_random": "exploration"}
ADAPTING = {"nmse": "nMSE", "loss": "L"}


def model_table(rows: Sequence[Row], env: str, split: str) -> Table | None:
    """Prediction error of the model with the right and a wrong task's context, beside the paper's."""
    header = [*OPENING, "targets", *ERRORS.values(), "worse with wrong context, each seed: tasks (p)"]
    table = Table(f"{env}, {split} tasks: error of the model [MSE: raw units squared; nMSE: share of variance]", header)
    for suffix, target in TARGETS.items():
        for group in groups(rows, split, f"model/mse{suffix}"):
            errors = [group.mean(f"model/{name}{suffix}") for name in ERRORS]
            worse = larger(group, f"model/wrong_nmse{suffix}", f"model/nmse{suffix}")
            table.rows.append([*group.opening(), target, *errors, worse])
    if not table.rows:
        return None
    table.notes.append("p: exact two-sided sign test over tasks, error with wrong minus with right context (nMSE)")
    table.notes.append("exploration: what gathers a context, random actions, or the sampled policy (MB-MPO, PEARL)")
    if split == "test":
        add_paper(table, env, "model/mse", "MSE")
    return table


def adaptation_table(rows: Sequence[Row], env: str, split: str) -> Table | None:
    """Error of a model on the next K transitions before it adapts to the last M and after (L2A); None where none adapts."""
    parts = ("before adapting", "after", "less after, each seed: tasks (p)")
    header = [*OPENING, *(f"{name}, {part}" for name in ADAPTING.values() for part in parts)]
    table = Table(f"{env}, {split} tasks: error of the model on the next transitions", header)
    for group in groups(rows, split, "model/nmse_before"):
        cells = group.opening()
        for name in ADAPTING:
            before, after = f"model/{name}_before", f"model/{name}_after"
            cells += [group.mean(before), group.mean(after), larger(group, before, after)]
        table.rows.append(cells)
    if not table.rows:
        return None
    table.notes.append(
        "nMSE: share of the variance in these very episodes, mean over outputs, so an output that hardly moves"
    )
    table.notes.append(
        "in them weighs most; L: what training minimises, squared errors of targets standardised by its data"
    )
    table.notes.append(
        "p: exact two-sided sign test over tasks; a wide state is a poor model before it has read anything"
    )
    return table


@np.errstate(invalid="ignore")
def larger(group: Group, more: str, less: str) -> str:
    """For each seed, on how many tasks one metric is above another, with the p-value of a sign test."""
    low, high = group.scores(less), group.scores(more)
    if low is None or high is None or low.shape != high.shape:
        return "-"
    cells = []
    for seed in high - low:
        if np.isnan(seed).any():
            cells.append("nan")
        else:
            outcome = sign_test(seed)
            cells.append(f"{outcome.positive}/{len(seed)} ({outcome.p:.1g})")
    return ", ".join(cells)
