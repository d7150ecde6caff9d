"""The half-cheetah on a pier of eight floating blocks (M3PO, after learning_to_adapt). 20 visible entries.

The cheetah's own 17, then its centre of mass; the blocks are not seen.
"""

from __future__ import annotations

import functools

import mujoco
import numpy as np
import torch
from torch import Tensor

from mbrl_lightning.envs.bodies import half_cheetah
from mbrl_lightning.envs.bodies.body import Body, normal
from mbrl_lightning.envs.bodies.edits import paint
from mbrl_lightning.envs.bodies.mujoco import MujocoBody, MujocoSimulator, asset, centre_of_mass
from mbrl_lightning.envs.bodies.planar import planar_features

DT, CHEETAH_MASS = 0.01, 14.0
CENTRE = tuple(f"centre_of_mass_{axis} [m]" for axis in "xyz")
# learning_to_adapt's pier: centre and half-length of each block along x, in metres.
BLOCKS = ((-8.0, 5.999), *((4.0 * i, 1.999) for i in range(6)), (42.0, 19.999))
HALF_WIDTH, HALF_HEIGHT, TRAVEL, STIFFNESS, BLOCK_MASS, SEABED = 0.99, 0.05, 0.15, 150.0, 1.38, -1.0
DAMPING, FRICTION, GRAVITY = (0.0, 10.0), (0.2, 0.8), 9.81
POSITIONS = 9  # of the cheetah; the blocks follow


def pier_model(cheetah_mass: float = CHEETAH_MASS) -> mujoco.MjModel:
    """Gymnasium's cheetah on eight floating blocks, each on a vertical spring.

    Masses are written explicitly: the original's settotalmass shares 14 kg out over cheetah *and* blocks, which leaves the
    cheetah 2.93 kg (``cheetah_mass``). The floor becomes a sea bed 1 m below, so that who runs off the pier stops falling.
    """
    spec = mujoco.MjSpec.from_file(str(asset("half_cheetah.xml")))
    spec.compiler.settotalmass = -1
    spec.geom("floor").pos = [0, 0, SEABED]
    for number, (centre, half_length) in enumerate(BLOCKS):
        block = spec.worldbody.add_body(name=f"block_{number}", pos=[centre, 0, HALF_HEIGHT])
        slide, travel = mujoco.mjtJoint.mjJNT_SLIDE, [-TRAVEL, TRAVEL]
        block.add_joint(name=block.name, type=slide, axis=[0, 0, 1], limited=True, range=travel, armature=0.1)
        block.add_geom(
            name=block.name,
            type=mujoco.mjtGeom.mjGEOM_BOX,
            size=[half_length, HALF_WIDTH, HALF_HEIGHT],
            mass=BLOCK_MASS,
            contype=0,
            conaffinity=1,
            priority=1,  # else the larger of two frictions counts, and the cheetah's would hide a slippery block
        )
    model = spec.compile()
    model.jnt_stiffness[POSITIONS:] = STIFFNESS
    own = slice(1, 1 + len(half_cheetah.JOINTS) + 1)
    factor = cheetah_mass / model.body_mass[own].sum()
    model.body_mass[own] *= factor
    model.body_inertia[own] *= factor
    return model


def write_blocks(model: mujoco.MjModel, nominal: mujoco.MjModel, task: np.ndarray) -> None:
    """Write task = the blocks' dampings, then their frictions; damped blocks are red (others blue), slippery ones pale."""
    damping, friction = np.split(task, 2)
    blocks = np.arange(model.ngeom - len(BLOCKS), model.ngeom)
    model.dof_damping[POSITIONS:] = damping
    model.geom_friction[blocks, 0] = friction
    red, pale = np.clip(damping / DAMPING[1], 0, 1), np.clip(1 - friction / FRICTION[1], 0, 1)
    colours = np.stack([red, 0 * red, 1 - red], -1)
    for geom, white, colour in zip(blocks, pale[:, None], colours, strict=True):
        paint(model, [geom], white + (1 - white) * colour)


def pier_noise(batch: int, generator: torch.Generator, scale: float) -> tuple[Tensor, Tensor]:
    """The cheetah's own noise; the blocks start at rest where their springs carry them."""
    positions, velocities = normal(batch, generator, POSITIONS, POSITIONS, scale)
    still = torch.zeros(batch, len(BLOCKS), dtype=torch.float64, device=generator.device)
    return torch.cat([positions, still - BLOCK_MASS * GRAVITY / STIFFNESS], 1), torch.cat([velocities, still], 1)


def observe_pier(qpos: np.ndarray, qvel: np.ndarray, before: np.ndarray) -> np.ndarray:
    """[B, 21]: speed of the centre of mass, then the cheetah's positions without x, velocities and centre of mass."""
    centre = qpos[:, -3:]
    speed = (centre[:, :1] - before[:, -3:-2]) / DT
    return np.concatenate([speed, qpos[:, 1:POSITIONS], qvel[:, :POSITIONS], centre], 1)


def pier_body(scale: float) -> Body:
    """Cheetah and pier; ``scale`` is the standard deviation of the cheetah's start."""
    noise = functools.partial(pier_noise, scale=scale)
    physics = MujocoBody(pier_model, 1, 1.0, write_blocks, noise, observe_pier, centre_of_mass)
    names = (*half_cheetah.NAMES, *CENTRE)
    return Body(names, 6, DT, functools.partial(MujocoSimulator, body=physics), features=planar_features)
