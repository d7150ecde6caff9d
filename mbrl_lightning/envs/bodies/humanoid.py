"""The humanoid of gymnasium, slim: without contact forces, steps of 0.015 s (GSSM, after CaDM and mbbl).

45 visible entries: torso height, quaternion (w first), 17 joint angles, then the 23 velocities: torso linear (world frame),
torso angular (torso frame), joints. A model predicts the 23 velocity changes; positions follow by integration.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
import torch
from tensordict import TensorDictBase
from torch import Tensor

from mbrl_lightning.envs.bodies.body import Body, free_names, joint_entries
from mbrl_lightning.envs.bodies.mujoco import Edit, MujocoBody, MujocoSimulator, centre_of_mass
from mbrl_lightning.envs.spec import EnvSpec, exchanged

DT, FRAME_SKIP, HORIZON, SENSED = 0.015, 5, 1000, 24
CONTROL_SCALE, CONTROL_COST, ALIVE_BONUS, SPEED_WEIGHT = 0.4, 0.1, 5.0, 0.25 / 0.015
POSITIONS, X_VELOCITY, UPRIGHT = 22, 22, (1.0, 2.0)
HEIGHT_WEIGHT, TURN_WEIGHT = 0.5, 0.6
JOINTS = (
    "abdomen_z", "abdomen_y", "abdomen_x", "right_hip_x", "right_hip_z", "right_hip_y", "right_knee",
    "left_hip_x", "left_hip_z", "left_hip_y", "left_knee", "right_shoulder1", "right_shoulder2",
    "right_elbow", "left_shoulder1", "left_shoulder2", "left_elbow",
)  # fmt: skip
ACTUATORS = ("abdomen_y", "abdomen_z", *JOINTS[2:])  # the first two motors are in another order than their joints
MIRRORED = {  # signs of the joints whose axes are not each other's mirror images; left and right are exchanged beside that
    "abdomen_z": -1.0, "abdomen_x": -1.0, "right_shoulder1": -1.0, "right_shoulder2": -1.0, "left_shoulder1": -1.0,
    "left_shoulder2": -1.0,
}  # fmt: skip
NAMES = free_names(JOINTS)


def observe(qpos: np.ndarray, qvel: np.ndarray, before: np.ndarray) -> np.ndarray:
    """[B, 45] from positions [B, 24] and velocities [B, 23]."""
    return np.concatenate([qpos[:, 2:], qvel], 1)


def observe_with_speed(qpos: np.ndarray, qvel: np.ndarray, before: np.ndarray) -> np.ndarray:
    """[B, 46]: mean forward speed of the centre of mass over the step, then what :func:`observe` gives."""
    speed = (qpos[:, [SENSED]] - before[:, [SENSED]]) / DT
    return np.concatenate([speed, observe(qpos[:, :SENSED], qvel, before)], 1)


def upright(observation: Tensor) -> Tensor:
    """Bool [...]: torso height within [1, 2] m."""
    return (observation[..., 0] >= UPRIGHT[0]) & (observation[..., 0] <= UPRIGHT[1])


def fallen(observation: Tensor) -> Tensor:
    """Bool [...]: not :func:`upright`."""
    return ~upright(observation)


def reward(observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
    """50/3 x torso forward velocity after the step + 5 while upright - 0.1 |0.4 action|^2.

    The factor 50/3 is mbbl's 0.25/0.015, kept by CaDM and GSSM. Standing still for an episode is worth 5000, a forward dive
    that lands after a second 1000 to 2000.
    """
    effort = CONTROL_COST * CONTROL_SCALE**2 * action.square().sum(-1)
    return SPEED_WEIGHT * next_observation[..., X_VELOCITY] + ALIVE_BONUS * upright(next_observation) - effort


def rotation(quaternion: Tensor) -> Tensor:
    """Rotation matrix [..., 3, 3] torso to world of a quaternion [..., 4], w first, of any length."""
    w, x, y, z = (quaternion / quaternion.norm(dim=-1, keepdim=True)).unbind(-1)
    entries = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(entries, -1).unflatten(-1, (3, 3))


def features(observation: Tensor) -> Tensor:
    """Height, rotation matrix, joints, torso velocity in world and torso frame, other velocities: [..., 53].

    A quaternion and its negative are the same pose; the matrix says so. Contact and drag act in the torso's frame.
    """
    height, quaternion, joints, linear, rest = observation.split([1, 4, 17, 3, 20], -1)
    matrix = rotation(quaternion)
    local = (matrix * linear[..., :, None]).sum(-2)  # matrix transposed times velocity
    return torch.cat([height, matrix.flatten(-2), joints, linear, local, rest], -1)


def target(observation: Tensor, next_observation: Tensor) -> Tensor:
    """The 23 velocity changes, [..., 23]."""
    return next_observation[..., POSITIONS:] - observation[..., POSITIONS:]


def turn(quaternion: Tensor, angle: Tensor) -> Tensor:
    """Unit quaternion [..., 4] after a further rotation by the vector ``angle`` [..., 3], torso frame."""
    w, axis = quaternion.split([1, 3], -1)
    half = angle / 2
    size = half.norm(dim=-1, keepdim=True)
    cos, sin = size.cos(), half * torch.sinc(size / torch.pi)
    real = w * cos - (axis * sin).sum(-1, keepdim=True)
    product = torch.cat([real, w * sin + cos * axis + torch.linalg.cross(axis, sin)], -1)
    return product / product.norm(dim=-1, keepdim=True)


def untarget(observation: Tensor, change: Tensor) -> Tensor:
    """Velocities plus ``change`` [..., 23]; positions integrated over the step.

    Height moves with the mean of old and new velocity, rotation and joints with 0.4 old + 0.6 new: torques start with the
    step, so velocities change early in it. While upright .03, .07, .10 of the standard deviation of the true changes of height,
    rotation and joints are left over (random actions, true velocity changes), on the ground .18, .15, .16; with the mean for
    all of them .12 and .17 of rotation and joints, with the new velocities alone .16, .35, .49.
    """
    velocity = observation[..., POSITIONS:]
    height = observation[..., :1] + DT * (velocity[..., 2:3] + HEIGHT_WEIGHT * change[..., 2:3])
    step = DT * (velocity[..., 3:] + TURN_WEIGHT * change[..., 3:])
    quaternion = turn(observation[..., 1:5], step[..., :3])
    return torch.cat([height, quaternion, observation[..., 5:POSITIONS] + step[..., 3:], velocity + change], -1)


def reset_noise(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """U[-0.01, 0.01] on all 24 positions and 23 velocities, as gymnasium and CaDM do."""
    noise = 0.02 * torch.rand(batch, 47, generator=generator, dtype=torch.float64, device=generator.device) - 0.01
    return noise[:, :24], noise[:, 24:]


def metrics(episodes: TensorDictBase) -> dict[str, Tensor]:
    """What the return hides, of episodes [..., T]: a dive and a walk may score alike.

    [...] each: share of upright steps, the first that is not (T if none), forward metres by the torso's velocity.
    """
    before, after = episodes["observation"], episodes["next", "observation"]
    standing = upright(after).to(after.dtype)
    path = DT * (before[..., X_VELOCITY] + after[..., X_VELOCITY]) / 2 * episodes["valid"]
    return {
        "upright/share": standing.mean(-1),
        "upright/first_fall": standing.cumprod(-1).sum(-1),
        "distance": path.sum(-1),
    }


def other_side(names: tuple[str, ...]) -> tuple[list[int], list[float]]:
    """Where each joint's mirror image stands among ``names``, and its sign."""
    swap = {"right": "left_", "left": "right_"}
    images = [swap.get(side, side + _) + rest for side, _, rest in (name.partition("_") for name in names)]
    return [names.index(image) for image in images], [MIRRORED.get(name, 1.0) for name in names]


