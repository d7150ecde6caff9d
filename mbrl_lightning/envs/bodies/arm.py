"""A seven-joint, torque-driven arm whose tip is to reach a point in space: MB-MPO's PR2 task on gymnasium's Pusher arm.

Without the table, object and goal of the original; a goal of our own hangs on three slide joints that nothing moves, as
in the paper's code, and takes another place in every episode. Observation (17): 7 angles, 7 velocities, goal minus tip.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import mujoco
import numpy as np
import torch
from tensordict import TensorDictBase
from torch import Tensor

from mbrl_lightning.envs.bodies.edits import leave, paint
from mbrl_lightning.envs.bodies.mujoco import Edit, MujocoBody, asset, nominal_model

JOINTS = ("shoulder_pan", "shoulder_lift", "upper_arm_roll", "elbow_flex", "forearm_roll", "wrist_flex", "wrist_roll")
NAMES = (
    *(f"{joint} [rad]" for joint in JOINTS),
    *(f"{joint}_velocity [rad/s]" for joint in JOINTS),
    *(f"goal_minus_tip_{axis} [m]" for axis in "xyz"),
)
COUNT, FRAME_SKIP, TORQUE, EFFORT = 7, 5, 2.0, 0.05
TIP_OFFSET, GOAL_SHARE = 0.1, 0.6
HAND, GRAVITY = "r_wrist_roll_link", 9.81


def arm_parts() -> mujoco.MjSpec:
    """The arm with a site "tip" between its fingers, and the goal on slide joints behind the arm's seven."""
    spec = mujoco.MjSpec.from_file(str(asset("pusher_v5.xml")))
    for part in (spec.body("object"), spec.body("goal"), spec.geom("table")):
        spec.delete(part)
    spec.body(HAND).add_site(name="tip", pos=[TIP_OFFSET, 0, 0])
    goal = spec.worldbody.add_body(name="goal")
    slide, ball = mujoco.mjtJoint.mjJNT_SLIDE, mujoco.mjtGeom.mjGEOM_SPHERE
    for name, axis in zip("xyz", np.eye(3).tolist(), strict=True):
        goal.add_joint(name=f"goal_{name}", type=slide, axis=axis, limited=False, damping=0.0)
    goal.add_geom(type=ball, size=[0.03, 0, 0], rgba=[0.9, 0.1, 0.1, 1], contype=0, conaffinity=0)
    return spec


def arm_model() -> mujoco.MjModel:
    """The arm as it is: nothing weighs anything."""
    return arm_parts().compile()


def weighed_model() -> mujoco.MjModel:
    """The same in the earth's field, all of it held up."""
    spec = arm_parts()
    spec.option.gravity = [0, 0, -GRAVITY]
    for body in spec.bodies:
        body.gravcomp = 1
    return spec.compile()


def write_damping(model: mujoco.MjModel, nominal: mujoco.MjModel, task: np.ndarray) -> None:
    """Write task = damping of the seven joints, N m s/rad."""
    model.dof_damping[:COUNT] = task


def write_force(model: mujoco.MjModel, nominal: mujoco.MjModel, task: np.ndarray) -> None:
    """Write task = (force,), N: what pulls the hand down, as what is not held up of its weight; the redder, the harder."""
    hand = model.body(HAND).id
    model.body_gravcomp[hand] = 1 - task[0] / (GRAVITY * model.body_mass[hand])
    paint(model, np.flatnonzero(model.geom_bodyid == hand), (min(task[0] / TORQUE, 1.0), 0.2, 0.2))


def tip(model: mujoco.MjModel, data: mujoco.MjData) -> np.ndarray:
    """Position [3] of the tip at the present angles, m."""
    mujoco.mj_kinematics(model, data)
    return data.site("tip").xpos


def goals(batch: int, generator: torch.Generator) -> Tensor:
    """Reachable points, float64 [batch, 3]: the tip at angles uniform in the middle 60 % of every joint's range."""
    model = nominal_model(arm_model)
    low, high = torch.from_numpy(model.jnt_range[:COUNT].copy()).unbind(-1)
    unit = torch.rand(batch, COUNT, generator=generator, dtype=torch.float64, device=generator.device).cpu()
    angles = (low + high) / 2 + GOAL_SHARE * (unit - 0.5) * (high - low)
    data, places = mujoco.MjData(model), []
    for row in angles.numpy():
        data.qpos[:COUNT] = row
        places.append(tip(model, data).copy())
    return torch.from_numpy(np.stack(places))


def reset_noise(batch: int, generator: torch.Generator, scale: float) -> tuple[Tensor, Tensor]:
    """The arm at rest angles and velocities U[-scale, scale], as the Pusher; the goal somewhere else."""
    unit = torch.rand(batch, COUNT, generator=generator, dtype=torch.float64, device=generator.device).cpu()
    still = torch.zeros(batch, 3, dtype=torch.float64)
    positions = torch.cat([torch.zeros(batch, COUNT, dtype=torch.float64), goals(batch, generator)], 1)
    return positions, torch.cat([scale * (2 * unit - 1), still], 1)


def observe(qpos: np.ndarray, qvel: np.ndarray, before: np.ndarray) -> np.ndarray:
    """[B, 17] from angles and goal [B, 10] followed by the sensed tip [B, 3], and velocities [B, 10]."""
    angles, goal, end = np.split(qpos, [COUNT, COUNT + 3], axis=1)
    return np.concatenate([angles, qvel[:, :COUNT], goal - end], 1)


def reward(observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
    """-|goal - tip|^2 after the step - 0.05 |a|^2, m^2 and actions in [-1, 1] (2 N m)."""
    return -next_observation[..., -3:].square().sum(-1) - EFFORT * action.square().sum(-1)


def metrics(episodes: TensorDictBase) -> dict[str, Tensor]:
    """Distances [...] between tip and goal in episodes [..., T], m: mean, and after the last step."""
    away = episodes["next", "observation"][..., -3:].norm(dim=-1)
    return {"goal/distance": away.mean(-1), "goal/final_distance": away[..., -1]}


def arm_body(scale: float, edit: Edit = leave, model: Callable[[], mujoco.MjModel] = arm_model) -> MujocoBody:
    """The arm; ``scale`` is the half-width of the joints' velocities at the start, rad/s; tasks are written by ``edit``."""
    noise = functools.partial(reset_noise, scale=scale)
    return MujocoBody(model, FRAME_SKIP, TORQUE, edit, noise, observe, tip)
