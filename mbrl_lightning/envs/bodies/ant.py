"""The ant of gymnasium: eight joints, steps of 0.05 s. 27 visible entries: contact forces were 0 in the papers' MuJoCo."""

from __future__ import annotations

import functools

import mujoco
import numpy as np
import torch
from torch import Tensor

from mbrl_lightning.envs.bodies.body import Body, free_names, half_uniform
from mbrl_lightning.envs.bodies.edits import RED, paint, paint_moved
from mbrl_lightning.envs.bodies.mujoco import Edit, MujocoBody, MujocoSimulator, asset, centre_of_mass

DT, FRAME_SKIP, UPRIGHT, RESET_SCALE = 0.05, 5, (0.2, 1.0), 0.1
JOINTS = tuple(f"{joint}_{leg}" for leg in (1, 2, 3, 4) for joint in ("hip", "ankle"))
NAMES = free_names(JOINTS)
# Of legs 0 to 3 (learning_to_adapt's order): upper and lower geom, and the two motors.
LEGS, MOTORS = ((3, 4), (6, 7), (9, 10), (12, 13)), ((2, 3), (4, 5), (6, 7), (0, 1))


def observe(qpos: np.ndarray, qvel: np.ndarray, before: np.ndarray, x: int) -> np.ndarray:
    """[B, 28]: mean speed of entry ``x`` of the positions over the step, then what the agent sees."""
    return np.concatenate([(qpos[:, [x]] - before[:, [x]]) / DT, qpos[:, 2:15], qvel], 1)


def fallen(observation: Tensor) -> Tensor:
    """Bool [...]: torso height outside [0.2, 1] m."""
    height = observation[..., 0]
    return (height < UPRIGHT[0]) | (height > UPRIGHT[1])


def untarget(observation: Tensor, change: Tensor) -> Tensor:
    """Inverse of the plain difference; the quaternion keeps its length of 1."""
    height, quaternion, rest = (observation + change).split([1, 4, 22], -1)
    return torch.cat([height, torch.nn.functional.normalize(quaternion, dim=-1), rest], -1)


def cripple(model: mujoco.MjModel, nominal: mujoco.MjModel, task: np.ndarray) -> None:
    """Write task = the leg that does not work, as learning_to_adapt has it, and paint it red.

    Its two motors give no torque, both geoms shrink to half their radius and length, and the lower one is drawn in to
    where the upper one is. Masses stay.
    """
    for field in ("geom_size", "geom_pos", "geom_matid", "geom_rgba", "actuator_gear"):
        getattr(model, field)[:] = getattr(nominal, field)
    leg = round(float(task[0]))
    upper, lower = LEGS[leg]
    model.actuator_gear[list(MOTORS[leg])] = 0
    model.geom_size[[upper, lower]] *= 0.5
    model.geom_pos[lower] = nominal.geom_pos[upper]
    paint(model, LEGS[leg], RED)


def compass_model() -> mujoco.MjModel:
    """The ant with a number at the end of its custom ones: where its compass sticks, in turns; 0: it does not."""
    spec = mujoco.MjSpec.from_file(str(asset("ant.xml")))
    spec.add_numeric(name="stuck", data=[0.0], size=1)
    return spec.compile()


def break_parts(model: mujoco.MjModel, nominal: mujoco.MjModel, task: np.ndarray) -> None:
    """Write task = (factors on the torques of the 8 motors, where the compass sticks [turns], 0: nowhere); dead ones are red."""
    for field in ("geom_matid", "geom_rgba"):
        getattr(model, field)[:] = getattr(nominal, field)
    model.actuator_gear[:, 0] = nominal.actuator_gear[:, 0] * task[:8]
    model.numeric_data[-1] = task[8]
    paint_moved(model, np.flatnonzero(task[:8] == 0), RED)


def compass(model: mujoco.MjModel, data: mujoco.MjData) -> np.ndarray:
    """The torso's quaternion [4] as it is seen: yaw is the compass's, and that may stick."""
    w, x, y, z = data.qpos[3:7]
    if model.numeric_data[-1] == 0:
        return data.qpos[3:7]
    half = np.pi * model.numeric_data[-1] - np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z)) / 2
    c, s = np.cos(half), np.sin(half)  # a turn about the vertical, up to the angle shown
    return np.array([c * w - s * z, c * x - s * y, c * y + s * x, c * z + s * w])


def observe_compass(qpos: np.ndarray, qvel: np.ndarray, before: np.ndarray) -> np.ndarray:
    """As :func:`observe`, with the sensed quaternion, which follows the 15 positions, in its place."""
    return observe(np.concatenate([qpos[:, :3], qpos[:, 15:], qpos[:, 7:15]], 1), qvel, before, x=0)


def broken_body() -> Body:
    """The body with parts that may be broken; it never falls."""
    noise = functools.partial(half_uniform, nq=15, nv=14, scale=RESET_SCALE)
    physics = MujocoBody(compass_model, FRAME_SKIP, 1.0, break_parts, noise, observe_compass, compass)
    build = functools.partial(MujocoSimulator, body=physics)
    return Body(NAMES, 8, DT, build, untarget=untarget, motors=JOINTS[-2:] + JOINTS[:-2])


def ant_body(edit: Edit, scale: float = RESET_SCALE, whole: bool = False) -> Body:
    """The body; paid speeds are the torso's, or those of the centre of mass of the ``whole`` ant; ``scale`` of the start."""
    seen = functools.partial(observe, x=15 if whole else 0)  # the sensed entries follow the 15 positions
    noise = functools.partial(half_uniform, nq=15, nv=14, scale=scale)
    physics = MujocoBody("ant.xml", FRAME_SKIP, 1.0, edit, noise, seen, centre_of_mass if whole else None)
    build = functools.partial(MujocoSimulator, body=physics)
    return Body(NAMES, 8, DT, build, untarget=untarget, fallen=fallen, motors=JOINTS[-2:] + JOINTS[:-2])
