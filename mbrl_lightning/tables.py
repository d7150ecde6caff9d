"""Tables of a report: what the rows of one task family say, with units and beside the paper's numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from mbrl_lightning.curves import Array, by_algorithm, last
from mbrl_lightning.paper import PAPER
from mbrl_lightning.results import Row, iqm, score_matrix, sign_test, stratified_bootstrap

RETURNS = {
    "return/sampled": "sampled policy",
    "return/wrong_belief": "another task's belief",
    "return/fine_tuned": "fine-tuned",
    "return/oracle": "true parameters",
    "return/random": "random policy",
}
FREE = ("return/random", "return/oracle")  # the same whatever the context
ERRORS = {
    "mse": "MSE",
    "wrong_mse": "MSE, wrong context",
    "null_mse": "MSE of no change",
    "nmse": "nMSE",
    "wrong_nmse": "nMSE, wrong context",
    "null_nmse": "nMSE of no change",
    "multi_step_nmse": "multi-step nMSE",
}
TARGETS = {"": "policy's episodes", "_random": "random policy"}
BODY = {
    "upright/share": "upright [share of steps]",
    "upright/first_fall": "first fall [step]",
    "distance": "distance [m]",
}
LATENT = {
    "latent/scale": "posterior sd",
    "latent/spread": "spread over tasks",
    "latent/collapse": "collapsed [share of seeds]",
}


@dataclass
class Table:
    """A table of words. Columns without any entry are left out when it is written.

    Attributes:
        title: one line, with the unit of its numbers.
        header: one phrase for each column.
        rows: as many cells each as `header`.
        notes: lines below.
    """

    title: str
    header: list[str]
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def text(self) -> str:
        """Aligned columns for a terminal."""
        lines = self._filled()
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        lines.insert(1, ["-" * width for width in widths])
        body = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines
        ]
        return "\n".join([self.title, *(f"  {line}".rstrip() for line in body + self.notes)])

    def markdown(self) -> str:
        """The same for Markdown."""
        lines = self._filled()
        lines.insert(1, ["---"] * len(lines[0]))
        body = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
        return "\n".join([f"**{self.title}**", "", *body, "", *(f"{note}  " for note in self.notes)])

    def _filled(self) -> list[list[str]]:
        columns = zip(self.header, *self.rows, strict=True)
        kept = [column for column in columns if any(cell not in ("", "-") for cell in column[1:])]
        return [list(line) for line in zip(*kept, strict=True)]


@dataclass(frozen=True)
class Group:
    """Rows of one algorithm, split and context length, at each seed's last measurement."""

    algorithm: str
    shot: int
    rows: Sequence[Row]

    def scores(self, metric: str) -> Array | None:
        """`[seeds, tasks]`, or None where there are no such rows."""
        rows = [row for row in self.rows if row.metric == metric]
        scores = score_matrix(rows)[2]
        return scores if scores.size else None

    def mean(self, metric: str) -> str:
        """Mean over seeds and tasks, with the deviation between seeds."""
        scores = self.scores(metric)
        return "-" if scores is None else mean_and_deviation(scores)

    def opening(self) -> list[str]:
        """First cells: algorithm, context, seeds, real steps."""
        steps = {row.real_steps for row in self.rows if row.metric not in FREE}
        context = str(self.shot) if self.shot >= 0 else "-"
        return [self.algorithm, context, str(len({row.seed for row in self.rows})), span(steps)]


OPENING = ["algorithm", "context", "seeds", "real steps"]


def number(value: float) -> str:
    """Three digits, or all digits before the point; thousands are separated."""
    return f"{value:,.0f}" if abs(value) >= 99.95 else f"{value:.3g}"


def span(steps: Iterable[int]) -> str:
    """Least and most of the seeds' real steps, or the one number they share."""
    return " to ".join(f"{each:,}" for each in sorted({min(steps := list(steps)), max(steps)}))


