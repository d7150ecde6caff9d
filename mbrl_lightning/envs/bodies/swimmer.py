"""The swimmer of gymnasium: two joints on a plane, steps of 0.04 s. 8 visible entries."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from mbrl_lightning.envs.bodies.body import Body, observe_planar, uniform
from mbrl_lightning.envs.bodies.edits import leave
from mbrl_lightning.envs.bodies.mujoco import MujocoBody, MujocoSimulator

DT, FRAME_SKIP = 0.04, 4
ANGLES = ("angle", "joint_1", "joint_2")
SPEEDS = (*(f"{axis}_velocity [m/s]" for axis in "xy"), "angular_velocity [rad/s]")
NAMES = (*(f"{angle} [rad]" for angle in ANGLES), *SPEEDS, *(f"{joint}_velocity [rad/s]" for joint in ANGLES[1:]))


def features(entries: Tensor) -> Tensor:
    """Sine and cosine in the place of the first entry, an angle without bounds: [..., 8] -> [..., 9]."""
    return torch.cat([entries[..., :1].sin(), entries[..., :1].cos(), entries[..., 1:]], -1)


def swimmer_body(scale: float) -> Body:
    """The body, starting with U[-scale, scale] on positions and velocities."""
    noise = functools.partial(uniform, nq=5, nv=5, scale=scale)
    seen = functools.partial(observe_planar, dt=DT, hidden=2)
    build = functools.partial(MujocoSimulator, body=MujocoBody("swimmer.xml", FRAME_SKIP, 1.0, leave, noise, seen))
    return Body(NAMES, 2, DT, build, features=features)
