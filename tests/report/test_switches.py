"""The figure of switches shows means over switches, one line a task, and the hidden task behind one episode."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib")
from mbrl_lightning.report import canvas
from mbrl_lightning.report.switches import switches

NAN = np.nan
REWARD, HIDDEN = [1.0, 2.0, -3.0, 4.0], [1.0, 1.0, -1.0, -1.0]


def bands(axes: Any) -> list[tuple[float, float, Any]]:
    """Left and right end and colour of each piece of background."""
    patches = [(patch.get_extents().transformed(axes.transData.inverted()), patch) for patch in axes.patches]
    return [(round(box.x0, 6), round(box.x1, 6), patch.get_facecolor()[:3]) for box, patch in patches]


def test_one_line_for_each_task_switched_to(tmp_path, drawn):
    after = [[-2.0, 0.0, 1.0], [-4.0, 2.0, NAN], [5.0, NAN, NAN], [7.0, NAN, NAN], [9.0, 1.0, NAN]]
    path = switches(after, [1, 1, -1, -1, -1], REWARD, HIDDEN, "direction", tmp_path / "a/switches.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    upper, lower = drawn[0].axes
    forwards, backwards = upper.lines
    assert forwards.get_label() == "direction=1, 2 switches"
    assert forwards.get_ydata().tolist() == [-3.0, 1.0, 1.0]
    assert backwards.get_ydata().tolist() == [7.0]  # beyond it less than half of the switches go on
    edges = upper.collections[0].get_paths()[0].vertices[:, 1]
    assert (edges.min(), edges.max()) == (-4.0, 2.0)
    assert lower.lines[0].get_ydata().tolist() == REWARD


def test_the_background_is_the_task_in_force(tmp_path, drawn):
    switches([[0.0], [1.0]], [1, -1], REWARD, HIDDEN, "direction", tmp_path / "switches.png")
    upper, lower = drawn[0].axes
    (first, second), lines = bands(lower), upper.lines
    assert (first[:2], second[:2]) == ((-0.5, 1.5), (1.5, 3.5))
    colours = [canvas.COLOURS[index] for index in (0, 1)]
    assert [line.get_color() for line in lines] == colours
    import matplotlib.colors

    assert [first[2], second[2]] == [matplotlib.colors.to_rgb(colour) for colour in colours]


def test_a_continuous_task_is_one_line_and_a_range_of_colours(tmp_path, drawn):
    tasks = [0.5, 0.7, 1.1, 2.0, 3.0]
    switches([[float(i), 1.0] for i in range(5)], tasks, REWARD, [0.5, 0.7, 0.7, 3.0], "mass", tmp_path / "s.png")
    upper, lower, bar = drawn[0].axes
    assert [line.get_ydata().tolist() for line in upper.lines] == [[2.0, 1.0]]
    assert len({colour for _, _, colour in bands(lower)}) == 3
    assert bar.get_ylabel() == "mass"


def test_without_a_switch_the_episode_alone_is_drawn(tmp_path, drawn):
    switches(np.zeros((0, 5)), np.zeros(0), REWARD, [1.0] * 4, "direction", tmp_path / "switches.png")
    upper, lower = drawn[0].axes
    assert not upper.lines
    assert "no episode lasted" in upper.texts[0].get_text()
    assert len(lower.lines) == 1