def mean_and_deviation(scores: Array) -> str:
    """Mean of `[seeds, tasks]` and, with two seeds or more, the sample deviation of the seeds' means."""
    means = scores.mean(1)
    return number(means.mean()) + (f" +- {number(means.std(ddof=1))}" if len(means) > 1 else "")


def groups(rows: Sequence[Row], split: str, anchor: str) -> list[Group]:
    """One group for each algorithm and context length at which `anchor` was measured last.

    Args:
        rows: of one env.
        split: of tasks.
        anchor: a metric; other metrics count if they belong to the same iteration.
    """
    found = []
    for algorithm, mine in by_algorithm([row for row in rows if row.split == split]).items():
        anchors = last([row for row in mine if row.metric == anchor])
        at = {row.seed: row.iteration for row in anchors}
        free = last([row for row in mine if row.metric in FREE and row.seed in at])
        same = [row for row in mine if row.metric not in FREE and at.get(row.seed) == row.iteration]
        for shot in sorted({row.shot for row in anchors}):
            members = [row for row in same if row.shot == shot] + free
            found.append(Group(algorithm, shot, members))
    return found


def return_table(rows: Sequence[Row], env: str, split: str) -> Table | None:
    """Returns on one split of tasks, beside the paper's; None where there are none."""
    found = groups(rows, split, "return/policy")
    if not found:
        return None
    seen = {row.metric for group in found for row in group.rows if row.metric.startswith("return/")}
    others = [*RETURNS, *sorted(seen - {*RETURNS, "return/policy"})]
    unit = next((row.unit for row in rows if row.metric == "return/policy"), "")
    names = [RETURNS.get(metric, metric.removeprefix("return/")) for metric in others]
    table = Table(
        f"{env}, {split} tasks: return [{unit}]", [*OPENING, "mean +- sd", "IQM [95 %]", "each seed", *names]
    )
    for group in found:
        scores = group.scores("return/policy")
        if scores is None:
            continue
        seeds = " ".join(number(value) for value in scores.mean(1)) if len(scores) > 1 else "-"
        cells = [
            mean_and_deviation(scores),
            interval(scores),
            seeds,
            *(group.mean(metric) for metric in others),
        ]
        table.rows.append([*group.opening(), *cells])
        note = f"{scores.shape[1]} tasks; policy deterministic where the column does not say otherwise"
    table.notes += [
        note,
        "mean, IQM: over seeds and tasks; sd: between seeds; 95 %: stratified bootstrap over seeds",
    ]
    if split == "test":
        _add_paper(table, env, "return/policy", "mean +- sd")
    return table


def interval(scores: Array) -> str:
    """Interquartile mean of `[seeds, tasks]` and, with two seeds or more, its bootstrap interval."""
    if len(scores) == 1:
        return number(iqm(scores))
    low, high = stratified_bootstrap(scores)
    return f"{number(iqm(scores))} [{number(low)}, {number(high)}]"


def model_table(rows: Sequence[Row], env: str, split: str) -> Table | None:
    """Prediction error of the model with the right and a wrong task's context, beside the paper's."""
    header = [*OPENING, "targets", *ERRORS.values(), "worse with wrong context, each seed: tasks (p)"]
    table = Table(
        f"{env}, {split} tasks: error of the model [MSE: raw units squared; nMSE: share of variance]", header
    )
    for suffix, target in TARGETS.items():
        for group in groups(rows, split, f"model/mse{suffix}"):
            errors = [group.mean(f"model/{name}{suffix}") for name in ERRORS]
            table.rows.append([*group.opening(), target, *errors, wrong_context(group, suffix)])
    if not table.rows:
        return None
    table.notes.append(
        "p: exact two-sided sign test over tasks, error with wrong minus with right context (nMSE)"
    )
    if split == "test":
        _add_paper(table, env, "model/mse", "MSE")
    return table


