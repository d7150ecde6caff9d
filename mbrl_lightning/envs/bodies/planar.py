"""Bodies of gymnasium in a plane: what the half-cheetah shares with them, hopper, walker (v5) and swimmer."""

from __future__ import annotations

import functools

import mujoco
import numpy as np
import torch
from torch import Tensor

from mbrl_lightning.envs.bodies.body import Body, uniform
from mbrl_lightning.envs.bodies.edits import leave, paint
from mbrl_lightning.envs.bodies.mujoco import Edit, MujocoBody, MujocoSimulator

LARGEST_SPEED = 10.0
HOPPER_DT, HOPPER_JOINTS, HOPPER_LOWEST, HOPPER_PITCH, HOPPER_LIMIT = 0.008, ("thigh", "leg", "foot"), 0.7, 0.2, 100.0
WALKER_DT, WALKER_HEIGHTS, WALKER_PITCH, WALKER_RESET = 0.008, (0.8, 2.0), 1.0, 0.005
WALKER_JOINTS = tuple(f"{joint}{side}" for side in ("", "_left") for joint in HOPPER_JOINTS)
BASE, LIMIT, FLOOR, TORSO = 1.5, 3.0, 0, 1  # a walker's task is BASE^u times nominal, u at most LIMIT
SWIMMER_DT, SWIMMER_ANGLES = 0.04, ("angle", "joint_1", "joint_2")


def observe_planar(qpos: np.ndarray, qvel: np.ndarray, before: np.ndarray, dt: float, hidden: int = 1) -> np.ndarray:
    """[B, 1 + S]: mean speed along x, positions but the first ``hidden``, velocities."""
    return np.concatenate([(qpos[:, :1] - before[:, :1]) / dt, qpos[:, hidden:], qvel], 1)


def observe_clipped(qpos: np.ndarray, qvel: np.ndarray, before: np.ndarray, dt: float) -> np.ndarray:
    """[B, 1 + S]: as :func:`observe_planar`, velocities within +-10."""
    return observe_planar(qpos, np.clip(qvel, -LARGEST_SPEED, LARGEST_SPEED), before, dt)


def planar_names(joints: tuple[str, ...]) -> tuple[str, ...]:
    """Entries of a body in the x-z plane: height, pitch and joints, then their velocities."""
    angles = ("pitch", *joints)
    speeds = (*(f"{axis}_velocity [m/s]" for axis in "xz"), *(f"{angle}_velocity [rad/s]" for angle in angles))
    return ("z [m]", *(f"{angle} [rad]" for angle in angles), *speeds)


def planar_features(observation: Tensor) -> Tensor:
    """Sine and cosine in the place of the pitch, the second entry: [..., S] -> [..., S + 1]."""
    pitch = observation[..., 1:2]
    return torch.cat([observation[..., :1], pitch.sin(), pitch.cos(), observation[..., 2:]], -1)


def hopper_fallen(entries: Tensor) -> Tensor:
    """Bool [...]: torso not above 0.7 m, pitch outside (-0.2, 0.2) rad, or a joint beyond 100 rad."""
    height, pitch = entries[..., 0], entries[..., 1]
    far = (entries[..., 1:].abs() >= HOPPER_LIMIT).any(-1)
    return (height <= HOPPER_LOWEST) | (pitch.abs() >= HOPPER_PITCH) | far


def hopper_body(scale: float) -> Body:
    """Three joints, steps of 0.008 s, 11 visible entries; it starts with U[-scale, scale] on positions and velocities."""
    noise = functools.partial(uniform, nq=6, nv=6, scale=scale)
    physics = MujocoBody("hopper.xml", 4, 1.0, leave, noise, functools.partial(observe_clipped, dt=HOPPER_DT))
    build, names = functools.partial(MujocoSimulator, body=physics), planar_names(HOPPER_JOINTS)
    return Body(names, 3, HOPPER_DT, build, features=planar_features, fallen=hopper_fallen, motors=HOPPER_JOINTS)


def walker2d_fallen(entries: Tensor) -> Tensor:
    """Bool [...]: torso height outside (0.8, 2) m, or pitch outside (-1, 1) rad."""
    height, pitch = entries[..., 0], entries[..., 1]
    return (height <= WALKER_HEIGHTS[0]) | (height >= WALKER_HEIGHTS[1]) | (pitch.abs() >= WALKER_PITCH)


def walker2d_body(edit: Edit) -> Body:
    """Six joints, steps of 0.008 s, 17 visible entries; tasks are written by ``edit``."""
    noise = functools.partial(uniform, nq=9, nv=9, scale=WALKER_RESET)
    physics = MujocoBody("walker2d_v5.xml", 4, 1.0, edit, noise, functools.partial(observe_clipped, dt=WALKER_DT))
    build, names = functools.partial(MujocoSimulator, body=physics), planar_names(WALKER_JOINTS)
    return Body(names, 6, WALKER_DT, build, features=planar_features, fallen=walker2d_fallen, motors=WALKER_JOINTS)


def write_parameters(model: mujoco.MjModel, nominal: mujoco.MjModel, task: np.ndarray) -> None:
    """Write task = (scale of the torso's mass and inertia, floor friction scale); heavy torsos are red, slippery floors pale.

    The floor's friction alone decides (priority 1): otherwise the larger one would, and that is the feet's 1.9.
    """
    model.body_mass[TORSO] = nominal.body_mass[TORSO] * task[0]
    model.body_inertia[TORSO] = nominal.body_inertia[TORSO] * task[0]
    model.geom_friction[FLOOR] = nominal.geom_friction[FLOOR] * task[1]
    model.geom_priority[FLOOR] = 1
    shares = np.clip(np.log(task) / np.log(BASE) / (2 * LIMIT) + 0.5, 0, 1)
    heavy, grip = (float(share) for share in shares)
    paint(model, [TORSO], (heavy, 0.2, 1 - heavy))
    model.geom_rgba[FLOOR, :3] = 1.0 - 0.7 * grip  # over its chequers, which show that the walker moves


def swimmer_features(entries: Tensor) -> Tensor:
    """Sine and cosine in the place of the first entry, an angle without bounds: [..., 8] -> [..., 9]."""
    return torch.cat([entries[..., :1].sin(), entries[..., :1].cos(), entries[..., 1:]], -1)


def swimmer_body(scale: float) -> Body:
    """Two joints in the x-y plane, steps of 0.04 s, 8 visible entries; it starts with U[-scale, scale] on all."""
    noise = functools.partial(uniform, nq=5, nv=5, scale=scale)
    seen = functools.partial(observe_planar, dt=SWIMMER_DT, hidden=2)
    build = functools.partial(MujocoSimulator, body=MujocoBody("swimmer.xml", 4, 1.0, leave, noise, seen))
    speeds = (*(f"{axis}_velocity [m/s]" for axis in "xy"), "angular_velocity [rad/s]")
    joints = tuple(f"{joint}_velocity [rad/s]" for joint in SWIMMER_ANGLES[1:])
    names = (*(f"{angle} [rad]" for angle in SWIMMER_ANGLES), *speeds, *joints)
    return Body(names, 2, SWIMMER_DT, build, features=swimmer_features, motors=SWIMMER_ANGLES[1:])
