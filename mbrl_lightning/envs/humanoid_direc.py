"""A humanoid that is to run forwards or backwards, which is hidden and switches in flight (M3PO, after ProMP).

The slim humanoid's 45 observations, features and targets. The reward's speed is that of the centre of mass, which they do
not determine: a model has to learn it with the rest of the reward.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from mbrl_lightning.envs import slim_humanoid
from mbrl_lightning.envs.family import TaskFamily
from mbrl_lightning.envs.mujoco import MujocoBody, MujocoSimulator, centre_of_mass, paint_direction
from mbrl_lightning.envs.switching_family import (
    Body,
    PreviousReward,
    directions,
    switching_family,
    switching_spec,
    travelled,
)

SPEED_WEIGHT, ALIVE_BONUS, POSITIONS = 1.25, 5.0, 24
EFFORT = slim_humanoid.CONTROL_COST * slim_humanoid.CONTROL_SCALE**2


def observe(qpos: np.ndarray, qvel: np.ndarray, before: np.ndarray) -> np.ndarray:
    """[B, 46]: mean forward speed of the centre of mass over the step, then the slim humanoid's observation."""
    speed = (qpos[:, [POSITIONS]] - before[:, [POSITIONS]]) / slim_humanoid.DT
    return np.concatenate([speed, slim_humanoid.observe(qpos[:, :POSITIONS], qvel, before)], 1)


def reward(before: Tensor, action: Tensor, after: Tensor, tasks: Tensor) -> Tensor:
    """1.25 d v - 0.1 |0.4 a|^2 + 5."""
    return SPEED_WEIGHT * tasks[..., 0] * after[..., 0] - EFFORT * action.square().sum(-1) + ALIVE_BONUS


def humanoid_direc(
    switch_every_steps: int | None = 300,
    jitter: float = 0.1,
    horizon: int = 1000,
    flip: bool = False,
    previous_reward: PreviousReward = "observation",
    threads: int = 1,
) -> TaskFamily:
    """Run along +x or -x, which is hidden and drawn anew every 270 to 330 steps of 0.015 s; sums of rewards.

    Reward 1.25 d v - 0.1 |0.4 a|^2 + 5, v the centre of mass's speed; contact forces cost nothing. The episode ends where the
    torso's height leaves [1, 2] m. Test tasks: each direction ten times, the direction in which an episode starts.

    Args:
        switch_every_steps: mean steps between switches; None: only at the start of an episode.
        jitter: relative half-width of those steps.
        horizon: steps per episode.
        flip: a switch always turns round; otherwise the direction is drawn anew and may stay.
        previous_reward: where networks see it, "observation" or "history" only.
        threads: threads for MuJoCo; results do not depend on it.
    """
    physics = MujocoBody(
        "humanoid.xml",
        slim_humanoid.FRAME_SKIP,
        slim_humanoid.CONTROL_SCALE,
        paint_direction,
        slim_humanoid.reset_noise,
        observe,
        centre_of_mass,
    )
    body = Body(
        slim_humanoid.OBSERVATION_NAMES,
        ("x_speed_mean [m/s]",),
        17,
        lambda spec, tasks: MujocoSimulator(spec, physics, tasks, threads),
        features=slim_humanoid.features,
        target=slim_humanoid.target,
        untarget=slim_humanoid.untarget,
    )
    metrics = travelled(slim_humanoid.DT, EFFORT, ALIVE_BONUS, SPEED_WEIGHT, falls=True)
    spec = switching_spec("humanoid_direc", body, horizon, previous_reward, slim_humanoid.fallen, metrics)
    return switching_family(spec, body, directions(flip), reward, switch_every_steps, jitter)
