"""A blank figure, its colours and frame, and its way to disk: what every figure shares."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mbrl_lightning.report.statistics import Array
from mbrl_lightning.runs.results import PathLike

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LETTERS = 15  # of a note, to an inch of the figure's width
# Okabe and Ito's palette: told apart by readers with colour-blindness.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def colour(index: int) -> str:
    """The colour of the line with this number; they repeat after seven."""
    return COLOURS[index % len(COLOURS)]


def blank(rows: int, columns: int, width: float, height: float, share_y: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure of `rows` times `columns` panels of `width` times `height` inches, and its panels row by row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    FigureCanvasAgg(figure)  # draws without a display, whatever backend the user has chosen
    panels: list[Axes] = list(figure.subplots(rows, columns, squeeze=False, sharey=share_y).flat)
    for axes in panels:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def frame(axes: Axes, inside: Array, outside: Array, slack: float) -> None:
    """Sets the vertical range so that a diverged line cannot flatten everything else.

    Values `inside` (any shape) must be seen; `outside` may widen the range by at most `slack` spans (or tenths) of them.
    """
    inside, outside = inside[np.isfinite(inside)], outside[np.isfinite(outside)]
    if not inside.size:
        return
    outside = np.concatenate([inside, outside])
    low, high = inside.min(), inside.max()
    span = max(high - low, 1e-3 * max(abs(high), abs(low)), 1e-6)
    reach = slack * max(span, 0.1 * max(abs(high), abs(low)))
    bottom, top = max(outside.min(), low - reach), min(outside.max(), high + reach)
    margin = 0.05 * max(top - bottom, span)
    axes.set_ylim(bottom - margin, top + margin)


def array(values: Any) -> Array:
    """Tensors of any device and precision, arrays and lists alike."""
    values = values.detach().cpu().double().numpy() if hasattr(values, "detach") else values
    return np.asarray(values, dtype=np.float64)


def save(figure: Figure, path: PathLike, note: str = "") -> Path:
    """Writes the PNG, making its folder, with a small note below the axes; returns its path."""
    if note:
        lines = textwrap.fill(note, int(LETTERS * figure.get_figwidth()))
        figure.supxlabel(lines, fontsize=8, color="0.35")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    return path
