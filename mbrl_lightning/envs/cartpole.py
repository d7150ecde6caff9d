"""Cart-pole swing-up with varying masses (GSSM; equations of deep PILCO).

A pole, a uniform rod of length 0.6 m, hangs from a cart; a force on the cart must swing it up and hold it
with its tip at (0, 0.6). The angle is 0 when upright, pi when hanging, raw and unwrapped. Explicit Euler with
step 0.1 s and all four derivatives taken at the old state: coarse, and part of the definition of the problem.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from mbrl_lightning.envs.family import Box, TaskFamily
from mbrl_lightning.envs.spec import EnvSpec
from mbrl_lightning.envs.torch_simulator import Canvas, TorchSimulator

GRAVITY, LENGTH, FRICTION, DT, MAX_FORCE, COST_WIDTH = 9.82, 0.6, 0.1, 0.1, 10.0, 0.25
HORIZON, CONTEXT_STEPS, TEST_TASKS, TEST_SEED = 25, 50, 50, 20250
PARAMETERS = ("cart_mass", "pole_mass")


def transition(state: Tensor, action: Tensor, tasks: Tensor) -> Tensor:
    """One Euler step of (x, x', theta, theta') [..., 4] under action [..., 1] in [-1, 1], tasks [..., 2]."""
    _, speed, angle, spin = state.unbind(-1)
    cart, pole = tasks.unbind(-1)
    force = MAX_FORCE * action[..., 0]
    sin, cos, total = angle.sin(), angle.cos(), cart + pole
    acceleration = (
        -2 * pole * LENGTH * spin**2 * sin + 3 * pole * GRAVITY * sin * cos + 4 * force - 4 * FRICTION * speed
    ) / (4 * total - 3 * pole * cos**2)
    angular = (
        -3 * pole * LENGTH * spin**2 * sin * cos + 6 * total * GRAVITY * sin + 6 * (force - FRICTION * speed) * cos
    ) / (4 * LENGTH * total - 3 * pole * LENGTH * cos**2)
    return state + DT * torch.stack([speed, acceleration, spin, angular], -1)


def initial(batch: int, generator: torch.Generator) -> Tensor:
    """Hanging at rest, every entry with a standard deviation of 0.02; float64 [batch, 4]."""
    noise = torch.randn(batch, 4, generator=generator, dtype=torch.float64, device=generator.device)
    return 0.02 * noise + noise.new_tensor([0.0, 0.0, math.pi, 0.0])


def features(observation: Tensor) -> Tensor:
    """(x, x', sin theta, cos theta, theta'), [..., 5]: a model errs 7 times less than with the raw angle."""
    x, speed, angle, spin = observation.unbind(-1)
    return torch.stack([x, speed, angle.sin(), angle.cos(), spin], -1)


def make_spec(name: str, half: bool, tip_sign: float) -> EnvSpec:
    """The cart-pole's spec; see :func:`cartpole` for the two variants of the reward."""
    width = COST_WIDTH**2 * (2 if half else 1)

    def reward(observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
        x, angle = next_observation[..., 0], next_observation[..., 2]
        across, below = x + tip_sign * LENGTH * angle.sin(), LENGTH * (angle.cos() - 1)
        return torch.expm1(-(across**2 + below**2) / width)

    names = ("x [m]", "x_velocity [m/s]", "angle [rad]", "angular_velocity [rad/s]")
    return EnvSpec(name, names, action_dim=1, horizon=HORIZON, unit="step", reward=reward, features=features)


def picture(state: Tensor, task: Tensor) -> np.ndarray:
    """Cart and pole, the tip at x - l sin(theta): the side on which the equations conserve energy."""
    canvas, (x, _, angle, _) = Canvas(2.0), state.tolist()
    cart, pole = task.tolist()
    canvas.segment((-2.0, 0.0), (2.0, 0.0), 0.02, (200, 200, 200))
    canvas.segment((0.0, LENGTH), (0.0, LENGTH), 0.1, (230, 120, 120))
    canvas.segment((x - 0.15, 0.0), (x + 0.15, 0.0), 0.12 * cart ** (1 / 3), (60, 60, 60))
    tip = (x - LENGTH * math.sin(angle), LENGTH * math.cos(angle))
    canvas.segment((x, 0.0), tip, 0.06 * pole ** (1 / 3), (40, 90, 170))
    return canvas.picture


def _family(name: str, train: Box, beyond: Box, half: bool, tip_sign: float) -> TaskFamily:
    spec = make_spec(name, half, tip_sign)
    return TaskFamily(
        spec=spec,
        parameters=PARAMETERS,
        draw=train.sample,
        build=lambda tasks: TorchSimulator(spec, tasks, initial, transition, picture),
        rescale=train.scale,
        test=train.draws(TEST_TASKS, TEST_SEED),
        extreme=beyond.draws(TEST_TASKS, TEST_SEED + 1, outside=train),
        context_steps=CONTEXT_STEPS,
    )


def cartpole(half: bool = True, tip_sign: float = 1.0) -> TaskFamily:
    """The paper's range: cart mass U[1, 2] kg, pole mass U[0.7, 1] kg; 50 fixed test tasks.

    Reward -(1 - exp(-d^2 / (2 sigma^2))) of the next state, d = distance of the pole's tip to its upright
    place over the origin, sigma = 0.25 m; in [-1, 0]. Reported as mean per step over 25 steps. Uniform random
    forces: -0.976. Extreme tasks: cart in [0.5, 3], pole in [0.35, 1.5] with at least one of the two outside
    the training range.

    Args:
        half: True is deep PILCO's exponent d^2 / (2 sigma^2); False is GSSM's table, d^2 / sigma^2.
        tip_sign: +1 is deep PILCO's tip x + l sin(theta); -1 is the side on which the equations conserve
            energy.
    """
    return _family("cartpole", Box((1.0, 0.7), (2.0, 1.0)), Box((0.5, 0.35), (3.0, 1.5)), half, tip_sign)


def cartpole_wide(half: bool = True, tip_sign: float = 1.0) -> TaskFamily:
    """As :func:`cartpole`, cart mass U[0.3, 4] and pole mass U[0.2, 1.5] kg: here knowing the masses pays.

    Extreme tasks: cart in [0.2, 6], pole in [0.15, 2.2] with at least one of the two outside the training
    range.
    """
    return _family("cartpole_wide", Box((0.3, 0.2), (4.0, 1.5)), Box((0.2, 0.15), (6.0, 2.2)), half, tip_sign)
