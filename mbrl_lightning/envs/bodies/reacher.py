"""An arm of five links in a plane that turns at commanded speeds, steps of 0.1 s (FAMLE's 5-DoF reacher, in MuJoCo).

Observation (12): 5 angles, 5 velocities, place of the tip.
"""

from __future__ import annotations

import functools

import mujoco
import numpy as np
import torch
from tensordict import TensorDictBase
from torch import Tensor

from mbrl_lightning.envs.bodies import arm
from mbrl_lightning.envs.bodies.body import uniform
from mbrl_lightning.envs.bodies.edits import RED, paint_moved
from mbrl_lightning.envs.bodies.mujoco import MujocoBody
from mbrl_lightning.envs.spec import EnvSpec

COUNT, LINK, FRAME_SKIP, SPEED, GOAL = 5, 0.3, 25, 0.7, (-1.0, 1.0)
JOINTS, REVERSED = tuple(f"joint_{number}" for number in range(1, COUNT + 1)), (0.9, 0.6, 0.1)
NAMES = (*(f"{j} [rad]" for j in JOINTS), *(f"{j}_velocity [rad/s]" for j in JOINTS), "tip_x [m]", "tip_y [m]")


def reacher_model() -> mujoco.MjModel:
    """Links of 0.3 m and 0.1 kg without weight; joints 2 to 5 turn by 60 degrees to both sides, the first one freely."""
    chain = f'<site name="tip" pos="{LINK} 0 0"/>'
    for joint in reversed(JOINTS):
        place, limits = (LINK, 'limited="true" range="-60 60"') if joint != JOINTS[0] else (0, 'limited="false"')
        parts = f'<joint name="{joint}" {limits}/><geom fromto="0 0 0 {LINK} 0 0"/>{chain}'
        chain = f'<body pos="{place} 0 0">{parts}</body>'
    motors = "".join(f'<velocity joint="{joint}" kv="20"/>' for joint in JOINTS)
    return mujoco.MjModel.from_xml_string(f"""
    <mujoco>
      <option timestep="0.004" gravity="0 0 0" integrator="implicitfast"/>
      <default>
        <joint axis="0 0 1" armature="0.1" solreflimit="0.01 1" solimplimit="0.99 0.999 0.001"/>
        <geom type="capsule" size="0.04" mass="0.1" contype="0" conaffinity="0" rgba="0.3 0.5 0.8 1"/>
      </default>
      <worldbody>
        <light pos="0 0 5" dir="0 0 -1"/>
        <camera pos="0 0 4.2"/>
        <geom type="plane" size="3 3 0.1" pos="0 0 -0.2" rgba="0.9 0.9 0.9 1"/>
        <geom type="sphere" size="0.07" pos="{GOAL[0]} {GOAL[1]} 0" rgba="0.1 0.8 0.2 1"/>
        {chain}
      </worldbody>
      <actuator>{motors}</actuator>
    </mujoco>""")


def set_factors(model: mujoco.MjModel, nominal: mujoco.MjModel, task: np.ndarray) -> None:
    """Write task = factors on the 5 commanded speeds; links that do not obey are red, those that turn backwards orange."""
    model.geom_rgba[:] = nominal.geom_rgba
    model.actuator_gainprm[:, 0] = nominal.actuator_gainprm[:, 0] * task
    paint_moved(model, np.flatnonzero(task == 0), RED)
    paint_moved(model, np.flatnonzero(task < 0), REVERSED)


def observe(qpos: np.ndarray, qvel: np.ndarray, before: np.ndarray) -> np.ndarray:
    """[B, 12] from angles followed by the sensed tip [B, 8], and velocities [B, 5]."""
    return np.concatenate([qpos[:, :COUNT], qvel, qpos[:, COUNT:-1]], 1)


def features(observation: Tensor) -> Tensor:
    """Sine and cosine in the place of the angles: [..., 12] -> [..., 17]."""
    angles, rest = observation.split([COUNT, COUNT + 2], -1)
    return torch.cat([angles.sin(), angles.cos(), rest], -1)


def distance(observation: Tensor) -> Tensor:
    """From the tip to the goal, [..., 12] -> [...], m."""
    return (observation[..., -2:] - observation.new_tensor(GOAL)).norm(dim=-1)


def reward(observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
    """exp(-distance) after the step."""
    return torch.exp(-distance(next_observation))


def metrics(episodes: TensorDictBase) -> dict[str, Tensor]:
    """Distances [...] between tip and goal in episodes [..., T], m: mean, and after the last step."""
    away = distance(episodes["next", "observation"])
    return {"goal/distance": away.mean(-1), "goal/final_distance": away[..., -1]}


def reacher_spec(name: str, horizon: int) -> EnvSpec:
    """The spec of episodes of ``horizon`` steps."""
    return EnvSpec(name, NAMES, COUNT, horizon, "episode", reward, features=features, metrics=metrics)


def reacher_body(scale: float) -> MujocoBody:
    """The arm, stretched along x but for U[-scale, scale] rad and rad/s."""
    noise = functools.partial(uniform, nq=COUNT, nv=COUNT, scale=scale)
    return MujocoBody(reacher_model, FRAME_SKIP, SPEED, set_factors, noise, observe, arm.tip)
