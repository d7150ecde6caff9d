"""Environments as people have them: MuJoCo models changed by name, observations of several parts, rewards that only they know."""

import logging
from types import SimpleNamespace

import gymnasium
import mujoco
import numpy as np
import pytest
import torch
from fakes import generator
from tensordict import TensorDict

from mbrl_lightning.check_env import check_family
from mbrl_lightning.envs.gym_family import gym_family
from mbrl_lightning.errors import ConfigError, EnvError

MASS, SLIP = "body_mass:torso", "geom_friction:floor"


def cheetah(**options):
    return gym_family("HalfCheetah-v5", {MASS: (0.5, 1.5), SLIP: (0.5, 2.0)}, **options)


class Arm(gymnasium.Env):
    """A place and two speeds in a dictionary, actions from -1 to 3, a reward of shape (1,), a mass two attributes deep."""

    observation_space = gymnasium.spaces.Dict(
        speed=gymnasium.spaces.Box(-9, 9, (2, 1), np.float64), place=gymnasium.spaces.Box(-9, 9, (1,), np.float64)
    )
    action_space = gymnasium.spaces.Box(-1.0, 3.0, (1,), np.float64)

    def __init__(self):
        self.physics, self.state = SimpleNamespace(load=SimpleNamespace(mass=1.0)), np.zeros(3)

    def _seen(self):
        return {"speed": self.state[1:].reshape(2, 1).copy(), "place": self.state[:1].copy()}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = self.np_random.uniform(-1, 1, 3)
        return self._seen(), {}

    def step(self, action):
        assert -1 <= action[0] <= 3
        self.state = 0.9 * self.state + 0.1 * action[0] / self.physics.load.mass
        return self._seen(), -(self.state[:1] ** 2), False, False, {"success": self.state[0] > 0}


def listed(tasks, unseen):
    return gym_family(Arm, {"physics.load.mass": (0.5, 2.0)}, tasks=tasks, unseen=unseen, horizon=20)


def test_half_cheetah_as_it_comes():
    family = cheetah()
    assert family.spec.observation_names[-1] == "previous_reward"
    simulator = family.simulate(torch.tensor([[0.5, 1.0], [1.5, 2.0]]).double())
    for _ in range(2):  # multiples are of what the model had, not of what was written last time
        simulator.reset(generator())
    light, heavy = (env.unwrapped.model for env in simulator._vector.envs)
    nominal = gymnasium.make("HalfCheetah-v5").unwrapped.model
    assert light.body("torso").mass == pytest.approx(0.5 * nominal.body("torso").mass)
    assert heavy.body("torso").mass == pytest.approx(1.5 * nominal.body("torso").mass)
    assert heavy.geom("floor").friction == pytest.approx(2 * nominal.geom("floor").friction)
    assert heavy.body("bfoot").mass == pytest.approx(nominal.body("bfoot").mass)
    assert heavy.body_subtreemass[1] - light.body_subtreemass[1] == pytest.approx(nominal.body("torso").mass)
    before = simulator.step(torch.zeros(2, 6))
    action = torch.full((2, 6), 0.5)
    after = simulator.step(action)
    torch.testing.assert_close(after[:, -1].double(), simulator.last_reward, rtol=0, atol=1e-6)
    assert torch.equal(family.spec.reward(before, action, after), after[:, -1])


def test_all_checks_pass_where_the_reward_is_an_entry():
    family = gym_family(Arm, {"physics.load.mass": (0.5, 2.0)}, horizon=20, name="arm")
    assert family.spec.observation_names == ("speed 0", "speed 1", "place", "previous_reward")
    assert not [check.name for check in check_family(family) if not check.passed]


