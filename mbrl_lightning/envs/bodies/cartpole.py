"""Cart-pole swing-up (equations of deep PILCO).

A pole, a uniform rod of length 0.6 m, hangs from a cart; a force on the cart must swing it up and hold it with its tip at
(0, 0.6). The angle is 0 when upright, pi when hanging, unwrapped. Explicit Euler with step 0.1 s and all four derivatives
taken at the old state: coarse, and part of the definition of the problem.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from mbrl_lightning.envs.bodies.shapes import Canvas
from mbrl_lightning.envs.bodies.torch_simulator import TorchSimulator
from mbrl_lightning.envs.spec import EnvSpec

GRAVITY, LENGTH, FRICTION, DT, MAX_FORCE, COST_WIDTH = 9.82, 0.6, 0.1, 0.1, 10.0, 0.25


def transition(state: Tensor, action: Tensor, tasks: Tensor) -> Tensor:
    """One Euler step of (x, x', theta, theta') [..., 4] under action [..., 1] in [-1, 1], tasks [..., 2]."""
    _, speed, angle, spin = state.unbind(-1)
    cart, pole = tasks.unbind(-1)
    force = MAX_FORCE * action[..., 0]
    sin, cos, total = angle.sin(), angle.cos(), cart + pole
    pull = -2 * pole * LENGTH * spin**2 * sin + 3 * pole * GRAVITY * sin * cos + 4 * force - 4 * FRICTION * speed
    turn = -3 * pole * LENGTH * spin**2 * sin * cos + 6 * total * GRAVITY * sin + 6 * (force - FRICTION * speed) * cos
    acceleration = pull / (4 * total - 3 * pole * cos**2)
    angular = turn / (4 * LENGTH * total - 3 * pole * LENGTH * cos**2)
    return state + DT * torch.stack([speed, acceleration, spin, angular], -1)


def initial(batch: int, generator: torch.Generator) -> Tensor:
    """Hanging at rest, every entry with a standard deviation of 0.02; float64 [batch, 4]."""
    noise = torch.randn(batch, 4, generator=generator, dtype=torch.float64, device=generator.device)
    return 0.02 * noise + noise.new_tensor([0.0, 0.0, math.pi, 0.0])


def features(observation: Tensor) -> Tensor:
    """(x, x', sin theta, cos theta, theta'), [..., 5]: a model errs 7 times less than with the raw angle."""
    x, speed, angle, spin = observation.unbind(-1)
    return torch.stack([x, speed, angle.sin(), angle.cos(), spin], -1)


def cartpole_spec(name: str, half: bool, tip_sign: float) -> EnvSpec:
    """Reward -(1 - exp(-d^2 / (2 sigma^2))) of the next state, in [-1, 0]; without ``half`` the exponent is twice that.

    d is the distance of the pole's tip (x + ``tip_sign`` l sin(theta)) to its upright place over the origin, sigma 0.25 m.
    """
    width = COST_WIDTH**2 * (2 if half else 1)

    def reward(observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
        x, angle = next_observation[..., 0], next_observation[..., 2]
        across, below = x + tip_sign * LENGTH * angle.sin(), LENGTH * (angle.cos() - 1)
        return torch.expm1(-(across**2 + below**2) / width)

    names = ("x [m]", "x_velocity [m/s]", "angle [rad]", "angular_velocity [rad/s]")
    return EnvSpec(name, names, action_dim=1, horizon=25, unit="step", reward=reward, features=features)


def picture(state: Tensor, task: Tensor) -> Canvas:
    """Cart and pole, the tip at x - l sin(theta): the side on which the equations conserve energy."""
    canvas, (x, _, angle, _) = Canvas(2.0), state.tolist()
    cart, pole = task.tolist()
    canvas.segment((-2.0, 0.0), (2.0, 0.0), 0.02, (200, 200, 200))
    canvas.segment((0.0, LENGTH), (0.0, LENGTH), 0.1, (230, 120, 120))
    canvas.segment((x - 0.15, 0.0), (x + 0.15, 0.0), 0.12 * cart ** (1 / 3), (60, 60, 60))
    tip = (x - LENGTH * math.sin(angle), LENGTH * math.cos(angle))
    canvas.segment((x, 0.0), tip, 0.06 * pole ** (1 / 3), (40, 90, 170))
    return canvas


build = functools.partial(TorchSimulator, initial=initial, transition=transition, draw=picture)
