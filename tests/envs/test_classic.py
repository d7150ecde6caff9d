"""Cart-pole against its formulas, acrobot against gymnasium."""

import math

import gymnasium
import numpy as np
import pytest
import torch
from fakes import generator, walk

from mbrl_lightning.envs import make_family
from mbrl_lightning.envs.bodies.acrobot import transition as acrobot_step
from mbrl_lightning.envs.bodies.acrobot import wrap
from mbrl_lightning.errors import DivergedError, EnvError


def random_cost(family, episodes=40):
    simulator = family.simulate(family.test.repeat_interleave(episodes, 0))
    steps = walk(family, simulator, family.spec.horizon, generator(3))
    return -float(sum(family.spec.reward(*step) for step in steps).mean() / family.spec.horizon)


def test_cartpole_one_step_by_hand():
    mc, mp, x, v, th, w, a = 1.5, 0.8, 0.3, -0.7, 2.0, 1.1, 4.0
    sin, cos, m, length, g, b = math.sin(th), math.cos(th), mc + mp, 0.6, 9.82, 0.1
    acceleration = -2 * mp * length * w**2 * sin + 3 * mp * g * sin * cos + 4 * a - 4 * b * v
    acceleration /= 4 * m - 3 * mp * cos**2
    angular = -3 * mp * length * w**2 * sin * cos + 6 * m * g * sin + 6 * (a - b * v) * cos
    angular /= 4 * length * m - 3 * mp * length * cos**2
    family = make_family("cartpole")
    simulator = family.simulate(torch.tensor([[mc, mp]] * 3))
    simulator.set_state(torch.tensor([[x, v, th, w]] * 3, dtype=torch.float64))
    simulator.step(torch.tensor([[a / 10], [1.0], [7.0]], dtype=torch.float64))
    expected = [x + 0.1 * v, v + 0.1 * acceleration, th + 0.1 * w, w + 0.1 * angular]
    torch.testing.assert_close(simulator.state()[0], torch.tensor(expected, dtype=torch.float64))
    assert simulator.state()[1].equal(simulator.state()[2]), "the force is clipped"


def test_cartpole_random_cost():
    """Deep PILCO's form; the other forms of the literature are the options."""
    assert random_cost(make_family("cartpole")) == pytest.approx(0.976, abs=0.01)
    assert random_cost(make_family("cartpole", half=False)) == pytest.approx(0.986, abs=0.01)


@pytest.mark.parametrize("side", [1, -1])
def test_cartpole_reward_values(side):
    spec, upright, action = make_family("cartpole", tip_sign=side).spec, torch.zeros(1, 4), torch.zeros(1, 1)
    assert spec.reward(upright, action, upright).item() == 0
    squared = (0.1 + side * 0.6 * math.sin(0.2)) ** 2 + (0.6 * (math.cos(0.2) - 1)) ** 2
    paid = spec.reward(upright, action, torch.tensor([[0.1, 0.0, 0.2, 0.0]])).item()
    assert paid == pytest.approx(math.exp(-squared / (2 * 0.25**2)) - 1, abs=1e-6)


def test_acrobot_equals_gymnasium():
    env = gymnasium.make("Acrobot-v1", disable_env_checker=True).unwrapped
    env.reset(seed=0)
    draws, count = generator(1), 100
    limits = torch.tensor([math.pi, 4 * math.pi, math.pi, 9 * math.pi], dtype=torch.float64)
    state = (2 * torch.rand(count, 4, generator=draws, dtype=torch.float64) - 1) * limits
    family = make_family("acrobot")
    tasks, action = family.sample(count, draws), family.spec.random_action((count,), draws)
    ours = acrobot_step(state, action.double(), tasks)
    for row in range(count):
        env.LINK_MASS_1, env.LINK_MASS_2 = tasks[row].tolist()
        env.state = state[row, [0, 2, 1, 3]].numpy().copy()
        _, reward, terminated, _, _ = env.step(int(action[row].argmax()))
        theirs = torch.from_numpy(np.asarray(env.state))[[0, 2, 1, 3]]
        error = theirs - ours[row]
        assert max(wrap(error[[0, 2]]).abs().max(), error[[1, 3]].abs().max()) < 1e-9
        assert family.spec.reward(state[row], action[row], ours[row]).item() == reward
        assert family.spec.termination(ours[row]).item() == terminated


def test_acrobot_pumping_succeeds_early():
    family, draws = make_family("acrobot"), generator()
    spec, simulator = family.spec, family.simulate(family.test.repeat(8, 1))
    observation, total = simulator.reset(draws), torch.zeros(264)
    running = torch.ones(264, dtype=torch.bool)
    for _ in range(spec.horizon):
        choice = torch.where(observation[:, 3] >= 0, 2, 0)
        action = torch.nn.functional.one_hot(choice, 3).float()
        following = simulator.step(action, running)
        assert following[~running].equal(observation[~running])
        total += spec.reward(observation, action, following) * running
        running &= ~spec.termination(following)
        observation = following
    assert running.float().mean() < 0.2
    assert float(total.mean()) / spec.horizon == pytest.approx(-0.46, abs=0.04)


def test_acrobot_target_takes_the_short_way_and_limits_speed():
    spec = make_family("acrobot").spec
    before, after = torch.tensor([[3.1, 0.0, -3.1, 0.0]]), torch.tensor([[-3.1, 1.0, 3.1, -1.0]])
    change = spec.target(before, after)
    torch.testing.assert_close(change, torch.tensor([[0.0832, 1.0, -0.0832, -1.0]]), atol=1e-4, rtol=0)
    torch.testing.assert_close(spec.untarget(before, change), after)
    far = spec.untarget(before, torch.full((1, 4), 100.0))
    assert far[0, 1] == pytest.approx(4 * math.pi)
    assert far[0, 3] == pytest.approx(9 * math.pi)


@pytest.mark.parametrize("name", ["cartpole", "acrobot", "half_cheetah", "point_switch"])
def test_an_action_that_is_not_finite_is_the_policy_s_fault(name):
    family = make_family(name)
    simulator = family.simulate(family.test[:3])
    simulator.reset(generator())
    action = family.spec.random_action((3,), generator())
    action[1] = math.nan
    simulator.step(action, torch.tensor([True, False, True]))
    with pytest.raises(DivergedError, match="task 1"):
        simulator.step(action)


@pytest.mark.parametrize("name", ["cartpole", "acrobot"])
def test_states_are_drawn_and_those_that_are_not_finite_are_reported(name):
    family = make_family(name)
    simulator = family.simulate(family.test[:3])
    simulator.reset(generator())
    picture = simulator.render()
    assert (picture.shape, picture.dtype) == ((256, 256, 3), np.uint8)
    assert picture.std() > 5
    state = simulator.state()
    state[1] = math.nan
    simulator.set_state(state)
    with pytest.raises(EnvError, match=rf"{name}: task 1 has a non-finite \w+"):
        simulator.step(family.spec.random_action((3,), generator()))
