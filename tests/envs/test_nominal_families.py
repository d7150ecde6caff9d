"""MB-MPO's families, in which nothing varies, and L2A's disabled joint: physics, rewards and ends against their sources."""

import gymnasium
import numpy as np
import pytest
import torch
from fakes import Says, generator, random_steps

from mbrl_lightning.data.buffer import TaskBuffer
from mbrl_lightning.data.collect import collect, episode_returns
from mbrl_lightning.envs import make_family
from mbrl_lightning.envs.bodies import arm as arm_reach
from mbrl_lightning.envs.bodies import point2d as points
from mbrl_lightning.errors import ConfigError

RUNNERS = ("swimmer", "half_cheetah_200", "hopper", "walker2d", "ant")
NOMINAL = [*RUNNERS, "arm_reach", "point2d"]


@pytest.mark.parametrize("name", RUNNERS)
def test_networks_do_not_see_the_last_speed_and_models_predict_it(name):
    spec = make_family(name).spec
    first, second = torch.randn(2, 5, spec.observation_dim, generator=generator(), dtype=torch.float64)
    other = torch.cat([first[:, :1] + 3, first[:, 1:]], 1)
    assert spec.features(other).equal(spec.features(first))
    assert spec.untarget(other, spec.target(first, second))[:, 0].equal(second[:, 0])


# -- the points


def test_pursuit_by_hand_and_what_knowing_the_goal_is_worth():
    family = make_family("point_goal")
    sim = family.simulate(torch.tensor([[0.6, 0.8], [-1.0, 0.0]]))
    assert sim.reset(generator()).equal(torch.zeros(2, 3))
    following = sim.step(torch.tensor([[0.5, 7.0], [0.5, 7.0]]))  # 7 is clipped to 1
    expected = [[0.05, 0.1, -((0.55**2 + 0.7**2) ** 0.5)], [0.05, 0.1, -((1.05**2 + 0.1**2) ** 0.5)]]
    torch.testing.assert_close(following, torch.tensor(expected))
    assert family.spec.reward(following, following, following).equal(following[:, 2])
    assert family.spec.features(following).equal(following[:, :2])  # the reward is for those who remember
    returns = {}
    for told in (True, False):
        sim, place, total = family.simulate(family.test), torch.zeros(20, 2), torch.zeros(20)
        sim.reset(generator())
        for _ in range(20):
            following = sim.step(told * ((family.test.float() - place) / points.STEP).clamp(-1, 1))
            place, total = following[:, :2], total + following[:, 2]
        returns[told] = float(total.mean())
    assert returns[True] == pytest.approx(-3.83, abs=0.01)
    assert returns[False] == pytest.approx(-20)
    assert family.sample(500, generator()).norm(dim=1).sub(1).abs().max() < 1e-12


def test_point_by_hand_and_its_optimum():
    family = make_family("point2d")
    spec, sim = family.spec, family.simulate(torch.ones(4000, 1))
    start = sim.reset(generator())
    assert start.abs().max() <= 2
    assert start.abs().amax(0).min() > 1.99
    following = sim.step(torch.tensor([[0.5, -7.0]]).expand(4000, 2))
    torch.testing.assert_close(following, start + torch.tensor([0.05, -0.1]))
    assert spec.reward(start, start, following).equal(-start.square().sum(1))
    best, ones = Says(points.best_action), torch.ones(4000, 1)
    data = collect(family.simulate(ones), spec, best, best.begin(4000), 30, generator(), training=False)
    assert pytest.approx(-14.7) == points.OPTIMUM
    assert episode_returns(data, spec).mean().item() == pytest.approx(points.OPTIMUM, abs=0.4)
    worse = random_steps(family, ones, 30, generator())
    assert episode_returns(worse, spec).mean() < -60


# -- the arm


