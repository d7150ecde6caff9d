"""Films show the deployed policy, without and with what it has learned; what cannot be filmed costs a warning."""

from __future__ import annotations

import logging

import pytest
from fakes import counter_family, fingerprint, shortened

from mbrl_lightning.envs import make_family
from mbrl_lightning.measuring.diagnostics import meta_test
from mbrl_lightning.measuring.film import film, sides, video


def test_where_nothing_can_be_rendered_there_is_no_film_and_no_error(trained, tmp_path, caplog):
    loop = trained("dr_ppo", family=counter_family())
    with caplog.at_level(logging.WARNING, "mbrl_lightning"):
        assert film(loop, tmp_path / "film.mp4") is None
    assert "nothing to see" in caplog.text


def test_a_film_shows_the_policy_before_and_after_its_context_from_one_start(trained, tmp_path, monkeypatch):
    pytest.importorskip("imageio_ffmpeg")
    loop, frames = trained(), []
    before = fingerprint(loop.state_dict())
    monkeypatch.setattr(video, "captioned", lambda frame, text: frames.append((text, frame)) or frame)
    path = film(loop, tmp_path / "film.mp4")
    assert path == tmp_path / "film.mp4"
    assert path.stat().st_size > 500
    assert fingerprint(loop.state_dict()) == before
    (first, unknown), (second, known) = frames[0], frames[len(frames) // 2]
    assert first == "nothing known of the task: return 0.0"
    assert second.startswith("after ")
    assert (unknown == known).all()


def test_a_method_that_adapts_at_every_step_stands_beside_one_that_does_not(trained):
    test = meta_test(trained("grbal", planner={"candidates": 4, "horizon": 3}))
    shown = sides(test, test.algorithm.family.test[:1])
    assert [bool(belief["frozen"]) for _, belief in shown.values()] == [True, False]
    assert list(shown) == ["unadapted", "adapted"]


def test_a_film_of_who_learns_nothing_of_the_task_shows_random_actions_beside_it(trained, tmp_path, monkeypatch):
    rates, captions = [], []
    monkeypatch.setattr(video, "write_video", lambda pictures, path, fps: rates.append(len(pictures) / fps))
    monkeypatch.setattr(video, "captioned", lambda frame, text: captions.append(text) or frame)
    film(trained("dr_ppo"), tmp_path / "film.mp4")
    half = len(captions) // 2
    assert captions[0] == "random actions: return 0.0"
    assert captions[half] == "the policy: return 0.0"
    assert captions[half - 1][-5:] != captions[-1][-5:]
    assert rates[0] >= 3


def test_a_film_of_a_hidden_task_shows_it_switch_twice(trained, tmp_path, monkeypatch):
    family = shortened(make_family("point_switch", switch_every_steps=100, jitter=0.0, horizon=300), test=1, context=4)
    frames = []
    monkeypatch.setattr(video, "write_video", lambda pictures, path, fps: frames.extend(pictures))
    monkeypatch.setattr(video, "captioned", lambda frame, text: frame)
    film(trained("dr_ppo", family=family), tmp_path / "film.mp4")
    # the middle of the picture is the point, blue or orange by the direction it is to go
    blue = [bool(frame[128, -128, 2] > frame[128, -128, 0]) for frame in frames]
    assert len(frames) == 250
    assert blue == [True] * 100 + [False] * 100 + [True] * 50
