"""Acrobot: swing a double pendulum up by torque on its elbow.

Physics of gymnasium's Acrobot-v1 ("book" equations, one Runge-Kutta step of 0.2 s, moments of inertia not changed with the
masses). Observation (theta1, theta1', theta2, theta2') in the papers' order, angles wrapped to [-pi, pi].
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from mbrl_lightning.envs.bodies.shapes import Canvas
from mbrl_lightning.envs.bodies.torch_simulator import TorchSimulator
from mbrl_lightning.envs.spec import EnvSpec

GRAVITY, DT, LENGTH, CENTRE, INERTIA = 9.8, 0.2, 1.0, 0.5, 1.0
MAX_SPEED_1, MAX_SPEED_2 = 4 * math.pi, 9 * math.pi


def wrap(angle: Tensor) -> Tensor:
    """The same angle in [-pi, pi)."""
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi


def _limit(state: Tensor) -> Tensor:
    first, speed, second, spin = state.unbind(-1)
    speed, spin = speed.clamp(-MAX_SPEED_1, MAX_SPEED_1), spin.clamp(-MAX_SPEED_2, MAX_SPEED_2)
    return torch.stack([wrap(first), speed, wrap(second), spin], -1)


def derivative(state: Tensor, torque: Tensor, tasks: Tensor) -> Tensor:
    """Time derivative [..., 4] of the state [..., 4] under ``torque`` [...] (N m), tasks [..., 2] in kg."""
    first, speed, second, spin = state.unbind(-1)
    m1, m2 = tasks.unbind(-1)
    sin, cos = second.sin(), second.cos()
    d1 = m1 * CENTRE**2 + m2 * (LENGTH**2 + CENTRE**2 + 2 * LENGTH * CENTRE * cos) + 2 * INERTIA
    d2 = m2 * (CENTRE**2 + LENGTH * CENTRE * cos) + INERTIA
    phi2 = m2 * CENTRE * GRAVITY * (first + second).sin()
    turning = -m2 * LENGTH * CENTRE * spin * (spin + 2 * speed) * sin
    phi1 = turning + (m1 * CENTRE + m2 * LENGTH) * GRAVITY * first.sin() + phi2
    force = torque + d2 / d1 * phi1 - m2 * LENGTH * CENTRE * speed**2 * sin - phi2
    elbow = force / (m2 * CENTRE**2 + INERTIA - d2**2 / d1)
    return torch.stack([speed, -(d2 * elbow + phi1) / d1, spin, elbow], -1)


def transition(state: Tensor, action: Tensor, tasks: Tensor) -> Tensor:
    """One step: state [..., 4], one-hot action [..., 3], tasks [..., 2]."""
    torque = action_features(action)[..., 0]
    k1 = derivative(state, torque, tasks)
    k2 = derivative(state + DT / 2 * k1, torque, tasks)
    k3 = derivative(state + DT / 2 * k2, torque, tasks)
    k4 = derivative(state + DT * k3, torque, tasks)
    return _limit(state + DT / 6 * (k1 + 2 * k2 + 2 * k3 + k4))


def initial(batch: int, generator: torch.Generator) -> Tensor:
    """U[-0.1, 0.1] on all four entries, float64 [batch, 4]; 0 hangs down."""
    return 0.2 * torch.rand(batch, 4, generator=generator, dtype=torch.float64, device=generator.device) - 0.1


def succeeded(observation: Tensor) -> Tensor:
    """Bool [...]: the tip is above the goal line; the episode ends there."""
    first, second = observation[..., 0], observation[..., 2]
    return -LENGTH * first.cos() - LENGTH * (first + second).cos() - LENGTH > 0


def reward(observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
    """-1 per step until the goal is reached, 0 on the step that reaches it."""
    return succeeded(next_observation).to(next_observation.dtype) - 1


def features(observation: Tensor) -> Tensor:
    """Sin and cos of both angles, velocities scaled to about [-1, 1]: [..., 6]."""
    first, speed, second, spin = observation.unbind(-1)
    turned = [first.sin(), first.cos(), second.sin(), second.cos()]
    return torch.stack([*turned, speed / math.pi, spin / (2 * math.pi)], -1)


def action_features(action: Tensor) -> Tensor:
    """The torque in N m, [..., 1], of a one-hot action [..., 3]: -1, 0 or +1."""
    return action[..., 2:3] - action[..., 0:1]


def target(observation: Tensor, next_observation: Tensor) -> Tensor:
    """Differences, those of the angles taken the short way round: [..., 4]."""
    first, speed, second, spin = (next_observation - observation).unbind(-1)
    return torch.stack([wrap(first), speed, wrap(second), spin], -1)


def untarget(observation: Tensor, change: Tensor) -> Tensor:
    """Inverse of :func:`target`: angles wrapped, velocities clipped to the physics' limits."""
    return _limit(observation + change)


def picture(state: Tensor, task: Tensor) -> Canvas:
    """Both links and the goal line."""
    canvas, (first, _, second, _) = Canvas(2.2), state.tolist()
    canvas.segment((-2.2, LENGTH), (2.2, LENGTH), 0.03, (230, 120, 120))
    elbow = (LENGTH * math.sin(first), -LENGTH * math.cos(first))
    tip = (elbow[0] + LENGTH * math.sin(first + second), elbow[1] - LENGTH * math.cos(first + second))
    canvas.segment((0.0, 0.0), elbow, 0.12 * float(task[0]), (60, 60, 60))
    canvas.segment(elbow, tip, 0.12 * float(task[1]), (40, 90, 170))
    return canvas


build = functools.partial(TorchSimulator, initial=initial, transition=transition, draw=picture)
SPEC = EnvSpec(
    "acrobot",
    ("angle_1 [rad]", "velocity_1 [rad/s]", "angle_2 [rad]", "velocity_2 [rad/s]"),
    action_dim=3,
    horizon=200,
    unit="step",
    reward=reward,
    termination=succeeded,
    features=features,
    target=target,
    untarget=untarget,
    discrete=True,
    action_features=action_features,
    change=target,
)
