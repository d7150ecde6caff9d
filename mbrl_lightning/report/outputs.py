"""A figure of what each output of a model is off by, before it adapts and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mbrl_lightning.report import canvas
from mbrl_lightning.report.curves import Array
from mbrl_lightning.runs.results import PathLike

LEAST = 1e-8  # drawn in place of no error at all, which has no logarithm


def before_and_after(panels: Mapping[str, Array], names: Sequence[str], path: PathLike, note: str = "") -> Path:
    """A line for each output and panel from its error before (hollow) to that after (filled), on a logarithmic axis.

    Args:
        panels: title to errors `[2, S]`, first before, then after; outputs that are NaN or infinite are left out.
        names: of the S outputs.
        path: the PNG; its folder is made.
        note: a line below.
    """
    figure, all_axes = canvas.blank(1, len(panels), 4.2, 1.2 + 0.2 * len(names), share_y=True)
    places = np.arange(len(names))
    for axes, (title, errors) in zip(all_axes, panels.items(), strict=True):
        before, after = np.maximum(errors, LEAST)
        better = after <= before
        for shade, chosen, word in (
            (canvas.colour(0), better, "less after"),
            (canvas.colour(1), ~better, "more after"),
        ):
            chosen = chosen & np.isfinite(before) & np.isfinite(after)
            axes.hlines(places[chosen], before[chosen], after[chosen], color=shade, label=word)
            axes.plot(before[chosen], places[chosen], "o", color=shade, markerfacecolor="white", markersize=4)
            axes.plot(after[chosen], places[chosen], "o", color=shade, markersize=4)
        axes.axvline(1.0, color="0.6", linewidth=0.8, linestyle=":")
        axes.set_xscale("log")
        axes.set_title(title, fontsize=9)
        axes.set_yticks(places, names, fontsize=7)
    all_axes[0].invert_yaxis()
    all_axes[0].legend(fontsize=7)
    return canvas.save(figure, path, note)
