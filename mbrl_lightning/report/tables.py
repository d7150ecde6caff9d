"""The one builder of tables: rows of one family, a line for each algorithm and context, beside the papers' numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import numpy as np

from mbrl_lightning.report.curves import by_algorithm, last
from mbrl_lightning.report.metrics import FREE, in_order, metric
from mbrl_lightning.report.paper import PAPER
from mbrl_lightning.report.statistics import Array, score_matrix
from mbrl_lightning.runs.results import Row


@dataclass
class Table:
    """A table of words, `rows` of as many cells each as `header`. Columns without any entry are left out when it is written."""

    title: str
    header: list[str]
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def text(self) -> str:
        """Aligned columns for a terminal."""
        lines = self.filled()
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        lines.insert(1, ["-" * width for width in widths])
        body = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
        return "\n".join([self.title, *(f"  {line}".rstrip() for line in body + self.notes)])

    def markdown(self) -> str:
        """The same for Markdown."""
        lines = self.filled()
        lines.insert(1, ["---"] * len(lines[0]))
        body = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
        return "\n".join([f"**{self.title}**", "", *body, "", *(f"{note}  " for note in self.notes)]).rstrip()

    def filled(self) -> list[list[str]]:
        """Header and rows without columns that have no entry."""
        columns = zip(self.header, *self.rows, strict=True)
        kept = [column for column in columns if any(cell not in ("", "-") for cell in column[1:])]
        return [list(line) for line in zip(*kept, strict=True)]


@dataclass(frozen=True)
class Group:
    """Rows of one algorithm, split and context length, at each seed's last measurement."""

    algorithm: str
    shot: int
    rows: Sequence[Row]

    def scores(self, name: str) -> Array | None:
        """`[seeds, tasks]` of a metric, or None where there are no such rows."""
        scores = score_matrix([row for row in self.rows if row.metric == name])[2]
        return scores if scores.size else None

    def mean(self, name: str) -> str:
        """Mean over seeds and tasks, with the deviation between seeds."""
        scores = self.scores(name)
        return "-" if scores is None else mean_and_deviation(scores, metric(name).digits)

    def by_seed(self) -> list[Group]:
        """A group for each seed."""
        seeds = sorted(seeds_of(self.rows))
        return [Group(self.algorithm, self.shot, [row for row in self.rows if row.seed == seed]) for seed in seeds]


Cell = Callable[[Group, str], str]


@dataclass(frozen=True)
class Column:
    """A column: a metric, its heading (None is the metric's own), and what is said of it.

    A pattern with `*` and no heading stands for a column for each metric that is there and has none of its own.
    """

    metrics: str
    heading: str | None = None
    cell: Cell = Group.mean


@dataclass(frozen=True)
class Kind:
    """A kind of table: a line for each algorithm and context length at which the metric `anchor` was measured last.

    Other metrics count if they belong to the same iteration. `title` may have the `{unit}` of returns; `paper` is the heading
    of the column in which the papers' numbers of the anchor stand, if there are any.
    """

    title: str
    anchor: str
    columns: tuple[Column, ...]
    notes: tuple[str, ...] = ()
    paper: str = ""


def build(rows: Sequence[Row], env: str, split: str, kind: Kind, each_seed: bool = False) -> Table | None:
    """The table of one kind for one env and split, of means over seeds or of each; None where its rows have nothing for it."""
    mine = [row for row in rows if row.split == split]
    columns = _columns(kind, {row.metric for row in mine})
    unit = next((row.unit for row in mine if row.unit), "")
    opening = ["algorithm", "context", "seed" if each_seed else "seeds", "real steps"]
    headings = [metric(column.metrics).heading if column.heading is None else column.heading for column in columns]
    title = kind.title.format(unit=unit).replace(" []", "")
    table = Table(f"{env}, {f'{split} tasks' if split else 'training'}: {title}", [*opening, *headings])
    for group in groups(mine, kind.anchor):
        for part in group.by_seed() if each_seed else [group]:
            cells = [column.cell(part, column.metrics) for column in columns]
            if any(cell != "-" for cell in cells):
                steps = {row.real_steps for row in part.rows if row.metric not in FREE}
                seeds = seeds_of(part.rows)
                context = str(part.shot) if part.shot >= 0 else "-"
                who = str(min(seeds) if each_seed else len(seeds))
                table.rows.append([part.algorithm, context, who, span(steps), *cells])
    if not table.rows:
        return None
    table.notes.extend(kind.notes)
    for entry in PAPER if kind.paper and split == "test" else ():
        if (entry.env, entry.metric) == (env, kind.anchor):
            cells = ["-"] * len(table.header)
            cells[0] = f"paper: {entry.method}"
            cells[table.header.index(kind.paper)] = number(entry.value)
            table.rows.append(cells)
            table.notes.append(f"paper: {entry.method} from {entry.source}")
    return table


def _columns(kind: Kind, there: set[str]) -> list[Column]:
    own, columns = {column.metrics for column in kind.columns}, []
    for column in kind.columns:
        if "*" in column.metrics and column.heading is None:
            names = in_order(name for name in there - own if fnmatchcase(name, column.metrics))
            columns += [Column(name, None, column.cell) for name in names]
            own = own.union(names)
        else:
            columns.append(column)
    return columns


def groups(rows: Sequence[Row], anchor: str) -> list[Group]:
    """One group for each algorithm and context length at which `anchor` was measured last, of rows of one env and split."""
    found = []
    for algorithm, mine in by_algorithm(rows).items():
        anchors = last([row for row in mine if fnmatchcase(row.metric, anchor)])
        at = {row.seed: row.iteration for row in anchors}
        free = last([row for row in mine if row.metric in FREE and row.seed in at])
        same = [row for row in mine if row.metric not in FREE and at.get(row.seed) == row.iteration]
        for shot in sorted({row.shot for row in anchors}):
            members = [row for row in same if row.shot == shot]
            members += [row for row in free if row.seed in seeds_of(members)]
            found.append(Group(algorithm, shot, members))
    return found


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
def mean_and_deviation(scores: Array, digits: int = 3) -> str:
    """Mean of `[seeds, tasks]` and, with two seeds or more, the sample deviation of the seeds' means."""
    means = scores.mean(1)
    if len(means) == 1:
        return number(means[0], digits)
    deviation = means.std(ddof=1)
    rounded = deviation < 1e-12 * np.abs(means).max()  # equal but for the last bits of a sum
    return f"{number(means.mean(), digits)} +- {0 if rounded else number(deviation, 2)}"
