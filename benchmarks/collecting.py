"""Closed-loop collection on 16 half-cheetah tasks, against gymnasium's vector env and bare `mj_step`."""

from __future__ import annotations

from collections.abc import Callable

import gymnasium
import mujoco
import numpy as np
import torch
from gymnasium.vector import SyncVectorEnv
from torch import Tensor

from benchmarks.measure import Ratio, compare, ratio
from benchmarks.setting import prepare
from mbrl_lightning.data.collect import collect
from mbrl_lightning.envs.bodies.half_cheetah import FRAME_SKIP
from mbrl_lightning.envs.bodies.mujoco import nominal_model

Act = Callable[[Tensor], Tensor]
TASKS, STEPS = 16, 250
OURS, VECTOR, BARE = "data.collect", "SyncVectorEnv", "bare mj_step"


def gymnasium_env(task: np.ndarray) -> gymnasium.Env:
    """One half-cheetah with its mass and damping scaled."""
    env = gymnasium.make("HalfCheetah-v5", exclude_current_positions_from_observation=False)
    model = env.unwrapped.model
    model.body_mass[:] *= task[0]
    model.dof_damping[:] *= task[1]
    mujoco.mj_setConst(model, env.unwrapped.data)
    return env


class Vector:
    """The policy in `SyncVectorEnv`; what was seen, done and earned is kept."""

    def __init__(self, tasks: np.ndarray, act: Act) -> None:
        self.envs = SyncVectorEnv([lambda task=task: gymnasium_env(task) for task in tasks])
        self.act = act

    def __call__(self) -> None:
        """`STEPS` steps of all tasks."""
        first, _ = self.envs.reset(seed=0)
        observation = torch.as_tensor(first, dtype=torch.float32)
        kept = []
        for _ in range(STEPS):
            action = self.act(observation).clamp(-1, 1)
            following, *rest, _ = self.envs.step(action.numpy())
            seen, observation = observation, torch.as_tensor(following, dtype=torch.float32)
            kept.append((seen, action, observation, *map(torch.as_tensor, rest)))  # reward, terminated, truncated
        [torch.stack(column, 1) for column in zip(*kept, strict=True)]


class Bare:
    """The policy and `mj_step`; positions and velocities are read, nothing is kept."""

    def __init__(self, tasks: np.ndarray, act: Act) -> None:
        self.act = act
        self.models = [mujoco.MjModel.from_xml_path(xml_path()) for _ in tasks]
        for model, task in zip(self.models, tasks, strict=True):
            model.body_mass[:] *= task[0]
            model.dof_damping[:] *= task[1]
            mujoco.mj_setConst(model, mujoco.MjData(model))
        self.datas = [mujoco.MjData(model) for model in self.models]

    def __call__(self) -> None:
        """`STEPS` steps of all tasks."""
        for model, data in zip(self.models, self.datas, strict=True):
            mujoco.mj_resetData(model, data)
        observation = np.zeros((len(self.datas), 18), dtype=np.float32)
        for _ in range(STEPS):
            action = self.act(torch.from_numpy(observation)).clamp(-1, 1).numpy()
            for row, (model, data) in enumerate(zip(self.models, self.datas, strict=True)):
                data.ctrl[:] = action[row]
                mujoco.mj_step(model, data, FRAME_SKIP)
                observation[row, :9], observation[row, 9:] = data.qpos, data.qvel


def xml_path() -> str:
    """Path of the half-cheetah that gymnasium brings."""
    nominal_model("half_cheetah.xml")  # sends MuJoCo's warning about the file to logging
    return str(gymnasium.envs.mujoco.__path__[0]) + "/assets/half_cheetah.xml"


def run(repeats: int) -> list[Ratio]:
    """Both ratios."""
    setting = prepare("half_cheetah")
    family, algorithm, draw = setting.family, setting.algorithm, setting.generator
    tasks, belief = family.test[:TASKS], algorithm.begin(TASKS)
    simulator = family.simulate(tasks)

    @torch.no_grad()
    def act(observation: Tensor) -> Tensor:
        """The belief-conditioned policy that all three sides call, `[16, 18] -> [16, 6]`."""
        return algorithm.act(belief, observation, draw)[0]

    sides = {
        OURS: lambda: collect(simulator, family.spec, algorithm, belief, STEPS, draw, draw),
        VECTOR: Vector(tasks.numpy(), act),
        BARE: Bare(tasks.numpy(), act),
    }
    seconds = compare(sides, repeats, 1)
    case = f"{TASKS} half-cheetah tasks x {STEPS} steps"
    return [
        ratio("closed-loop collection", case, seconds, VECTOR, OURS, floor=1.5),
        ratio("closed-loop collection", case, seconds, OURS, BARE, ceiling=1.3),
    ]
