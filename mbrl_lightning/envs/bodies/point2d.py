"""MB-MPO's point in the plane: s' = s + 0.1 a, to be brought to the origin. A check of the code, in seconds.

Both axes are alike and go their own way, so the optimum is known: full speed towards 0 on each. From U[-2, 2] its mean
return is -2 * 10^-3 / 6 * sum_{k <= 20} k^3 = -14.7.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from mbrl_lightning.envs.bodies.shapes import Canvas
from mbrl_lightning.envs.bodies.torch_simulator import TorchSimulator
from mbrl_lightning.envs.spec import EnvSpec

STEP, START, HORIZON = 0.1, 2.0, 30
OPTIMUM = -2 * STEP**3 / 6 * sum(k**3 for k in range(21))


def transition(state: Tensor, action: Tensor, tasks: Tensor) -> Tensor:
    """One step of states [..., 2] under actions [..., 2] in [-1, 1]; tasks are ignored."""
    return state + STEP * action


def initial(batch: int, generator: torch.Generator) -> Tensor:
    """U[-2, 2] on both axes, float64 [batch, 2]."""
    unit = torch.rand(batch, 2, generator=generator, dtype=torch.float64, device=generator.device)
    return START * (2 * unit - 1)


def pursuit(state: Tensor, action: Tensor, tasks: Tensor) -> Tensor:
    """The same of (x, y, last reward) [..., 3]: what is paid is minus the distance from the goal, tasks [..., 2], afterwards."""
    place = transition(state[..., :2], action, tasks)
    return torch.cat([place, -(place - tasks).norm(dim=-1, keepdim=True)], -1)


def middle(batch: int, generator: torch.Generator) -> Tensor:
    """The origin and no reward yet, float64 [batch, 3]."""
    return torch.zeros(batch, 3, dtype=torch.float64)


def reward(observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
    """-|s|^2 of the state *before* the step (MB-MPO's text; its code pays -|s'|)."""
    return -observation.square().sum(-1)


def best_action(observation: Tensor) -> Tensor:
    """The optimal action [..., 2]: towards 0 on both axes, as far as a step goes."""
    return (-observation / STEP).clamp(-1, 1)


def picture(state: Tensor, task: Tensor) -> Canvas:
    """The point and the origin."""
    return pursuit_picture(state, torch.zeros(2))


def pursuit_picture(state: Tensor, task: Tensor) -> Canvas:
    """The point and its goal."""
    canvas, place, goal = Canvas(START + 0.5), (float(state[0]), float(state[1])), (float(task[0]), float(task[1]))
    canvas.segment(goal, goal, 0.15, (200, 200, 200))
    canvas.segment(place, place, 0.2, (40, 90, 200))
    return canvas


SPEC = EnvSpec("point2d", ("x", "y"), action_dim=2, horizon=HORIZON, unit="episode", reward=reward)
build = functools.partial(TorchSimulator, initial=initial, transition=transition, draw=picture)
