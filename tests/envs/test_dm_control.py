"""dm_control behind shimmy, where both are installed (dm_control wants MuJoCo below 4): its parts, its models, its rewards."""

import os

import pytest
import torch
from fakes import generator

os.environ.setdefault("MUJOCO_GL", "disabled")
pytest.importorskip("dm_control")
shimmy = pytest.importorskip("shimmy")

import gymnasium  # noqa: E402 - after the skips

from mbrl_lightning.check_env import check_family  # noqa: E402
from mbrl_lightning.envs.gym_family import gym_family  # noqa: E402

gymnasium.register_envs(shimmy)


def test_a_task_of_the_suite_is_a_family():
    family = gym_family("dm_control/cartpole-swingup-v0", {"body_mass:pole_1": (0.5, 2.0)}, horizon=50)
    assert family.spec.observation_names[0] == "position 0"
    simulator = family.simulate(torch.tensor([[0.5], [2.0]]).double())
    simulator.reset(generator())
    light, heavy = (env.unwrapped._env.physics.named.model.body_mass["pole_1"] for env in simulator._vector.envs)
    assert heavy == pytest.approx(4 * light)
    assert not [check.name for check in check_family(family) if not check.passed]


def test_contacts_are_restored_too():
    family = gym_family("dm_control/cheetah-run-v0", {"body_mass:torso": (0.5, 2.0)}, horizon=20)
    assert {check.name: check.passed for check in check_family(family)}["state"]
