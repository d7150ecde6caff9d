"""The half-cheetah of gymnasium: six joints in a plane, steps of 0.05 s, nothing ends an episode. 17 visible entries."""

from __future__ import annotations

import functools

import mujoco
import numpy as np

from mbrl_lightning.envs.bodies.body import Body, normal
from mbrl_lightning.envs.bodies.edits import RED, paint_moved
from mbrl_lightning.envs.bodies.mujoco import Edit, MujocoBody, MujocoSimulator, Noise
from mbrl_lightning.envs.bodies.planar import observe_planar, planar_features, planar_names

DT, FRAME_SKIP, MASS = 0.05, 5, 14.0
JOINTS = ("bthigh", "bshin", "bfoot", "fthigh", "fshin", "ffoot")
NAMES = planar_names(JOINTS)


def half_cheetah_body(edit: Edit, noise: Noise) -> Body:
    """The body with tasks written by ``edit``, starting from ``noise``."""
    physics = MujocoBody("half_cheetah.xml", FRAME_SKIP, 1.0, edit, noise, functools.partial(observe_planar, dt=DT))
    build = functools.partial(MujocoSimulator, body=physics)
    return Body(NAMES, 6, DT, build, features=planar_features, motors=JOINTS)


def around_rest(scale: float) -> Noise:
    """A start with normal noise of deviation ``scale`` on all positions and velocities."""
    return functools.partial(normal, nq=9, nv=9, scale=scale)


def set_gears(model: mujoco.MjModel, nominal: mujoco.MjModel, task: np.ndarray) -> None:
    """Write task = signed gear scale of the 6 joints."""
    model.actuator_gear[:, 0] = nominal.actuator_gear[:, 0] * task


def disable_joint(model: mujoco.MjModel, nominal: mujoco.MjModel, task: np.ndarray) -> None:
    """Write task = (joint,): its motor gives no torque, and what it would move is painted red."""
    joint = round(float(task[0]))
    for field in ("geom_matid", "geom_rgba", "actuator_gear"):
        getattr(model, field)[:] = getattr(nominal, field)
    model.actuator_gear[joint] = 0
    paint_moved(model, [joint], RED)
