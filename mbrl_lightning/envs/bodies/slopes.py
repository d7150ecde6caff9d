"""A half-cheetah on ground that rises and falls: a height field in place of gymnasium's floor (learning to adapt)."""

from __future__ import annotations

import functools

import mujoco
import numpy as np

from mbrl_lightning.envs.bodies import half_cheetah
from mbrl_lightning.envs.bodies.body import Body
from mbrl_lightning.envs.bodies.mujoco import MujocoBody, MujocoSimulator, asset
from mbrl_lightning.envs.bodies.planar import observe_planar, planar_features
from mbrl_lightning.errors import ConfigError

# metres: where the field begins and ends, where each slope begins, how far up and down it reaches, and from column to column
FROM, TO, STARTS, REACH, SPACING, HALF_WIDTH = -10.0, 50.0, (1.0, 6.0), 13.0, 0.25, 2.0
COLUMNS = round((TO - FROM) / SPACING) + 1


def sloping_model() -> mujoco.MjModel:
    """Gymnasium's cheetah on a height field, level as yet; the floor lies below it, for who runs off its end."""
    spec = mujoco.MjSpec.from_file(str(asset("half_cheetah.xml")))
    spec.compiler.settotalmass = -1
    spec.geom("floor").pos = [0, 0, -2 * REACH]
    level = np.full(2 * COLUMNS, 0.5)
    size = [(TO - FROM) / 2, HALF_WIDTH, 2 * REACH, 0.1]
    spec.add_hfield(name="ground", nrow=2, ncol=COLUMNS, size=size, userdata=level.tolist())
    spec.worldbody.add_geom(
        name="ground",
        type=mujoco.mjtGeom.mjGEOM_HFIELD,
        hfieldname="ground",
        pos=[(TO + FROM) / 2, 0, -REACH],
        contype=0,
        conaffinity=1,
        rgba=[0.45, 0.55, 0.35, 1],
    )
    model = spec.compile()
    mujoco.mj_setTotalmass(model, half_cheetah.MASS)
    return model


def heights(slopes: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Height of the ground at places ``x`` [n], m: level, then by each of the slopes (rise per metre) from where it begins."""
    ends = np.array([*STARTS[1:], np.inf])
    return sum(slope * (np.clip(x, start, end) - start) for slope, start, end in zip(slopes, STARTS, ends, strict=True))


def ground_of(task: np.ndarray) -> np.ndarray:
    """Heights [columns] of the field under task = slopes; ConfigError where they leave its range."""
    ground = heights(task, np.linspace(FROM, TO, COLUMNS))
    if np.abs(ground).max() > REACH:
        raise ConfigError(
            f"slopes {task.tolist()} reach {np.abs(ground).max():.1f} m up or down, and the height field {REACH:g} m",
            f"choose slopes that stay within that from {STARTS[0]:g} to {TO:g} m",
        )
    return ground


def write_slopes(model: mujoco.MjModel, nominal: mujoco.MjModel, task: np.ndarray) -> None:
    """Write task = slopes into the field, of which MuJoCo keeps shares of its range; see :func:`ground_of`."""
    model.hfield_data[:] = np.tile(0.5 + ground_of(task) / (2 * REACH), 2)


def sloping_body(scale: float) -> Body:
    """The cheetah on its ground, which it does not see; ``scale`` is the deviation of its start."""
    noise, observe = half_cheetah.around_rest(scale), functools.partial(observe_planar, dt=half_cheetah.DT)
    physics = MujocoBody(sloping_model, half_cheetah.FRAME_SKIP, 1.0, write_slopes, noise, observe)
    build = functools.partial(MujocoSimulator, body=physics)
    return Body(half_cheetah.NAMES, 6, half_cheetah.DT, build, features=planar_features, motors=half_cheetah.JOINTS)
