"""A point in the plane whose wanted direction is hidden and turns round every 50 steps or so: M3PO in a minute.

Velocity v' = v + 0.5 (a - 0.5 v), so that a kept action leads to the speed 2 a; reward d v'_x - 0.1 |a|^2. Blind, the best
return is 0; with the direction known about 340 in 200 steps.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mbrl_lightning.envs.family import TaskFamily
from mbrl_lightning.envs.switching_family import (
    Body,
    PreviousReward,
    directions,
    switching_family,
    switching_spec,
    travelled,
)
from mbrl_lightning.envs.told import tell
from mbrl_lightning.envs.torch_simulator import Canvas, TorchSimulator

GAIN, DRAG, EFFORT, START, CONTEXT_STEPS, VIEW, MARK = 0.5, 0.5, 0.1, 0.1, 50, 20.0, 10.0
NAMES, PLACE = ("x_velocity [1/step]", "y_velocity [1/step]"), ("x", "y")
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


def reward(before: Tensor, action: Tensor, after: Tensor, tasks: Tensor) -> Tensor:
    """Speed after the step in the hidden direction, less 0.1 |a|^2."""
    return tasks[..., 0] * after[..., 2] - EFFORT * action.square().sum(-1)


def picture(state: Tensor, task: Tensor) -> np.ndarray:
    """The point and its velocity before passing marks, coloured by the wanted direction (blue +x, orange -x)."""
    canvas, (x, _, right, up), direction = Canvas(VIEW), state.tolist(), int(task[0])
    for place in np.arange(-VIEW + (VIEW - x) % MARK, VIEW, MARK).tolist():
        canvas.segment((place, -VIEW), (place, VIEW), 0.3, (215, 215, 215))
    canvas.segment((0.0, 0.0), (5 * right, 5 * up), 0.6, (90, 90, 90))
    canvas.segment((0.0, 0.0), (0.0, 0.0), 3.0, COLOURS[direction])
    canvas.segment((0.0, -VIEW + 2), (direction * VIEW / 2, -VIEW + 2), 1.0, COLOURS[direction])
    return canvas.picture


def point_switch(
    switch_every_steps: int | None = 50,
    jitter: float = 0.1,
    horizon: int = 200,
    flip: bool = True,
    previous_reward: PreviousReward = "history",
    told: bool = False,
) -> TaskFamily:
    """The wanted direction along x turns round every 45 to 55 steps; sums of 200 rewards.

    Test tasks: each direction ten times, the direction in which an episode starts.

    Args:
        switch_every_steps: mean steps between switches; None: only at the start of an episode.
        jitter: relative half-width of those steps.
        horizon: steps per episode.
        flip: a switch always turns round; otherwise the direction is drawn anew and may stay.
        previous_reward: "history": only the history tells the direction; "observation": one observation does.
        told: show the direction: the ceiling of what a history can be worth.
    """
    body = Body(NAMES, PLACE, 2, lambda spec, tasks: TorchSimulator(spec, tasks, initial, transition, picture))
    spec = switching_spec("point_switch", body, horizon, previous_reward, metrics=travelled(1.0, EFFORT))
    family = switching_family(spec, body, directions(flip), reward, switch_every_steps, jitter, CONTEXT_STEPS)
    return tell(family) if told else family
