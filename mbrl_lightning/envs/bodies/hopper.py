"""The hopper of gymnasium: three joints in a plane, steps of 0.008 s. 11 visible entries."""

from __future__ import annotations

import functools

from torch import Tensor

from mbrl_lightning.envs.bodies.body import Body, observe_clipped, planar_features, planar_names, uniform
from mbrl_lightning.envs.bodies.edits import leave
from mbrl_lightning.envs.bodies.mujoco import MujocoBody, MujocoSimulator

DT, FRAME_SKIP, LOWEST, LARGEST_PITCH, LIMIT = 0.008, 4, 0.7, 0.2, 100.0


def fallen(entries: Tensor) -> Tensor:
    """Bool [...]: torso not above 0.7 m, pitch outside (-0.2, 0.2) rad, or a joint beyond 100 rad."""
    height, pitch = entries[..., 0], entries[..., 1]
    return (height <= LOWEST) | (pitch.abs() >= LARGEST_PITCH) | (entries[..., 1:].abs() >= LIMIT).any(-1)


def hopper_body(scale: float) -> Body:
    """The body, starting with U[-scale, scale] on positions and velocities."""
    noise = functools.partial(uniform, nq=6, nv=6, scale=scale)
    seen = functools.partial(observe_clipped, dt=DT)
    build = functools.partial(MujocoSimulator, body=MujocoBody("hopper.xml", FRAME_SKIP, 1.0, leave, noise, seen))
    return Body(planar_names(("thigh", "leg", "foot")), 3, DT, build, features=planar_features, fallen=fallen)
