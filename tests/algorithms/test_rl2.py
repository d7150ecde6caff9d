"""RL2: the state outlasts the episodes of a trial, in acting as in training; what ends where; what is refused."""

from __future__ import annotations

import pytest
import torch
from fakes import counter_family

from mbrl_lightning.data.collect import collect
from mbrl_lightning.errors import ConfigError

SMALL = {"search": {"tasks": 6, "updates": 1}, "loop": {"episodes_per_task": 3}}


def ends(following):
    """After five steps at the latest, or after two where the count began with 200."""
    count = following[..., 0]
    return (count % 100 >= 5) | (count >= 202) & (count < 300)


@pytest.fixture
def loop(make_loop):
    """Episodes of different lengths, up to 8 steps, in 5 tasks."""
    return make_loop("rl2", family=counter_family(8, termination=ends, outcome=lambda o: o[..., 1:]), **SMALL)


def trials(loop):
    algorithm = loop.algorithm
    tasks = loop.family.sample(6, algorithm.generator)
    (data,) = loop.world.interact(tasks, algorithm, algorithm.begin(6), 24, algorithm.generator)
    return data


def test_training_sees_the_states_that_acted_across_the_ends_of_episodes(loop):
    data, algorithm = trials(loop), loop.algorithm
    assert data["next", "done"].sum(1).max() > 4
    pairs = algorithm._pairs(data, data["age"])
    assert torch.equal(pairs[..., -1:].bool(), data["next", "done"])
    acted = data["taken", "inputs"]
    batch = data.update(data.pop("taken")).clone().set("pairs", pairs)
    algorithm._remember(batch)
    torch.testing.assert_close(batch["inputs"], acted, rtol=0, atol=1e-5)
    first = data["episode"] < len(data)
    assert (acted[..., 2:].abs().sum(-1)[:, 0] == 0).all()  # a trial begins with a state of zeros, an episode does not
    assert (acted[..., 2:].abs().sum(-1)[data["initial"] & ~first] > 0).all()


def test_a_context_is_the_same_as_its_steps(loop):
    algorithm, draws = loop.algorithm, torch.Generator().manual_seed(0)
    agent, start = algorithm.explorer(5)
    simulator = loop.family.simulate(loop.family.test[:1].repeat(5, 1))
    context = collect(simulator, loop.family.spec, agent, start, 20, draws, draws)
    told = algorithm.adapt(algorithm.begin(5), context)
    batch = context.clone().update(context["taken"]).set("pairs", algorithm._pairs(context, context["age"]))
    whole = algorithm.memory(batch["pairs"])[1][0]
    torch.testing.assert_close(told["trial", "latent"], whole, rtol=0, atol=1e-6)
    assert (told["age"] == 0).all()
    assert torch.equal(algorithm.adapt(told, context[:, :0])["trial", "latent"], told["trial", "latent"])
    assert algorithm.controls(told)["unadapted"]["trial", "latent"].abs().max() == 0


def test_what_is_earned_in_a_later_episode_counts_for_the_first(loop):
    """Without discount, and with a value of 0, the target of every step is all that is yet to come in the trial."""
    data, algorithm = trials(loop), loop.algorithm
    algorithm.ppo.cfg.gamma = algorithm.ppo.cfg.lam = 1.0
    for parameter in algorithm.ppo.value.parameters():
        parameter.detach().zero_()
    data["next", "reward"] = torch.zeros(6, 24, 1)
    data["next", "reward"][:, -1] = 1.0
    rows = algorithm._rows(data.update(data.pop("taken")))
    assert rows.shape == (6, 24)
    assert (rows["value_target"] > 0).all()
    torch.testing.assert_close(rows["value_target"], rows["value_target"][:1, -1:].expand(6, 24, 1))


def test_an_update_counts_all_steps_and_moves_the_recurrent_unit(loop):
    before = {name: value.clone() for name, value in loop.algorithm.memory.named_parameters()}
    found = loop.algorithm.improve(loop.world, loop.step)
    assert loop.real.num_steps == 6 * 3 * 8
    assert {"real/return", "real/second"} <= set(found)
    assert all(not torch.equal(value, before[name]) for name, value in loop.algorithm.memory.named_parameters())


def test_a_trial_of_one_episode_and_a_family_of_one_task_are_refused(make_loop):
    for changes, message in (
        ({"loop": {"episodes_per_task": 1}}, "trial of one episode"),
        ({"env": {"name": "point2d", "options": {}}}, "one task in the whole family"),
    ):
        with pytest.raises(ConfigError, match=message) as refused:
            make_loop("rl2", **changes)
        assert refused.value.exit_code == 2
