"""FAMLE: a list of situations with data of each, the length of its meta steps, and lists that make no sense."""

from __future__ import annotations

import pytest
import torch
from fakes import random_steps, shortened, words

from mbrl_lightning.config import compose
from mbrl_lightning.data.buffer import TaskBuffer
from mbrl_lightning.envs import make_family
from mbrl_lightning.errors import ConfigError

SMALL = words(
    "loop.iterations=2 loop.exploration_steps=30 loop.episode_steps=20 loop.model_steps=4 loop.first_model_steps=4 "
    "dynamics.hidden=8 dynamics.targets=4 famle.past=5 famle.future=5 famle.inner_steps=2 planner.candidates=6 "
    "planner.horizon=2"
)


@pytest.fixture
def small(make_loop):
    def make(conf: str = "famle_reacher", horizon: int = 20, test: int | None = 2, **changes):
        cfg = compose({"conf": conf, "algorithm": "famle"} | SMALL | changes)
        family = make_family(cfg.env.name, **cfg.env.options)
        return make_loop(cfg=cfg, family=shortened(family, horizon, test=test))

    return make


def test_every_situation_has_data_under_its_number(small):
    loop = small()
    loop.fit()
    assert loop.real.tasks.equal(loop.family.grid)
    assert loop.real.transitions()["task"].bincount().tolist() == [30 + 20] * 11


@pytest.mark.parametrize(
    ("conf", "count"), [("ant_unseen_leg", 3), ("half_cheetah_disabled", 5), ("cartpole", 4), ("point_switch", 2)]
)
def test_situations_are_the_familys_or_draws_without_repetition(small, conf, count):
    algorithm = small(conf, famle={"situations": 16 if conf in ("ant_unseen_leg", "point_switch") else 4}).algorithm
    assert len(algorithm.situations.unique(dim=0)) == len(algorithm.situations) == count
    assert algorithm.dynamics.table.shape == (1, count, 8)


def test_recorded_data_of_fewer_situations_are_learned_from(small):
    loop, draws = small(), torch.Generator().manual_seed(0)
    few, tasks = TaskBuffer(len(loop.family.parameters)), loop.family.grid[:3]
    few.extend(random_steps(loop.family, tasks, 20, draws), few.add_tasks(tasks), exploratory=True)
    assert "train/model_loss" in loop.algorithm.fit(few, loop.step, 4, draws)


def test_meta_steps_fall_to_nothing(small, monkeypatch):
    loop, seen = small(), []
    loop.algorithm.collect(loop.world)
    optimizer = loop.algorithm.optimizers["dynamics"]
    step = optimizer.step
    monkeypatch.setattr(optimizer, "step", lambda: (seen.append([g["lr"] for g in optimizer.param_groups]), step()))
    loop.algorithm.fit(loop.real, loop.step, 4, torch.Generator().manual_seed(0))
    assert [weights for weights, _ in seen] == pytest.approx([1.0, 0.75, 0.5, 0.25])
    assert [embeddings / 11 for _, embeddings in seen] == pytest.approx([1.0, 0.75, 0.5, 0.25])


def test_what_is_acted_in_never_stays(small):
    loop = small()
    loop.fit()
    algorithm = loop.algorithm
    before = {name: value.clone() for name, value in algorithm.state_dict().items()}
    belief = algorithm.adapt(algorithm.begin(2), loop.real.transitions()[:10].view(2, 5))
    algorithm.act(belief, torch.zeros(2, 12))
    assert all(value.equal(before[name]) for name, value in algorithm.state_dict().items())


def test_an_empty_list_of_situations_is_refused(small):
    with pytest.raises(ConfigError, match="list of training tasks is empty"):
        small(env={"options": {"situations": []}})


@pytest.mark.parametrize("situations", [[11], [-1], [0, 40]])
def test_numbers_that_are_not_in_the_list_are_refused(situations):
    with pytest.raises(ConfigError, match="0 to 10"):
        make_family("famle_reacher", situations=situations)


def test_a_test_situation_that_is_trained_on_is_refused(small):
    with pytest.raises(ConfigError, match="is also a training task"):
        small(env={"options": {"test": [[1, 1, 0, 1, 1]]}})
    small(env={"options": {"test": [[1, 1, 0, 1, 1]], "situations": [0, 1, 2]}})


@pytest.mark.parametrize("algorithm", ["famle", "cadm", "grbal"])
def test_a_context_longer_than_the_episode_is_refused(make_loop, algorithm):
    section = "l2a" if algorithm == "grbal" else algorithm
    cfg = compose({"conf": "famle_reacher", "algorithm": algorithm, section: {"past": 51}})
    with pytest.raises(ConfigError, match="51 transitions is longer than the episode of 50"):
        make_loop(cfg=cfg)
