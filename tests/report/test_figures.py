"""Figures show the numbers they are given, with axes that say what they are, and videos never raise."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mbrl_lightning.report.curves import choose, curve
from mbrl_lightning.report.video import captioned, side_by_side, write_video
from mbrl_lightning.runs.results import Row

pytest.importorskip("matplotlib")
from mbrl_lightning.report import figures

UNIT = "mean reward per step, 25 steps"


def rows_of(metric: str = "return/policy", seeds: int = 2, **fields: Any) -> list[Row]:
    """Three measurements on two tasks; the value is iteration + 10 seed + task."""
    rows = []
    for seed in range(seeds):
        for iteration in (1, 2, 3):
            for task in (0, 1):
                place, value = (iteration, 100 * iteration + seed, "test", task, 50), iteration + 10.0 * seed + task
                rows.append(Row("gssm_aps", "cartpole", seed, *place, metric, value, UNIT)._replace(**fields))
    return rows


def is_png(path: Path) -> bool:
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and path.stat().st_size > 5000


def labelled(axes: Any, label: str) -> Any:
    return next(line for line in axes.lines if line.get_label() == label)


# -- rows to lines


def test_curve_measured_at_nearly_equal_steps_is_averaged_measurement_by_measurement():
    line = curve(rows_of(), "real_steps")
    assert line.grid.tolist() == [100.5, 200.5, 300.5]
    assert line.scores[0].tolist() == [[1.0, 2.0], [11.0, 12.0]]
    assert line.mean()[1].tolist() == [6.5, 7.5, 8.5]
    assert [values.tolist() for _, values in line.seeds] == [[1.5, 2.5, 3.5], [11.5, 12.5, 13.5]]


def test_curve_of_unequal_steps_interpolates_on_the_common_range():
    slow = [row._replace(real_steps=row.iteration * 100) for row in rows_of(seeds=1)]
    fast = [row._replace(real_steps=row.iteration * 150, seed=1) for row in rows_of(seeds=1)]
    line = curve(slow + fast, "real_steps")
    assert line.grid.tolist() == [150.0, 200.0, 300.0]
    # At 200 steps seed 0 is at its second check (2.5), seed 1 a third of the way from its first to the next.
    assert line.scores[1].mean(1).tolist() == pytest.approx([2.5, 1.5 + 1 / 3])


def test_a_band_lies_around_the_middle_and_inside_the_seeds():
    middle, low, high = curve(rows_of(), "real_steps").band()
    assert (low < middle).all()
    assert (middle < high).all()
    assert low[0] >= 1.0
    assert high[0] <= 12.0


def test_the_shot_measured_most_often_is_chosen():
    often, once = rows_of(), [row._replace(shot=100) for row in rows_of() if row.iteration == 3]
    assert {row.shot for row in choose(often + once, "return/policy")} == {50}
    assert {row.shot for row in choose(often + once, "return/policy", shot=100)} == {100}


def test_envs_are_not_mixed():
    with pytest.raises(ValueError, match="several envs"):
        choose(rows_of() + rows_of(env="acrobot"), "return/policy")
    with pytest.raises(ValueError, match="no rows"):
        choose(rows_of(), "model/mse")


# -- figures


def test_learning_curve_shows_mean_seeds_reference_and_units(tmp_path, drawn):
    path = figures.learning_curve(rows_of(), "return/policy", tmp_path / "a/curve.png", {"paper": -0.6})
    assert is_png(path)
    (axes,) = drawn[0].axes
    assert labelled(axes, "gssm_aps").get_ydata().tolist() == [6.5, 7.5, 8.5]
    assert labelled(axes, "paper").get_ydata() == [-0.6, -0.6]
    assert axes.get_xlabel() == "real environment steps"
    assert UNIT in axes.get_ylabel()
    assert "context of 50" in axes.get_title()
    assert len(axes.collections) == 1  # the band


def test_methods_measured_once_stand_side_by_side(tmp_path, drawn):
    once = [row._replace(real_steps=1500) for row in rows_of() if row.iteration == 3]
    other = [row._replace(algorithm="m3po") for row in once]
    figures.learning_curve(once + other, "return/policy", tmp_path / "curve.png")
    (axes,) = drawn[0].axes
    names = [tick.get_text() for tick in axes.get_xticklabels()]
    assert sorted(names) == ["gssm_aps", "m3po"]
    for place, name in enumerate(names):
        assert labelled(axes, name).get_xdata().tolist() == [place]
    assert axes.get_xlabel() == "after 1,500 real environment steps"


def test_one_seed_has_no_band_and_what_is_not_finite_is_drawn(tmp_path, drawn):
    figures.learning_curve(rows_of(seeds=1), "return/policy", tmp_path / "curve.png")
    assert not drawn[0].axes[0].collections
    rows = [row._replace(value=[np.nan, np.inf, 1.0][row.iteration - 1]) for row in rows_of()]
    assert is_png(figures.learning_curve(rows, "return/policy", tmp_path / "curve.png"))


def test_adaptation_curve_is_return_against_shot_at_the_last_iteration(tmp_path, drawn):
    rows = rows_of() + [row._replace(shot=0, value=row.value - 1) for row in rows_of()]
    wrong = rows_of("return/wrong_belief", value=4.0)
    assert is_png(figures.adaptation_curve(rows + wrong + rows_of("return/random", value=-3.0), tmp_path / "a.png"))
    (axes,) = drawn[0].axes
    line = labelled(axes, "gssm_aps")
    assert (line.get_xdata().tolist(), line.get_ydata().tolist()) == ([0.0, 50.0], [7.5, 8.5])
    assert list(labelled(axes, "gssm_aps, another task's belief").get_ydata()) == [4.0]
    assert list(labelled(axes, "random policy").get_ydata()) == [-3.0, -3.0]
    figures.adaptation_curve([row._replace(split="extreme") for row in rows], tmp_path / "b.png")
    assert "extreme tasks" in drawn[1].axes[0].get_title()


def test_exploitation_puts_imagined_beside_real(tmp_path, drawn):
    real, imagined = rows_of("real/return", task=-1, split=""), rows_of("imagined/return", task=-1, split="")
    imagined = [row._replace(value=1e30 if row.iteration == 3 else 2 * row.value) for row in imagined]
    lonely = rows_of("real/return", task=-1, split="", algorithm="dr_ppo")  # has no model: no panel
    assert is_png(figures.exploitation(real + imagined + lonely, tmp_path / "exploit.png"))
    (axes,) = drawn[0].axes
    # The two tasks of rows_of were made one: their mean is iteration + 10 seed + 1/2, then the mean of seeds.
    assert labelled(axes, "return of training episodes").get_ydata().tolist() == [6.5, 7.5, 8.5]
    assert labelled(axes, "imagined return").get_ydata().tolist()[:2] == [13.0, 15.0]
    assert axes.get_ylim()[1] < 1000  # a diverged model does not flatten the real return
    level = [row._replace(value=-15.0) for row in real]  # hardly varies: what is imagined near it is seen all the same
    figures.exploitation(level + [row._replace(value=-12.0) for row in imagined], tmp_path / "b.png")
    assert drawn[1].axes[0].get_ylim()[1] > -12
    with pytest.raises(ValueError, match="no rows"):
        figures.exploitation(lonely, tmp_path / "none.png")


def test_rollouts_of_many_entries_show_the_worst(tmp_path, drawn):
    real = np.random.default_rng(0).normal(size=(4, 10, 20))
    imagined = real + 1e-3
    imagined[:, :, 17] += 9.0
    imagined[0, 5:, 2] = np.nan
    imagined[0, 5:, 3] = np.inf
    names = [f"entry {index}" for index in range(20)]
    assert is_png(figures.imagined_against_real(imagined, real, names, tmp_path / "rollouts.png"))
    titles = [axes.get_title() for axes in drawn[0].axes]
    assert len(titles) == 12
    assert {"entry 3", "entry 17"} <= set(titles)


def test_rollouts_are_solid_and_dashed_and_take_tensors(tmp_path, drawn):
    torch = pytest.importorskip("torch")
    real = torch.arange(12.0).reshape(1, 4, 3).requires_grad_()
    figures.imagined_against_real(real + 1, real, ["x", "y", "z"], tmp_path / "rollouts.png")
    solid, dashed = drawn[0].axes[1].lines
    assert (solid.get_linestyle(), solid.get_ydata().tolist()) == ("-", [1.0, 4.0, 7.0, 10.0])
    assert (dashed.get_linestyle(), dashed.get_ydata().tolist()) == ("--", [2.0, 5.0, 8.0, 11.0])
    with pytest.raises(ValueError, match="2 names"):
        figures.imagined_against_real(real, real, ["x", "y"], tmp_path / "rollouts.png")


def latents(count: int) -> tuple[np.ndarray, np.ndarray]:
    colour = np.random.default_rng(0).normal(size=(count, 2))
    return colour @ np.array([[5.0, 0, 0], [0, 0.5, 0]]), colour


def test_outputs_are_drawn_from_before_to_after(tmp_path, drawn):
    errors = np.array([[1.0, 0.2, np.nan], [0.5, 0.4, 1.0]])  # the last was not measured
    panels = {"in training": errors, "in these": 10 * errors}
    assert is_png(figures.before_and_after(panels, ["x", "y", "still"], tmp_path / "outputs.png"))
    for axes, factor in zip(drawn[-1].axes, (1, 10), strict=True):
        less, more = ([segment.tolist() for segment in lines.get_segments()] for lines in axes.collections)
        assert less == [[[1.0 * factor, 0.0], [0.5 * factor, 0.0]]]
        assert more == [[[0.2 * factor, 1.0], [0.4 * factor, 1.0]]]
    assert [label.get_text() for label in drawn[-1].axes[0].get_yticklabels()] == ["x", "y", "still"]


def test_latents_are_coloured_by_each_parameter(tmp_path, drawn):
    pytest.importorskip("sklearn")
    points, colour = latents(12)
    points[3] = np.nan
    assert is_png(figures.latent_space(points, colour, ["mass", "length"], tmp_path / "latent.png"))
    first, second = drawn[0].axes[:2]
    assert first.get_xlabel() == "t-SNE 1"
    kept = np.delete(colour, 3, axis=0)
    assert first.collections[0].get_array().tolist() == kept[:, 0].tolist()
    assert second.collections[0].get_array().tolist() == kept[:, 1].tolist()
    assert "1 not finite" in drawn[0].get_suptitle()


def test_latents_fall_back_to_principal_components(monkeypatch):
    points, colour = latents(4)
    assert figures.embed(points)[0] == "PCA"  # too few for t-SNE
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    points, colour = latents(30)
    method, flat = figures.embed(points)
    assert method == "PCA"
    assert abs(np.corrcoef(flat[:, 0], colour[:, 0])[0, 1]) > 0.99  # the axis that is ten times as long
    assert flat.std(0) == pytest.approx(np.linalg.svd(points - points.mean(0))[1][:2] / np.sqrt(30))


@pytest.mark.parametrize("shape", [(1, 3), (6, 1), (8, 3)])
def test_degenerate_latents_are_drawn_and_none_that_is_finite_is_an_error(tmp_path, shape):
    colour = np.ones((shape[0], 1))
    assert is_png(figures.latent_space(np.zeros(shape), colour, ["mass"], tmp_path / "latent.png"))
    with pytest.raises(ValueError, match="finite"):
        figures.latent_space(np.full(shape, np.nan), colour, ["mass"], tmp_path / "latent.png")


# -- videos


def clip() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, size=(5, 33, 47, 3), dtype=np.uint8)  # odd sides


def test_video_is_mp4(tmp_path):
    pytest.importorskip("imageio_ffmpeg")
    path = write_video(clip(), tmp_path / "new/clip.mp4", fps=10)
    assert path == tmp_path / "new/clip.mp4"
    assert path.read_bytes()[4:8] == b"ftyp"
    assert sorted(file.name for file in path.parent.iterdir()) == ["clip.gif", "clip.mp4"]


def test_video_falls_back_to_gif_with_a_warning(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.warns(UserWarning, match="no mp4") as caught:
        path = write_video(clip(), tmp_path / "clip.mp4")
    assert (len(caught), path.name) == (1, "clip.gif")
    assert path.read_bytes()[:4] == b"GIF8"


def test_clips_stand_side_by_side_below_their_captions():
    frame = np.full((40, 64, 3), 7, dtype=np.uint8)
    told = captioned(frame, "adapted: return 1.0")
    assert told.shape == (64, 64, 3)
    assert (told[24:] == 7).all()
    assert told[:24].min() < 128 < told[:24].max()  # letters on white
    both = side_by_side([[frame, frame], [frame + 1, frame + 1]])
    assert [picture.shape for picture in both] == [(40, 128, 3)] * 2
    assert (both[0][:, 64:] == 8).all()


def broken_renderer() -> Iterator[np.ndarray]:
    yield clip()[0]
    raise RuntimeError("no GL context")


@pytest.mark.parametrize("frames", [broken_renderer(), [], clip() / 255.0, clip()[:, :1], None])
def test_a_video_that_cannot_be_made_warns_once_and_goes_on(tmp_path, frames):
    with pytest.warns(UserWarning, match="no video") as caught:
        assert write_video(frames, tmp_path / "clip.mp4") is None
    assert len(caught) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_failed_video_leaves_the_old_one(tmp_path, monkeypatch):
    (tmp_path / "clip.gif").write_bytes(b"old")
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.warns(UserWarning, match="no video"):
        assert write_video(clip(), tmp_path / "clip.mp4") is None
    assert (tmp_path / "clip.gif").read_bytes() == b"old"