def test_arm_moves_like_the_pusher_and_pays_as_stated():
    env = gymnasium.make("Pusher-v5", disable_env_checker=True).unwrapped
    family, draws = make_family("arm_reach"), generator()
    sim = family.simulate(family.test[:2])
    observation = sim.reset(draws)
    model, data = sim._models[1], sim._datas[1]
    env.reset(seed=0)
    pose, speed = env.data.qpos.copy(), env.data.qvel.copy()
    pose[:7], speed[:7] = data.qpos[:7], data.qvel[:7]
    env.set_state(pose, speed)
    goal = data.qpos[7:].copy()
    site = model.site("tip").id
    for _ in range(100):
        action = family.spec.random_action((2,), draws)
        following = sim.step(action)
        env.step(2 * action[1].numpy().astype(np.float64))
        np.testing.assert_allclose(data.qpos[:7], env.data.qpos[:7], atol=1e-9)
        np.testing.assert_array_equal(data.qpos[7:], goal)
        assert following[1, :7].numpy() == pytest.approx(data.qpos[:7], abs=1e-5)
        mid = env.get_body_com("r_wrist_roll_link") + 0.1 * env.data.body("r_wrist_roll_link").xmat.reshape(3, 3)[:, 0]
        np.testing.assert_allclose(data.site_xpos[site], mid, atol=0.03)  # gymnasium's are a physics step late
        expected = -((goal - data.site_xpos[site]) ** 2).sum() - 0.05 * float(action[1].double().square().sum())
        assert family.spec.reward(observation, action, following)[1].item() == pytest.approx(expected, abs=1e-5)
        observation = following


def test_goals_are_new_in_each_episode_and_can_be_reached():
    sim = make_family("arm_reach").simulate(torch.ones(3, 1))
    first = sim.reset(generator())
    again = sim.reset(generator(1), torch.tensor([True, False, True]))
    assert again[1].equal(first[1])
    assert (again[[0, 2], -3:] - first[[0, 2], -3:]).abs().amax(1).min() > 1e-3
    data, model = sim._datas[0], sim._models[0]
    points = arm_reach.goals(200, generator())
    shoulder = model.body("r_shoulder_lift_link").pos + model.body("r_shoulder_pan_link").pos
    assert len(points.unique(dim=0)) == 200
    assert ((points - torch.from_numpy(shoulder)).norm(dim=1) < 0.4 + 0.321 + 0.1 + 2 * 0.1).all()
    draws = generator(2)
    unit = torch.rand(1, 7, generator=draws, dtype=torch.float64)[0]
    low, high = torch.from_numpy(model.jnt_range[:7].copy()).unbind(1)
    data.qpos[:7] = ((low + high) / 2 + 0.6 * (unit - 0.5) * (high - low)).numpy()
    np.testing.assert_allclose(arm_reach.tip(model, data), arm_reach.goals(1, generator(2))[0].numpy())


# -- the disabled joint


@pytest.mark.parametrize(("options", "unseen"), [({}, 5), ({"held_out": 3}, 3)])
def test_unseen_joint_stays_unseen_and_the_effort_is_charged(options, unseen):
    """A training joint can be held out for choices, and the test's joint cannot."""
    family = make_family("half_cheetah_disabled", **options)
    assert family.sample(500, generator()).unique().tolist() == [joint for joint in range(5) if joint != unseen]
    assert family.test.unique().tolist() == [unseen]
    family.check_disjoint()
    observation = torch.randn(4, 18, generator=generator())
    paid = family.spec.reward(observation, torch.ones(4, 6), observation)
    torch.testing.assert_close(paid, observation[:, 0] - 0.05 * 6)
    for joint in (5, -1):
        with pytest.raises(ConfigError, match="0 to 4"):
            make_family("half_cheetah_disabled", held_out=joint)


# -- what the library makes of them


@pytest.mark.parametrize("name", NOMINAL)
def test_nothing_varies_but_the_start(name):
    family = make_family(name)
    assert family.test.unique(dim=0).tolist() == family.sample(30, generator()).unique(dim=0).tolist() == [[1.0]]
    assert family.shared_tasks
    assert family.simulate(family.test[:4]).reset(generator()).unique(dim=0).shape[0] == 4
    assert TaskBuffer(1).index_of(family.test).unique().tolist() == [0]
