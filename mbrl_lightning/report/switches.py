"""What a policy earns around the switches of a hidden task, as a figure."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from mbrl_lightning.report import canvas
from mbrl_lightning.report.statistics import Array

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

    from mbrl_lightning.runs.results import PathLike

MOST_VALUES = 4
"""Most values of the hidden parameter that have a line and a colour each; more are a range of colours."""


def switches(after: Any, tasks: Any, reward: Any, hidden: Any, name: str, path: PathLike) -> Path:
    """Above, reward per step against steps since the last switch; below, the rewards of one episode.

    Above: mean and deviation over switches, one line for each task switched to, as far as half of its switches go on without
    another; `after`: the rewards after each of W switches `[W, H]`, NaN from the next switch on, and `tasks`: the first
    parameter, called `name`, of the tasks switched to `[W]`. Below: the rewards of one episode `[T]`, on the task in force,
    `hidden`: that parameter at each of its steps `[T]`. Tensors or arrays.
    """
    after, tasks, reward, hidden = map(canvas.array, (after, tasks, reward, hidden))
    values = np.unique(np.concatenate([tasks, hidden]))
    values = values[::-1] if values[0] < 0 else values  # of two directions forwards is blue, as in the films
    figure, (upper, lower) = canvas.blank(2, 1, 8.0, 3.4)
    few = len(values) <= MOST_VALUES
    for index, value in enumerate(values if few else [None]):
        mine = after if value is None else after[tasks == value]
        label = f"after a switch, {len(mine)} of them" if value is None else f"{name}={value:g}, {len(mine)} switches"
        if len(mine):
            kept, shade = mine[:, np.isfinite(mine).mean(0) >= 0.5], canvas.colour(index)
            mean, deviation = np.nanmean(kept, 0), np.nanstd(kept, 0)
            upper.plot(mean, color=shade, linewidth=1.8, label=label)
            ends = (mean - deviation, mean + deviation)
            upper.fill_between(range(len(mean)), *ends, color=shade, alpha=0.18, linewidth=0)
    upper.set_xlabel("steps since the last switch")
    lower.set_xlabel("step of one episode")
    for axes in (upper, lower):
        axes.set_ylabel("reward per step")
    if upper.lines:
        upper.legend(fontsize=9)
    else:
        upper.text(0.5, 0.5, "no episode lasted until a switch", ha="center", transform=upper.transAxes)
    _bands(lower, hidden, values, name if not few else "")
    lower.plot(reward, color="black", linewidth=0.9)
    lower.set_xlim(0, max(len(reward) - 1, 1))
    return canvas.save(figure, path, "line and band: mean and deviation over switches; background: the hidden task")


def _bands(axes: Axes, hidden: Array, values: Array, bar: str) -> None:
    """Colour the background of T steps by the parameter `[T]`: a colour each, or a range of colours that `bar` explains."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    scale = ScalarMappable(Normalize(values.min(), values.max()), "viridis")
    edges = [0, *(np.flatnonzero(np.diff(hidden)) + 1).tolist(), len(hidden)]
    for begin, end in pairwise(edges):
        value = hidden[begin]
        shade = scale.to_rgba(value) if bar else canvas.colour(int(np.flatnonzero(values == value)[0]))
        axes.axvspan(begin - 0.5, end - 0.5, color=shade, alpha=0.25, linewidth=0)
    if bar:
        axes.figure.colorbar(scale, ax=axes, label=bar, alpha=0.25)
