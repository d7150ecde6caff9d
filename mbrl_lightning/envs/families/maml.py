"""A family of model-free meta-reinforcement learning (MAML, RL2): a point and a goal that it is not shown (Finn et al. 2017)."""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import torch
from torch import Tensor

from mbrl_lightning.envs.bodies import point2d as points
from mbrl_lightning.envs.bodies.torch_simulator import TorchSimulator
from mbrl_lightning.envs.family import TaskFamily
from mbrl_lightning.envs.learned_reward import received, rewarded
from mbrl_lightning.envs.spec import EnvSpec, identity

TEST_TASKS, CONTEXT_EPISODES = 20, 10


def circle(angles: Tensor) -> Tensor:
    """Goals at distance 1 from the origin, in directions [n] in rad, float64 [n, 2]."""
    return torch.stack([angles.cos(), angles.sin()], -1)


def point_goal(horizon: int = 20) -> TaskFamily:
    """Go from the origin to a goal anywhere at distance 1, by at most 0.1 per axis and step; minus distances, summed.

    Goals lie on a circle, where MAML's lie in a square around the start: whoever knows nothing of the goal does best by
    standing still, -1 a step. The last reward is the last entry of the observation, which only histories show to networks.
    """

    def draw(n: int, generator: torch.Generator) -> Tensor:
        unit = torch.rand(n, generator=generator, dtype=torch.float64, device=generator.device)
        return circle(2 * math.pi * unit.cpu())

    def paid(observation: Tensor, action: Tensor, next_observation: Tensor, tasks: Tensor) -> Tensor:
        return -(next_observation[..., :2] - tasks).norm(dim=-1)

    plain = EnvSpec("point_goal", ("x", "y"), action_dim=2, horizon=horizon, unit="episode", reward=received)
    spec = replace(rewarded(plain, shown=False), outcome=lambda following: following[..., 2:])
    build = functools.partial(
        TorchSimulator, spec, initial=points.middle, transition=points.pursuit, draw=points.pursuit_picture
    )
    return TaskFamily(
        spec=spec,
        parameters=("goal_x", "goal_y"),
        draw=draw,
        build=build,
        rescale=identity,
        test=circle(2 * math.pi * (torch.arange(TEST_TASKS, dtype=torch.float64) + 0.5) / TEST_TASKS),
        context_steps=CONTEXT_EPISODES * horizon,
        paid=paid,
    )
