"""What a study is: arms, each a command line of `mbrl_lightning.fit`, and what is made of their rows."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mbrl_lightning.runs.results import Row, read_results

if TYPE_CHECKING:
    from mbrl_lightning.config.schema import Config
    from mbrl_lightning.report.tables import Table


class Study(NamedTuple):
    """A figure or table of a paper, what is asked, and how it is answered.

    Attributes:
        figure: where it stands.
        question: what is asked.
        arms: `key=value` words of each arm by its name.
        base: those of all arms.
        close: exit status and text of the tables of finished runs, given the study's name, itself, the folder with the arms'
            runs and all rows; writes tables and figure into the folder.
        seeds: unless others are asked for.
        train: what is done for all arms at once, given their configurations and the study's folder, where the runs are not
            those of `mbrl_lightning.fit`; what is there already it leaves.
    """

    figure: str
    question: str
    arms: Mapping[str, str]
    base: str
    close: Callable[[str, Study, Path, Sequence[Row]], tuple[int, str]]
    seeds: str = "0..2"
    train: Callable[[Mapping[str, Config], Path], None] | None = None

    def rows(self, folder: Path) -> list[Row]:
        """Rows of all arms with runs below `folder`, each under the name of its arm."""
        there = {arm: folder / folder_of(arm) for arm in self.arms if (folder / folder_of(arm)).is_dir()}
        return [row._replace(algorithm=arm) for arm, place in there.items() for row in read_results(place)]


def folder_of(arm: str) -> str:
    """Name of an arm's folder."""
    return re.sub(r"[^a-z0-9.]+", "_", arm.lower()).strip("_")


def draws() -> bool:
    """Whether figures can be drawn."""
    return importlib.util.find_spec("matplotlib") is not None


def figure_line(picture: Path) -> str:
    """Where the figure is, or why there is none."""
    return f"figure: {picture}" if draws() else "no figure: matplotlib is missing (pip install 'mbrl_lightning[viz]')"


def written(folder: Path, head: str, tables: Sequence[Table]) -> list[str]:
    """The tables as plain text below a heading, and as `study.md` in the folder."""
    (folder / "study.md").write_text("\n\n".join([head, *(table.markdown() for table in tables)]) + "\n")
    return [head, *(table.text() for table in tables)]
