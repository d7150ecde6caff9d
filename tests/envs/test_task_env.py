"""One task as a plain gymnasium environment."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import Says, counter_family
from gymnasium.utils.env_checker import check_env

from mbrl_lightning.data.collect import collect
from mbrl_lightning.envs import load_family, make_family
from mbrl_lightning.errors import ConfigError

PENDULUM = Path(__file__).parents[2] / "examples" / "pendulum.py"
NAMES = (
    "cartpole",
    "acrobot",
    "point_switch",
    "half_cheetah_wide",
    "ant_crippled_leg",
    "half_cheetah_disabled",
    "arm_reach",
)


def family_named(name: str):
    return load_family(str(PENDULUM)) if name == "pendulum" else make_family(name)


@pytest.mark.filterwarnings("ignore:.*(minimum|maximum|infinity|alternative render modes).*:UserWarning")
@pytest.mark.parametrize("name", [*NAMES, "pendulum"])
def test_gymnasium_finds_nothing_wrong(name):
    family = family_named(name)
    env = family.make(family.test[0])
    check_env(env)
    env.close()
    env.close()


@pytest.mark.parametrize("name", NAMES[:4])
def test_it_is_the_simulator_with_the_familys_reward_and_ends(name):
    family = family_named(name)
    env, draws = family.make(family.test[1]), torch.Generator().manual_seed(3)
    actions = family.spec.random_action((1, family.spec.horizon), draws) * (1.0 if family.spec.discrete else 1.5)
    env.reset(seed=8)
    state = env.np_random.bit_generator.state
    first, info = env.reset()
    env.np_random.bit_generator.state = state
    start = torch.Generator().manual_seed(int(env.np_random.integers(2**62)))
    column = iter(actions.unbind(1))
    agent = Says(lambda observation: next(column))
    simulator = family.simulate(family.test[1:2])
    episode = collect(simulator, family.spec, agent, agent.begin(1), family.spec.horizon, start, training=False)[0]
    np.testing.assert_array_equal(first, episode["observation"][0].numpy())
    assert info["task"] == dict(zip(family.parameters, family.test[1].tolist(), strict=True))
    for step in range(len(episode)):
        action = actions[0, step].argmax().item() if family.spec.discrete else actions[0, step].numpy()
        observation, reward, terminated, truncated, info = env.step(action)
        after = episode["next"][step]
        np.testing.assert_array_equal(observation, after["observation"].numpy())
        assert reward == pytest.approx(after["reward"].item(), abs=1e-5)
        assert [terminated, truncated] == [after["terminated"].item(), after["truncated"].item()]
        if "hidden" in episode.keys() and step + 1 < len(episode):  # noqa: SIM118 - has no `in`
            assert [*info["task"].values()] == episode["hidden"][step + 1].tolist()
    assert terminated or truncated


def test_every_episode_of_a_hidden_task_begins_with_it():
    family = make_family("point_switch")
    for task in (-1.0, 1.0):
        env = family.make([task])
        begun = [[*env.reset(seed=seed)[1]["task"].values()] for seed in range(4)]
        assert begun == [[task]] * 4


def test_a_picture_is_drawn_where_it_is_asked_for():
    family = make_family("cartpole")
    env = family.make(family.test[0], render_mode="rgb_array")
    assert env.render() is None
    env.reset(seed=0)
    assert env.render().dtype == np.uint8
    with pytest.raises(ConfigError, match="human"):
        family.make(family.test[0], render_mode="human")


def test_a_task_has_a_number_for_each_name_and_an_action_the_spaces_shape():
    family = counter_family()
    assert family.make({"number": 2.0}).reset(seed=0)[0][1] == 2.0
    for wrong in ([1.0, 2.0], {"nummer": 2.0}, [float("nan")], [], "x", None):
        with pytest.raises(ConfigError, match="for each of number"):
            family.make(wrong)
    env = family.make([2.0])
    with pytest.raises(ConfigError, match="before reset"):
        env.step(np.zeros(1))
    env.reset(seed=0)
    with pytest.raises(ConfigError, match=r"shape \(1, 1\)"):
        env.step(np.zeros((1, 1)))
    for wrong in ("left", None):
        with pytest.raises(ConfigError, match="give one of Box"):
            env.step(wrong)
