"""Walker2D whose torso mass and ground friction are hidden and switch in flight (M3PO, after rand_param_envs)."""

from __future__ import annotations

import functools

import mujoco
import numpy as np
import torch
from torch import Tensor

from mbrl_lightning.envs.family import Box, TaskFamily
from mbrl_lightning.envs.half_cheetah import planar_features
from mbrl_lightning.envs.mujoco import MujocoBody, MujocoSimulator, paint
from mbrl_lightning.envs.switching_family import (
    Body,
    PreviousReward,
    boxed,
    switching_family,
    switching_spec,
    travelled,
)

DT, FRAME_SKIP, HEIGHTS, LARGEST_PITCH, LARGEST_SPEED, RESET_SCALE = 0.008, 4, (0.8, 2.0), 1.0, 10.0, 0.005
ALIVE_BONUS, CONTROL_COST, BASE, LIMIT = 1.0, 1e-3, 1.5, 3.0
FLOOR, TORSO, PARAMETERS = 0, 1, ("torso_mass_scale", "friction_scale")
JOINTS = tuple(f"{joint}{side}" for side in ("", "_left") for joint in ("thigh", "leg", "foot"))
NAMES = (
    "z [m]",
    "pitch [rad]",
    *(f"{joint} [rad]" for joint in JOINTS),
    "x_velocity [m/s]",
    "z_velocity [m/s]",
    "pitch_velocity [rad/s]",
    *(f"{joint}_velocity [rad/s]" for joint in JOINTS),
)


def observe(qpos: np.ndarray, qvel: np.ndarray, before: np.ndarray) -> np.ndarray:
    """[B, 18]: mean forward speed over the step, positions without x, velocities clipped to +-10."""
    speed = (qpos[:, :1] - before[:, :1]) / DT
    return np.concatenate([speed, qpos[:, 1:], np.clip(qvel, -LARGEST_SPEED, LARGEST_SPEED)], 1)


def reset_noise(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Gymnasium's start: U[-0.005, 0.005] on the 9 positions and 9 velocities."""
    unit = torch.rand(batch, 18, generator=generator, dtype=torch.float64, device=generator.device)
    noise = RESET_SCALE * (2 * unit - 1)
    return noise[:, :9], noise[:, 9:]


def fallen(observation: Tensor) -> Tensor:
    """Bool [...]: torso height outside (0.8, 2) m, or pitch outside (-1, 1) rad."""
    height, pitch = observation[..., 0], observation[..., 1]
    return (height <= HEIGHTS[0]) | (height >= HEIGHTS[1]) | (pitch.abs() >= LARGEST_PITCH)


def write_parameters(
    model: mujoco.MjModel, nominal: mujoco.MjModel, task: np.ndarray, scale_inertia: bool = True
) -> None:
    """Write task = (torso mass scale, floor friction scale); heavy torsos are red, slippery floors pale.

    The floor's friction alone decides (priority 1): otherwise the larger one would, and that is the feet's 1.9.
    """
    model.body_mass[TORSO] = nominal.body_mass[TORSO] * task[0]
    model.body_inertia[TORSO] = nominal.body_inertia[TORSO] * (task[0] if scale_inertia else 1.0)
    model.geom_friction[FLOOR] = nominal.geom_friction[FLOOR] * task[1]
    model.geom_priority[FLOOR] = 1
    shares = np.clip(np.log(task) / np.log(BASE) / (2 * LIMIT) + 0.5, 0, 1)
    heavy, grip = (float(share) for share in shares)
    paint(model, [TORSO], (heavy, 0.2, 1 - heavy))
    model.geom_rgba[FLOOR, :3] = 1.0 - 0.7 * grip  # over its chequers, which show that the walker moves


def walker2d_random_params(
    switch_every_steps: int | None = 300,
    jitter: float = 0.1,
    horizon: int = 1000,
    previous_reward: PreviousReward = "observation",
    scale_inertia: bool = True,
) -> TaskFamily:
    """Walk forwards while torso mass and ground friction, hidden, are drawn anew every 270 to 330 steps.

    Both are nominal values times 1.5^u, u ~ U[-3, 3]; nominal friction is the floor's 0.7. 20 fixed test draws, with which
    an episode starts. Reward (x' - x) / dt + 1 - 0.001 |a|^2, summed; dt = 0.008 s. The episode ends where the torso's height
    leaves (0.8, 2) m or its pitch (-1, 1) rad. Observation (17): gymnasium's (v5).

    Args:
        switch_every_steps: mean steps between switches; None: only at the start of an episode.
        jitter: relative half-width of those steps.
        horizon: steps per episode.
        previous_reward: where networks see it, "observation" or "history" only.
        scale_inertia: scale the torso's rotational inertia with its mass.
    """
    edit = functools.partial(write_parameters, scale_inertia=scale_inertia)
    physics = MujocoBody("walker2d_v5.xml", FRAME_SKIP, 1.0, edit, reset_noise, observe)
    body = Body(
        NAMES,
        ("x_speed_mean [m/s]",),
        6,
        lambda spec, tasks: MujocoSimulator(spec, physics, tasks),
        features=planar_features,
    )

    def reward(before: Tensor, action: Tensor, after: Tensor, tasks: Tensor) -> Tensor:
        return after[..., 0] - CONTROL_COST * action.square().sum(-1) + ALIVE_BONUS

    box = Box((BASE**-LIMIT,) * 2, (BASE**LIMIT,) * 2, log=True)
    metrics = travelled(DT, CONTROL_COST, ALIVE_BONUS, falls=True)
    spec = switching_spec("walker2d_random_params", body, horizon, previous_reward, fallen, metrics)
    return switching_family(spec, body, boxed(PARAMETERS, box), reward, switch_every_steps, jitter)