def test_info_is_seen_and_measured():
    family = gym_family(Arm, {"physics.load.mass": (0.5, 2.0)}, horizon=3, name="arm", info=("success",))
    assert family.spec.observation_names[-2:] == ("success", "previous_reward")
    simulator = family.simulate(torch.ones(2, 1).double())
    assert not simulator.reset(generator())[:, -2:].any()
    seen = [simulator.step(torch.full((2, 1), value)) for value in (1.0, -1.0)]
    assert torch.stack(seen)[:, :, -2].tolist() == [(each[:, 2] > 0).tolist() for each in seen]
    stacked = torch.stack(seen, 1).unsqueeze(1)
    episodes = TensorDict({"observation": stacked, "next": {"observation": stacked}}, batch_size=[2, 1, 2])
    assert family.spec.metrics(episodes)["info/success"].shape == (2, 1)
    lone = gym_family(Arm, {"physics.load.mass": (0.5, 2.0)}, horizon=3, info=("speed",)).simulate(torch.ones(1, 1))
    lone.reset(generator())
    with pytest.raises(EnvError, match=r"info\['speed'\] of step, task 0 .* is missing.\n.*There is success"):
        lone.step(torch.zeros(1, 1))


@pytest.mark.parametrize(
    ("env", "range", "message"),
    [
        ("HalfCheetah-v9", (0.5, 1.5), "`v9`.*\n.*Correct the id"),
        ("suite/cheetah-v0", (0.5, 1.5), "Namespace suite not found"),
        ("not_there:Cheetah-v0", (0.5, 1.5), "not_there"),
        ("HalfCheetah-v5", (-0.5, 1.5), f"{MASS}.* -0.5 times"),
        ("HalfCheetah-v5", (1.5, 0.5), f"parameter {MASS}.* neither a range"),
        ("HalfCheetah-v5", (0.5, float("inf")), f"parameter {MASS}.* neither a range"),
    ],
)
def test_what_is_not_there_or_cannot_be_is_named_before_anything_is_trained(env, range, message):
    with pytest.raises(ConfigError, match=message):
        gym_family(env, {MASS: range})


def test_a_family_is_called_after_what_builds_it():
    assert gym_family(Arm, {"physics.load.mass": (0.5, 2.0)}, horizon=3).spec.name == "Arm"


def test_a_fault_is_told_once():
    class Broken(Arm):
        def step(self, action):
            raise ValueError("no power")

    checks = {each.name: each for each in check_family(gym_family(Broken, {"physics.load.mass": (1, 2)}, horizon=9))}
    assert "no power" in checks["shapes"].detail
    assert checks["seeding"].detail == checks["masking"].detail == "the same"


def test_mujoco_warns_once_of_each_kind_and_dm_control_of_nothing_that_is_harmless(caplog):
    for time in (1, 2):
        mujoco.get_mju_user_warning()(f"Something at DOF 7. Time = {time}.0000.")
        logging.getLogger("absl").warning("attribute 'settotalmass' is deprecated")
    assert [record.getMessage() for record in caplog.records] == ["MuJoCo: Something at DOF 7. (told once)"]


def test_tasks_may_be_listed():
    family = listed([[0.5], [1.0]], [[2.0]])
    assert set(family.sample(50, generator()).flatten().tolist()) == {0.5, 1.0}
    assert family.test.tolist() == [[2.0]]
    assert not len(family.extreme)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("body_mass:trunk", "the model has no such body"),
        ("body_weight:torso", "no MuJoCo model with a field 'body_weight'"),
        ("physics.load", "no attribute 'physics.load'"),
    ],
)
def test_what_a_model_does_not_have_is_named(name, message):
    with pytest.raises(ConfigError, match=message):
        gym_family("HalfCheetah-v5", {name: (0.5, 1.5)})


@pytest.mark.parametrize(
    ("tasks", "unseen", "message"),
    [
        ([[1.0]], None, "listed, not both"),
        ([[1.0, 2.0]], [[1.5]], r"tasks of \[2\] values, where 1 vary"),
        ([], [[1.5]], "tasks of no values"),
    ],
)
def test_lists_that_do_not_fit_are_refused(tasks, unseen, message):
    with pytest.raises(ConfigError, match=message):
        listed(tasks, unseen)


def test_an_unseen_task_is_none_of_the_training_tasks():
    with pytest.raises(ConfigError, match="training task"):
        listed([[0.5], [1.0]], [[1.0]]).check_disjoint()
