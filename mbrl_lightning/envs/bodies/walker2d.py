"""The walker of gymnasium (v5): six joints in a plane, steps of 0.008 s. 17 visible entries."""

from __future__ import annotations

import functools

import mujoco
import numpy as np
from torch import Tensor

from mbrl_lightning.envs.bodies.body import Body, observe_clipped, planar_features, planar_names, uniform
from mbrl_lightning.envs.bodies.edits import paint
from mbrl_lightning.envs.bodies.mujoco import Edit, MujocoBody, MujocoSimulator

DT, FRAME_SKIP, HEIGHTS, LARGEST_PITCH, RESET_SCALE = 0.008, 4, (0.8, 2.0), 1.0, 0.005
BASE, LIMIT, FLOOR, TORSO = 1.5, 3.0, 0, 1
JOINTS = tuple(f"{joint}{side}" for side in ("", "_left") for joint in ("thigh", "leg", "foot"))


def fallen(observation: Tensor) -> Tensor:
    """Bool [...]: torso height outside (0.8, 2) m, or pitch outside (-1, 1) rad."""
    height, pitch = observation[..., 0], observation[..., 1]
    return (height <= HEIGHTS[0]) | (height >= HEIGHTS[1]) | (pitch.abs() >= LARGEST_PITCH)


def walker2d_body(edit: Edit, scale: float = RESET_SCALE) -> Body:
    """The body with tasks written by ``edit``, starting with U[-scale, scale] on positions and velocities."""
    noise = functools.partial(uniform, nq=9, nv=9, scale=scale)
    seen = functools.partial(observe_clipped, dt=DT)
    build = functools.partial(MujocoSimulator, body=MujocoBody("walker2d_v5.xml", FRAME_SKIP, 1.0, edit, noise, seen))
    return Body(planar_names(JOINTS), 6, DT, build, features=planar_features, fallen=fallen)


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
