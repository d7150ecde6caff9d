"""The user's own gymnasium environment, and check_env."""

import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from fakes import generator

from mbrl_lightning.check_env import check_family, main
from mbrl_lightning.envs import load_family
from mbrl_lightning.envs.gym_family import gym_family
from mbrl_lightning.errors import ConfigError, EnvError


def zero_reward(observation, action, next_observation):
    return torch.zeros(observation.shape[:-1])


class Turntable(gymnasium.Env):
    """An angle and a number, pushed up or down."""

    observation_space = gymnasium.spaces.Box(-10, 10, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2, start=1)

    def __init__(self):
        self.gain, self.state = 1.0, np.zeros(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = self.np_random.uniform(-1, 1, 2)
        return self.state.astype(np.float32), {}

    def step(self, action):
        assert action in (1, 2)
        self.state = self.state + 0.1 * self.gain * (action - 1.5)
        self.state[0] = (self.state[0] + np.pi) % (2 * np.pi) - np.pi
        return self.state.astype(np.float32), 0.0, False, False, {}


def turntable(**options):
    options = {"horizon": 20, "name": "turntable"} | options
    return gym_family(Turntable, {"gain": (0.5, 2.0)}, zero_reward, **options)


def failed(family):
    return [check.name for check in check_family(family) if not check.passed]


def test_wrong_rewards_and_parameters_without_effect_are_found():
    def nothing(env, values):
        assert set(values) == {"gain"}

    assert failed(gym_family("Pendulum-v1", {"m": (0.5, 2.0)}, zero_reward)) == ["reward"]
    assert failed(turntable(set_task=nothing)) == ["parameters"]


def test_discrete_actions_and_angles():
    family = turntable(angles=(0,), extreme={"gain": (0.1, 4.0)})
    spec = family.spec
    assert (spec.discrete, spec.action_dim, spec.feature_dim, len(family.extreme)) == (True, 2, 3, 20)
    change = spec.target(torch.tensor([[3.1, 0.0]]), torch.tensor([[-3.1, 1.0]]))
    torch.testing.assert_close(change, torch.tensor([[0.0832, 1.0]]), atol=1e-4, rtol=0)
    assert not failed(family)


def test_state_without_access_is_refused():
    simulator = turntable().simulate(torch.ones(1, 1))
    del simulator._vector.envs[0].unwrapped.state
    with pytest.raises(EnvError, match="state_access"):
        simulator.state()


def test_mujoco_environments_restore_exactly():
    def heavier(env, values):
        env.unwrapped.model.body_mass[1] = values["mass"]

    family = gym_family("InvertedPendulum-v5", {"mass": (5.0, 15.0)}, zero_reward, set_task=heavier)
    first, second = (family.simulate(family.test[:2]) for _ in range(2))
    first.reset(generator())
    action = family.spec.random_action((2,), generator())
    first.step(action)
    second.set_state(first.state())
    assert second.step(action).equal(first.step(action))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"set_task": {"gain": "torque"}}, "no attribute 'torque'"),
        ({"observation_names": ("one",)}, "1 names for 2"),
        ({"angles": (5,)}, "do not index"),
        ({"horizon": None}, "no step limit"),
        ({"extreme": {"mass": (1, 2)}}, "only a training or only"),
    ],
)
def test_misfits_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        turntable(**options)


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("x = 1\ndef family(:", EnvError, r"mine.py:2\)"),
        ("import sys\nsys.exit(0)", EnvError, r"SystemExit: 0 \(.*mine.py:2\)"),
        ("x = 1", ConfigError, "no function family"),
        ("def family(): return 3", ConfigError, "returned a int"),
        ("def family():\n    return [][0]", EnvError, r"IndexError.*mine.py:2\)"),
        ("def family(top=1): pass", EnvError, "unexpected keyword argument 'speed'"),
        ("def family(**options): return options", ConfigError, "returned a dict"),
    ],
)
def test_bad_files_are_refused(tmp_path, text, kind, message):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(kind, match=message):
        load_family(str(path), speed=3) if "speed" in message or "options" in text else load_family(str(path))
    with pytest.raises(ConfigError, match="no Python file"):
        load_family(str(tmp_path / "other.py"))


FILE = """
import dataclasses
import gymnasium
from mbrl_lightning.envs.gym_family import gym_family
from beside_mine import LOW

@dataclasses.dataclass
class Ranges:
    low: float = LOW

from gymnasium.envs.classic_control.pendulum import PendulumEnv

class Own(PendulumEnv):
    pass

gymnasium.register("Own-v0", entry_point="own_file:Own", max_episode_steps=20)

def family():
    return gym_family("Own-v0", {"m": (Ranges().low, 2.0)}, lambda o, a, n: -n[..., 0] ** 2)
"""


def test_a_file_is_a_module_among_its_neighbours(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "beside_mine.py").write_text("LOW = 0.5")
    (tmp_path / "own_file.py").write_text(FILE)
    assert load_family(str(tmp_path / "own_file.py")).simulate(torch.tensor([[1.0]])).batch_size == 1
    (tmp_path / "json.py").write_text(FILE.replace("Own-v0", "Own-v1"))  # named like a module of Python's
    load_family(str(tmp_path / "json.py"))
    assert hasattr(sys.modules["json"], "dumps")


def test_check_env_command(tmp_path, capsys):
    assert main(["cartpole", "env.options.half=false"]) == 0
    assert "12 of 12" in capsys.readouterr().out
    for words in (["cartpole", "env.file=x.py"], ["cartpole", "speed=3"]):
        assert main(words) == 2
    assert "E-CFG" in capsys.readouterr().err
    pendulum = Path(__file__).parents[2] / "examples" / "pendulum.py"
    path = tmp_path / "mine.py"
    path.write_text(pendulum.read_text().replace("0.1 * speed", "0.2 * speed"))
    assert main([f"env.file={path}"]) == 3
    assert "FAIL  reward       within" in capsys.readouterr().out
