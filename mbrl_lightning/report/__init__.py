"""Report on runs: one page to open, tables as plain text and Markdown, curves as PNG, the paper's numbers beside ours.

`python -m mbrl_lightning.report RUN... [out=FOLDER]`, or `report(paths, out)` from a notebook.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mbrl_lightning.config.console import answer, make_callable
from mbrl_lightning.config.option import option
from mbrl_lightning.config.words import describe, parse
from mbrl_lightning.errors import StorageError
from mbrl_lightning.runs.results import PathLike, Row, read_results
from mbrl_lightning.runs.storage import replace_file, storage_errors

if TYPE_CHECKING:
    from mbrl_lightning.report.tables import Table


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
    out: str = option("report", "folder for report.html, report.md and the PNGs")


HELP = f"""usage: python -m mbrl_lightning.report RUN... [out=FOLDER]

Prints tables of the runs' results and writes them, with curves, into a folder.

{describe(Options)}

exit status: 0 done, 2 usage, 5 results missing or damaged, or the folder cannot be written"""
SPLITS = ("test", "extreme", "train")
CURVES = {"return/policy": "learning", "real/return": "training", "model/mse": "model_mse", "model/nmse": "model_nmse"}


def report(paths: PathLike | Iterable[PathLike], out: PathLike = "report") -> str:
    """Writes `report.html`, `report.md` and their PNGs into a folder, in place of those there; returns the tables as plain text.

    `paths` are run folders, folders above runs, CSVs. A StorageError where results are missing or damaged, or the folder
    cannot be written.
    """
    places = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    rows = _with_units(read_results(places))
    if not rows:
        raise StorageError("the runs have no rows yet", "wait for their first iteration to end")
    from mbrl_lightning.report.page import page

    folder, plain, markdown, sections = Path(out), list[str](), ["# Report"], []
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for env in sorted({row.env for row in rows}):
            mine = [row for row in rows if row.env == env]
            tables = make_tables(mine, env)
            plain += [table.text() for table in tables]
            pictures = draw(mine, env, folder)
            sections.append((env, tables, pictures))
            links = [f"![{picture.stem}]({picture.name})" for picture in pictures]
            markdown += [f"## {env}", *(table.markdown() for table in tables), *links]
    replace_file(folder / "report.md", ("\n\n".join(markdown) + "\n").encode())
    replace_file(folder / "report.html", page(sections, films_of(places)).encode())
    drawn = importlib.util.find_spec("matplotlib") is not None
    missing = "" if drawn else "; no curves: matplotlib is missing (pip install 'mbrl_lightning[viz]')"
    return "\n\n".join([*plain, f"report.html, report.md{' and curves' * drawn} are in {folder}{missing}"])


def films_of(paths: Iterable[PathLike]) -> list[Path]:
    """Films below these folders, or beside these CSVs: each as MP4, or as GIF where there is no other."""
    roots = [path if path.is_dir() else path.parent for path in map(Path, paths)]
    found = {
        film.with_suffix(""): film for kind in ("gif", "mp4") for root in roots for film in root.rglob(f"*.{kind}")
    }
    return sorted(found.values())


def make_tables(rows: Sequence[Row], env: str) -> list[Table]:
    """All tables of one env that its rows have entries for."""
    from mbrl_lightning.report.kinds import KINDS, TRAINING
    from mbrl_lightning.report.tables import build

    wanted = [(split, kind) for split in SPLITS for kind in KINDS] + [("", TRAINING)]
    made = (build(rows, env, split, kind) for split, kind in wanted)
    return [table for table in made if table is not None]


def draw(rows: Sequence[Row], env: str, folder: Path) -> list[Path]:
    """The PNGs of what the rows of one env allow, with names that begin with its own; without matplotlib none."""
    if importlib.util.find_spec("matplotlib") is None:
        return []
    from mbrl_lightning.report import figures
    from mbrl_lightning.report.paper import PAPER

    def paper(metric: str) -> dict[str, float]:
        return {f"paper, {each.method}": each.value for each in PAPER if (each.env, each.metric) == (env, metric)}

    def path(name: str) -> Path:
        return folder / f"{re.sub(r'[^A-Za-z0-9_-]+', '_', env)}_{name}.png"

    drawn = []
    for metric, name in CURVES.items():
        mine = [row for row in rows if row.metric == metric and row.split in ("", "test")]
        if len({row.iteration for row in mine}) > 1:  # a curve wants two places at least
            drawn.append(figures.learning_curve(mine, metric, path(name), paper(metric)))
    if len({row.shot for row in rows if (row.metric, row.split) == ("return/policy", "test")}) > 1:
        drawn.append(figures.adaptation_curve(rows, path("adaptation"), paper("return/policy")))
    both = [{row.algorithm for row in rows if row.metric == name} for name in ("imagined/return", "real/return")]
    if set.intersection(*both):
        drawn.append(figures.exploitation(rows, path("exploitation")))
    return drawn


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


make_callable(__name__)
