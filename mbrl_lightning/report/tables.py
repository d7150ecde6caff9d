"""Tables of a report: what the rows of one task family say, with units and beside the paper's numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from mbrl_lightning.report.curves import Array, by_algorithm, last
from mbrl_lightning.report.paper import PAPER
from mbrl_lightning.report.statistics import iqm, score_matrix, stratified_bootstrap
from mbrl_lightning.runs.results import Row

RETURNS = {
    "return/sampled": "sampled policy",
    "return/wrong_belief": "another task's belief",
    "return/fine_tuned": "fine-tuned",
    "return/oracle": "true parameters",
    "return/random": "random policy",
}
FREE = ("return/random", "return/oracle")  # the same whatever the context
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
        body = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
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
        return [self.algorithm, context, str(len(seeds_of(self.rows))), span(steps)]


OPENING = ["algorithm", "context", "seeds", "real steps"]


def number(value: float, digits: int = 3) -> str:
    """Some digits, or all before the point where there are more; thousands are separated."""
    return f"{value:,.0f}" if abs(value) >= 99.5 else f"{value:.{digits}g}"


def span(steps: Iterable[int]) -> str:
    """Least and most of the seeds' real steps, or the one number they share."""
    ends = sorted(set(steps))
    return f"{ends[0]:,}" if len(ends) == 1 else f"{ends[0]:,} to {ends[-1]:,}"


def seeds_of(rows: Iterable[Row]) -> set[int]:
    """The seeds that have rows."""
    return {row.seed for row in rows}


@np.errstate(invalid="ignore")  # infinite values of a diverged run give inf or nan, which the table shows
def mean_and_deviation(scores: Array) -> str:
    """Mean of `[seeds, tasks]` and, with two seeds or more, the sample deviation of the seeds' means."""
    means = scores.mean(1)
    if len(means) == 1:
        return number(means[0])
    deviation = means.std(ddof=1)
    rounded = deviation < 1e-12 * np.abs(means).max()  # equal but for the last bits of a sum
    return f"{number(means.mean())} +- {0 if rounded else number(deviation, 2)}"


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
            members = [row for row in same if row.shot == shot]
            members += [row for row in free if row.seed in seeds_of(members)]
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
    header = [*OPENING, "tasks", "mean +- sd", "median", "IQM [95 %]", "each seed", *names]
    hidden = any(row.metric.startswith("reward/") for row in rows)
    table = Table(f"{env}, {split} tasks: return [{unit}]", header)
    for group in found:
        scores = group.scores("return/policy")
        if scores is not None:
            seeds = " ".join(number(value) for value in scores.mean(1)) if len(scores) > 1 else "-"
            # where the task is hidden a seed learns all tasks or one: half of a mean is no seed's
            median = number(np.median(scores.mean(1))) if hidden and len(scores) > 1 else "-"
            measures = [str(scores.shape[1]), mean_and_deviation(scores), median, interval(scores), seeds]
            table.rows.append([*group.opening(), *measures, *map(group.mean, others)])
    table.notes.append("policy: deterministic where the column does not say otherwise; mean, IQM: over seeds and")
    median = "; median: of the seeds' means" if any(row[6] != "-" for row in table.rows) else ""
    table.notes.append(f"tasks; sd: between seeds; 95 %: stratified bootstrap over seeds within tasks{median}")
    if split == "test":
        add_paper(table, env, "return/policy", "mean +- sd")
    return table


def interval(scores: Array) -> str:
    """Interquartile mean of `[seeds, tasks]` and, with two seeds or more, its bootstrap interval."""
    if len(scores) == 1:
        return number(iqm(scores))
    low, high = stratified_bootstrap(scores)
    return f"{number(iqm(scores))} [{number(low)}, {number(high)}]"


def probe_table(rows: Sequence[Row], env: str, split: str) -> Table | None:
    """How well a linear probe reads each task parameter off the latent (R^2), and the collapse alarm."""
    probes = sorted({row.metric for row in rows if row.metric.startswith("probe/r2/") and row.split == split})
    names = [f"R2 of {probe.removeprefix('probe/r2/')}" for probe in probes]
    title = f"{env}, {split} tasks: latent [R2 of a linear probe, 1 is perfect]"
    table = Table(title, [*OPENING, *names, *LATENT.values()])
    for group in groups(rows, split, probes[0]) if probes else []:
        r2 = [group.mean(probe) + _least(group.scores(probe)) for probe in probes]
        table.rows.append([*group.opening(), *r2, *(group.mean(metric) for metric in LATENT)])
    return table if table.rows else None


def body_table(rows: Sequence[Row], env: str, split: str) -> Table | None:
    """What a body did for its return: upright or fallen, how soon, how far."""
    table = Table(f"{env}, {split} tasks: what the body did", [*OPENING, *BODY.values()])
    for group in groups(rows, split, "return/policy"):
        table.rows.append([*group.opening(), *(group.mean(metric) for metric in BODY)])
    return table if any(cell != "-" for row in table.rows for cell in row[len(OPENING) :]) else None


def training_table(rows: Sequence[Row], env: str) -> Table:
    """Last iteration's imagined beside real return, and where the wall-clock time went."""
    returns = {"imagined/return": "imagined", "real/return": "real"}
    unit = next((f" [{row.unit}]" for row in rows if row.metric in returns and row.unit), "")
    header = ["algorithm", "seeds", "real steps", *returns.values(), "imagined - real", "minutes a seed"]
    table = Table(f"{env}, training: return of the last iteration{unit}", [*header, "time by stage"])
    for algorithm, mine in by_algorithm(rows).items():
        ends = [row for metric in returns for row in last([row for row in mine if row.metric == metric])]
        group = Group(algorithm, -1, ends)
        imagined, real = (group.scores(metric) for metric in returns)
        gap = "-"
        if imagined is not None and real is not None and imagined.shape == real.shape:
            gap = mean_and_deviation(imagined - real)
        final = {seed: max(row.real_steps for row in mine if row.seed == seed) for seed in seeds_of(mine)}
        opening = [algorithm, str(len(final)), span(final.values())]
        table.rows.append([*opening, *map(group.mean, returns), gap, *_times(mine, len(final))])
    return table


def _times(rows: Sequence[Row], seeds: int) -> list[str]:
    """Minutes a seed and each stage's share. `time/<stage>` rows add up from the start of the run."""
    ends = last([row for row in rows if row.metric.startswith("time/")])
    spent: dict[str, float] = {}
    for row in ends:
        stage = row.metric.removeprefix("time/")
        spent[stage] = spent.get(stage, 0.0) + row.value
    total = max(spent.pop("total", 0.0), sum(spent.values()))
    if not total:
        return ["-", "-"]
    spent["other"] = total - sum(spent.values())
    shares = [f"{stage} {seconds / total:.0%}" for stage, seconds in spent.items()]
    return [number(total / 60 / seeds), ", ".join(shares)]


def _least(scores: Array | None) -> str:
    return "" if scores is None or len(scores) == 1 else f" (least {number(scores.mean(1).min())})"


def add_paper(table: Table, env: str, metric: str, column: str) -> None:
    """A row for each method of which the paper reports `metric` in `env`, under `column`, with a note of its source."""
    for entry in PAPER:
        if (entry.env, entry.metric) == (env, metric):
            cells = ["-"] * len(table.header)
            cells[0] = f"paper: {entry.method}"
            cells[table.header.index(column)] = number(entry.value)
            table.rows.append(cells)
            table.notes.append(f"paper: {entry.method} from {entry.source}")
