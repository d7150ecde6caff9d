"""Slopes, dampings and a force: what is written into the body, and that it acts as said."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest
import torch
from fakes import generator

from mbrl_lightning.envs import make_family
from mbrl_lightning.envs.bodies import slopes
from mbrl_lightning.errors import ConfigError

# -- slopes


def test_the_ground_is_level_then_has_either_slope():
    places = np.array([-3.0, 1.0, 3.0, 6.0, 10.0])
    assert slopes.heights(np.array([0.1, -0.2]), places).tolist() == pytest.approx([0, 0, 0.2, 0.5, -0.3])


@pytest.mark.parametrize("place", [4.0, 20.0])
def test_the_cheetah_comes_to_rest_on_its_slope(place):
    tasks = torch.tensor([[0.0, 0.0], [0.1, 0.2], [-0.2, 0.1]], dtype=torch.float64)
    simulator = make_family("half_cheetah_slopes").simulate(tasks)
    simulator.reset(generator())
    for task, data, model in zip(tasks.numpy(), simulator._datas, simulator._models, strict=True):
        mujoco.mj_resetData(model, data)
        data.qpos[0], data.qpos[1] = place, slopes.heights(task, np.array([place]))[0] + 0.2
        mujoco.mj_step(model, data, 300)
        ground = slopes.heights(task, data.qpos[:1])[0]
        assert data.qpos[1] - ground == pytest.approx(-0.13, abs=0.03)  # where it lies on level ground
        assert model.body_mass.sum() == pytest.approx(14)


def test_it_is_paid_its_speed_and_shown_no_ground():
    family = make_family("half_cheetah_slopes")
    simulator = family.simulate(family.test[:2])
    observation, draws = simulator.reset(generator()), generator(1)
    for _ in range(20):
        before, action = simulator._datas[1].qpos[0], family.spec.random_action((2,), draws)
        following = simulator.step(action)
        wanted = (simulator._datas[1].qpos[0] - before) / 0.05 - 0.05 * float(action[1].square().sum())
        assert float(family.spec.reward(observation, action, following)[1]) == pytest.approx(wanted, abs=1e-4)
        observation = following
    assert family.spec.observation_names == make_family("half_cheetah_disabled").spec.observation_names


@pytest.mark.parametrize("options", [{"steepest": 0.3}, {"extreme": 0.4}])
def test_slopes_beyond_the_range_of_the_height_field_are_refused(options):
    with pytest.raises(ConfigError, match=r"m up or down, and the height field 13 m"):
        make_family("half_cheetah_slopes", **options)
    with pytest.raises(ConfigError, match="the height field 13 m"):
        make_family("half_cheetah_slopes").simulate(torch.full((1, 2), 0.5))


# -- the arms


def test_each_joint_has_its_damping_and_one_of_nominal_ones_moves_as_arm_reach():
    family, plain = make_family("arm_damping"), make_family("arm_reach")
    nominal = plain.simulate(plain.test[:1])
    task = torch.from_numpy(nominal._models[0].dof_damping[:7].copy()).unsqueeze(0)
    simulator = family.simulate(torch.cat([task, family.test[:1]]))
    assert simulator._models[1].dof_damping[:7].tolist() == family.test[0].tolist()
    simulator.reset(generator())
    nominal.reset(generator())
    for data in (*simulator._datas, *nominal._datas):
        data.qpos[:], data.qvel[:] = 0.1, 0.2
    action = torch.full((1, 7), 0.3)
    moved, slower = simulator.step(action.expand(2, 7))
    assert moved.equal(nominal.step(action)[0])
    assert not moved.equal(slower)


def test_the_force_pulls_the_hand_down_and_nothing_else_weighs_anything():
    family = make_family("arm_force")
    simulator = family.simulate(torch.tensor([[0.0], [1.5]], dtype=torch.float64))
    simulator.reset(generator())
    for data, model, force in zip(simulator._datas, simulator._models, (0.0, 1.5), strict=True):
        data.qpos[:], data.qvel[:] = 0.3, 0.0
        mujoco.mj_forward(model, data)
        jacobian, hand = np.zeros((3, model.nv)), model.body("r_wrist_roll_link").id
        mujoco.mj_jacBodyCom(model, data, jacobian, None, hand)
        felt = data.qfrc_passive - data.qfrc_bias
        np.testing.assert_allclose(felt, jacobian.T @ [0, 0, -force], atol=1e-12)


@pytest.mark.parametrize("name", ["arm_damping", "arm_force"])
def test_arms_are_paid_for_nearness(name):
    family = make_family(name)
    simulator = family.simulate(family.test[:2])
    observation, action = simulator.reset(generator()), family.spec.random_action((2,), generator(1))
    following, model, data = simulator.step(action), simulator._models[1], simulator._datas[1]
    mujoco.mj_kinematics(model, data)
    away = data.qpos[7:] - data.site("tip").xpos
    wanted = -float((away**2).sum()) - 0.05 * float(action[1].double().square().sum())
    assert float(family.spec.reward(observation, action, following)[1]) == pytest.approx(wanted, abs=1e-5)