def mirror() -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Left and right exchanged in observations and actions; the feet of gymnasium's body differ a little.

    A reflection in the x-z plane turns round y-components of vectors and x- and z-components of rotations.
    """
    order, signs = other_side(JOINTS)
    orders = [0, *range(1, 5), *(5 + i for i in order), *range(22, 28), *(28 + i for i in order)]
    turned = [1.0, 1.0, -1.0, 1.0, -1.0, *signs, 1.0, -1.0, 1.0, -1.0, 1.0, -1.0, *signs]
    return exchanged(orders, turned), exchanged(*other_side(ACTUATORS))


def humanoid_spec(training_termination: Callable[[Tensor], Tensor] | None) -> EnvSpec:
    """The slim humanoid's spec; training episodes are cut where ``training_termination`` says."""
    return EnvSpec(
        "slim_humanoid",
        NAMES,
        action_dim=17,
        horizon=HORIZON,
        unit="episode",
        reward=reward,
        features=features,
        target=target,
        untarget=untarget,
        training_termination=training_termination,
        joints=joint_entries(NAMES, ACTUATORS),
        mirror=mirror(),
        metrics=metrics,
    )


def humanoid_physics(edit: Edit) -> MujocoBody:
    """The 45 entries, tasks written by ``edit``."""
    return MujocoBody("humanoid.xml", FRAME_SKIP, CONTROL_SCALE, edit, reset_noise, observe)


def humanoid_body(edit: Edit) -> Body:
    """The body whose paid speed is that of the centre of mass, which the 45 visible entries do not determine."""
    whole = dataclasses.replace(humanoid_physics(edit), observe=observe_with_speed, sense=centre_of_mass)
    build = functools.partial(MujocoSimulator, body=whole)
    return Body(
        NAMES,
        17,
        DT,
        build,
        features=features,
        target=target,
        untarget=untarget,
        fallen=fallen,
        motors=ACTUATORS,
    )
