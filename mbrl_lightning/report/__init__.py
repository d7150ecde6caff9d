"""Report on runs: tables as plain text and Markdown, curves as PNG, the paper's numbers beside ours.

`python -m mbrl_lightning.report RUN... [out=FOLDER]`, or `report(paths, out)` from a notebook.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mbrl_lightning.config.console import answer, make_callable
from mbrl_lightning.config.option import option
from mbrl_lightning.config.words import describe, parse
from mbrl_lightning.errors import StorageError

if TYPE_CHECKING:
    from mbrl_lightning.report.tables import Table
    from mbrl_lightning.runs.results import PathLike, Row


@dataclass
class Options:
    """Words of the command line."""

    runs: list[str] = option(
        [],
        "a run folder, a folder above several runs (runs/cartpole), or a CSV of results; runs of different algorithms "
        "and seeds are put side by side",
        bare=True,
        required=True,
        item="RUN...",
    )
    out: str = option("report", "folder for report.md and the PNGs")


HELP = f"""usage: python -m mbrl_lightning.report RUN... [out=FOLDER]

Prints tables of the runs' results and writes them, with curves, into a folder.

{describe(Options)}

exit status: 0 done, 2 usage, 5 results missing or damaged, or the folder cannot be written"""
SPLITS = ("test", "extreme", "train")
Draw = Callable[[Path], Path]


def report(paths: PathLike | Iterable[PathLike], out: PathLike = "report") -> str:
    """Writes `report.md` and its PNGs into a folder.

    Args:
        paths: run folders, folders above runs, CSVs.
        out: the folder; made when missing, its report replaced.

    Returns:
        The tables as plain text.

    Raises:
        StorageError: results missing or damaged, or the folder cannot be written.
    """
    from mbrl_lightning.runs.results import read_results

    rows = _with_units(read_results(paths))
    if not rows:
        raise StorageError("the runs have no rows yet", "wait for their first iteration to end")
    folder = Path(out)
    plain: list[str] = []
    markdown = ["# Report"]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for env in sorted({row.env for row in rows}):
            mine = [row for row in rows if row.env == env]
            tables = make_tables(mine, env)
            plain += [table.text() for table in tables]
            pictures = draw(mine, env, folder)
            links = [f"![{picture.stem}]({picture.name})" for picture in pictures]
            markdown += [f"## {env}", *(table.markdown() for table in tables), *links]
        if importlib.util.find_spec("matplotlib") is None:
            plain.append("no curves: matplotlib is missing (pip install 'mbrl_lightning[viz]')")
        else:
            plain.append(f"report.md and curves are in {folder}")
        (folder / "report.md").write_text("\n\n".join(markdown) + "\n", encoding="utf-8")
    except OSError as error:
        remedy = "name another folder with out=FOLDER, or see that the disk is not full"
        raise StorageError(f"cannot write the report to {folder}: {error.strerror or error}", remedy) from error
    return "\n\n".join(plain)


def make_tables(rows: Sequence[Row], env: str) -> list[Table]:
    """All tables of one env that its rows have entries for."""
    from mbrl_lightning.report.kinds import KINDS
    from mbrl_lightning.report.tables import build, training_table

    made = [build(rows, env, split, kind) for split in SPLITS for kind in KINDS]
    return [table for table in made if table is not None] + [training_table(rows, env)]


def draw(rows: Sequence[Row], env: str, folder: Path) -> list[Path]:
    """Draws what the rows of one env allow; without matplotlib nothing.

    Args:
        rows: of that env.
        env: its name, which begins the names of the files.
        folder: for the PNGs.

    Returns:
        The PNGs' paths.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return []
    from mbrl_lightning.report import figures
    from mbrl_lightning.report.paper import PAPER

    paper = [entry for entry in PAPER if entry.env == env]
    policies = {f"paper, {entry.method}": entry.value for entry in paper if entry.metric == "return/policy"}
    errors = {f"paper, {entry.method}": entry.value for entry in paper if entry.metric == "model/mse"}
    drawings: dict[str, Draw] = {
        "learning": lambda path: figures.learning_curve(rows, "return/policy", path, policies),
        "adaptation": lambda path: figures.adaptation_curve(rows, path, policies),
        "training": lambda path: figures.learning_curve(rows, "real/return", path),
        "exploitation": lambda path: figures.exploitation(rows, path),
        "model_mse": lambda path: figures.learning_curve(rows, "model/mse", path, errors),
        "model_nmse": lambda path: figures.learning_curve(rows, "model/nmse", path),
    }
    prefix = re.sub(r"[^A-Za-z0-9_-]+", "_", env)
    return [drawings[name](folder / f"{prefix}_{name}.png") for name in drawings if _worth_drawing(rows, name)]


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""

    def command(words: list[str]) -> None:
        options = parse(Options, words, "report")
        print(report(options.runs, options.out))

    return answer(argv, lambda: HELP, command)


def _with_units(rows: Sequence[Row]) -> list[Row]:
    """Gives returns their unit in words: a number without unit helps nobody."""
    from mbrl_lightning.report.paper import full_unit

    return [row._replace(unit=full_unit(row.unit, row.env)) if "return" in row.metric else row for row in rows]


def _worth_drawing(rows: Sequence[Row], name: str) -> bool:
    """Whether there are the rows that a figure needs: a curve wants two places at least."""
    if name == "exploitation":
        imagined = {row.algorithm for row in rows if row.metric == "imagined/return"}
        return any(row.metric == "real/return" and row.algorithm in imagined for row in rows)
    metric = {"training": "real/return", "model_mse": "model/mse", "model_nmse": "model/nmse"}.get(
        name, "return/policy"
    )
    mine = [row for row in rows if row.metric == metric and (metric == "real/return" or row.split == "test")]
    if name == "adaptation":
        return len({row.shot for row in mine}) > 1
    return len({row.iteration for row in mine}) > 1


make_callable(__name__)
