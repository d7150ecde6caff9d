"""FAMLE's arm and ant: what a situation does to them, and that rewards are what the simulators say."""

import numpy as np
import pytest
import torch
from fakes import generator, walk

from mbrl_lightning.envs import make_family
from mbrl_lightning.envs.bodies.reacher import GOAL


def test_the_reward_is_that_of_the_tip_in_the_simulator():
    family = make_family("famle_reacher")
    simulator = family.simulate(family.test[:3])
    for before, action, after in walk(family, simulator, 40, generator()):
        tips = np.stack([data.site("tip").xpos[:2] for data in simulator._datas])
        wanted = np.exp(-np.linalg.norm(tips - np.array(GOAL), axis=1))
        np.testing.assert_allclose(family.spec.reward(before, action, after).numpy(), wanted, atol=1e-3)
    angles = after[:, :5].double().cumsum(1)  # by hand: five links of 0.3 m
    hand = 0.3 * torch.stack([angles.cos().sum(1), angles.sin().sum(1)], 1)
    torch.testing.assert_close(after[:, -2:].double(), hand, rtol=0, atol=1e-5)


def test_joints_follow_commands_times_their_factors_and_stay_within_their_limits():
    family = make_family("famle_reacher", test=[[1, -1, 0, 1, 1]])
    simulator = family.simulate(family.test)
    start = simulator.reset(generator())
    for _ in range(10):
        end = simulator.step(torch.tensor([[1.0, 0.5, 1.0, -1.0, 7.0]]))
    torch.testing.assert_close(end[0, 5:10], torch.tensor([0.7, -0.35, 0.0, -0.7, 0.7]), rtol=0, atol=0.1)
    torch.testing.assert_close((end - start)[0, :5], torch.tensor([0.7, -0.35, 0.0, -0.7, 0.7]), rtol=0, atol=0.1)
    for _ in range(20):
        end = simulator.step(torch.tensor([[1.0, 0.0, 0.0, -1.0, 1.0]]))
    assert end[0, 3:5].abs().max() < np.pi / 3 + 0.01
    assert end[0, 0] > np.pi / 2  # the first joint has none


def test_the_papers_combination_is_in_the_test_and_no_training_situation_is():
    family = make_family("famle_reacher")
    assert [-1, 1, 1, 0, 1] in family.test.tolist()
    assert len(family.grid) == 11
    assert len(make_family("famle_ant").grid) == 20


def test_the_ant_is_paid_its_speed_and_moves_as_gymnasiums():
    family, plain = make_family("famle_ant"), make_family("ant")
    simulator, other = family.simulate(family.grid[:1]), plain.simulate(plain.test[:1])
    place = simulator.reset(generator()), simulator._datas[0].qpos[0]
    assert other.reset(generator()).equal(place[0])
    draws, before = generator(1), place[1]
    for _ in range(20):
        action = family.spec.random_action((1,), draws)
        after = simulator.step(action)
        assert after.equal(other.step(action))
        x = simulator._datas[0].qpos[0]
        assert float(family.spec.reward(after, action, after)) == pytest.approx((x - before) / 0.05, abs=1e-4)
        before = x


def test_a_stuck_compass_shows_its_yaw_and_leaves_roll_pitch_and_motion():
    family = make_family("famle_ant")
    tasks = family.grid[[0, 9, 14, 19]]
    assert tasks[:, 8].tolist() == pytest.approx([0, 1 / 12, 6 / 12, 11 / 12])
    simulators = [family.simulate(task[None]) for task in tasks]
    for simulator in simulators:
        simulator.reset(generator())
    draws, names = generator(2), family.spec.observation_names
    first = names.index("quaternion_w")
    for _ in range(30):
        action = family.spec.random_action((1,), draws)
        seen = torch.cat([simulator.step(action) for simulator in simulators]).double()
    quaternion, rest = seen[:, first : first + 4], torch.cat([seen[:, :first], seen[:, first + 4 :]], 1)
    assert rest.equal(rest[:1].expand(4, -1))
    w, x, y, z = quaternion.unbind(1)
    yaw = torch.atan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
    wanted = 2 * torch.pi * tasks[1:, 8]
    torch.testing.assert_close(yaw[1:].cos(), wanted.cos(), rtol=0, atol=1e-4)
    torch.testing.assert_close(yaw[1:].sin(), wanted.sin(), rtol=0, atol=1e-4)
    for tilt in (2 * (w * y - z * x), 2 * (w * x + y * z)):  # pitch, and roll's sine times cos(pitch)
        torch.testing.assert_close(tilt, tilt[:1].expand(4), rtol=0, atol=1e-4)


def test_dead_motors_give_no_torque():
    family = make_family("famle_ant")
    simulator = family.simulate(family.test[:1])
    simulator.reset(generator())
    simulator.step(torch.ones(1, 8))
    assert (np.flatnonzero(simulator._datas[0].actuator_force == 0).tolist(), family.test[0, :2].tolist()) == (
        [],
        [0, 0],
    )
    assert simulator._models[0].actuator_gear[:, 0].tolist() == [0, 0, *[150] * 6]