def wrong_context(group: Group, suffix: str = "") -> str:
    """For each seed, on how many tasks the error is larger with a wrong task's context, with its p-value."""
    right, wrong = (group.scores(f"model/{name}{suffix}") for name in ("nmse", "wrong_nmse"))
    if right is None or wrong is None or right.shape != wrong.shape:
        return "-"
    cells = []
    for seed in wrong - right:
        if np.isnan(seed).any():
            cells.append("nan")
        else:
            outcome = sign_test(seed)
            cells.append(f"{outcome.positive}/{len(seed)} ({outcome.p:.1g})")
    return ", ".join(cells)


def probe_table(rows: Sequence[Row], env: str, split: str) -> Table | None:
    """What can be read off the latent: R^2 of each task parameter by a linear probe, and the collapse alarm."""
    probes = sorted({row.metric for row in rows if row.metric.startswith("probe/r2/") and row.split == split})
    names = [f"R2 of {probe.removeprefix('probe/r2/')}" for probe in probes]
    table = Table(
        f"{env}, {split} tasks: latent [R2 of a linear probe, 1 is perfect]",
        [*OPENING, *names, *LATENT.values()],
    )
    for group in groups(rows, split, probes[0]) if probes else []:
        r2 = [f"{group.mean(probe)} (least {_least(group.scores(probe))})" for probe in probes]
        table.rows.append([*group.opening(), *r2, *(group.mean(metric) for metric in LATENT)])
    return table if table.rows else None


def body_table(rows: Sequence[Row], env: str, split: str) -> Table | None:
    """What a body did for its return: upright or fallen, how soon, how far."""
    table = Table(f"{env}, {split} tasks: what the body did", [*OPENING, *BODY.values()])
    for group in groups(rows, split, "return/policy"):
        table.rows.append([*group.opening(), *(group.mean(metric) for metric in BODY)])
    return table if any(cell != "-" for row in table.rows for cell in row[len(OPENING) :]) else None


def training_table(rows: Sequence[Row], env: str) -> Table | None:
    """Last iteration's imagined beside real return, and where the wall-clock time went."""
    unit = next((row.unit for row in rows if row.metric == "real/return"), "")
    header = [
        "algorithm",
        "seeds",
        "real steps",
        "imagined",
        "real",
        "imagined - real",
        "minutes a seed",
        "share of time",
    ]
    table = Table(f"{env}, training: return of the last iteration [{unit}]", header)
    for algorithm, mine in by_algorithm(rows).items():
        ends = {
            name: last([row for row in mine if row.metric == f"{name}/return"])
            for name in ("imagined", "real")
        }
        scores = {name: score_matrix(end)[2] for name, end in ends.items() if end}
        gap = "-"
        if len(scores) == 2 and scores["imagined"].shape == scores["real"].shape:
            gap = mean_and_deviation(scores["imagined"] - scores["real"])
        returns = [
            mean_and_deviation(scores[name]) if name in scores else "-" for name in ("imagined", "real")
        ]
        steps: dict[int, int] = {}
        for row in mine:
            steps[row.seed] = max(row.real_steps, steps.get(row.seed, 0))
        opening = [algorithm, str(len(steps)), span(steps.values())]
        table.rows.append([*opening, *returns, gap, *_times(mine, len(steps))])
    return table


def _times(rows: Sequence[Row], seeds: int) -> list[str]:
    stages: dict[str, float] = {}
    for row in rows:
        if row.metric.startswith("time/"):
            stage = row.metric.removeprefix("time/")
            stages[stage] = stages.get(stage, 0.0) + row.value
    total = sum(stages.values())
    shares = [f"{stage} {100 * spent / total:.0f} %" for stage, spent in stages.items()] if total else ["-"]
    return [number(total / 60 / seeds) if total else "-", ", ".join(shares)]


def _least(scores: Array | None) -> str:
    return "-" if scores is None else number(scores.mean(1).min())


def _add_paper(table: Table, env: str, metric: str, column: str) -> None:
    for entry in PAPER:
        if (entry.env, entry.metric) == (env, metric):
            cells = ["-"] * len(table.header)
            cells[0] = f"paper: {entry.method}"
            cells[table.header.index(column)] = number(entry.value)
            table.rows.append(cells)
            table.notes.append(f"paper: {entry.method} from {entry.source}")
