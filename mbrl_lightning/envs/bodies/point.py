"""A point in the plane with a velocity: v' = v + 0.5 (a - 0.5 v), so that a kept action leads to the speed 2 a."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from mbrl_lightning.envs.bodies.body import Body
from mbrl_lightning.envs.bodies.shapes import Canvas
from mbrl_lightning.envs.bodies.torch_simulator import TorchSimulator

GAIN, DRAG, START, VIEW, MARK = 0.5, 0.5, 0.1, 20.0, 10.0
NAMES = ("x_velocity [1/step]", "y_velocity [1/step]")
COLOURS = {1: (40, 90, 200), -1: (230, 120, 20)}


def transition(state: Tensor, action: Tensor, tasks: Tensor) -> Tensor:
    """One step of (x, y, v_x, v_y) [..., 4] under action [..., 2]; the task does not matter to it."""
    place, velocity = state.split(2, -1)
    velocity = velocity + GAIN * (action - DRAG * velocity)
    return torch.cat([place + velocity, velocity], -1)


def initial(batch: int, generator: torch.Generator) -> Tensor:
    """In the middle, velocities with a deviation of 0.1: float64 [batch, 4]."""
    noise = torch.randn(batch, 2, generator=generator, dtype=torch.float64, device=generator.device)
    return torch.cat([torch.zeros_like(noise), START * noise], -1)


def picture(state: Tensor, task: Tensor) -> Canvas:
    """The point and its velocity before passing marks, coloured by the wanted direction (blue +x, orange -x)."""
    canvas, (x, _, right, up), direction = Canvas(VIEW), state.tolist(), int(task[0])
    for place in np.arange(-VIEW + (VIEW - x) % MARK, VIEW, MARK).tolist():
        canvas.segment((place, -VIEW), (place, VIEW), 0.3, (215, 215, 215))
    canvas.segment((0.0, 0.0), (5 * right, 5 * up), 0.6, (90, 90, 90))
    canvas.segment((0.0, 0.0), (0.0, 0.0), 3.0, COLOURS[direction])
    canvas.segment((0.0, -VIEW + 2), (direction * VIEW / 2, -VIEW + 2), 1.0, COLOURS[direction])
    return canvas


def point_body() -> Body:
    """The body; what is paid is its velocity along x, the third entry behind the unseen place."""
    build = functools.partial(TorchSimulator, initial=initial, transition=transition, draw=picture)
    return Body(NAMES, 2, 1.0, build, unseen=("x", "y"), speed=2)
