"""Half-Cheetahs with a hidden task: a direction that switches in flight, or a pier of blocks (M3PO)."""

from __future__ import annotations

import functools
from collections.abc import Callable

import mujoco
import numpy as np
import torch
from torch import Tensor

from mbrl_lightning.envs import half_cheetah
from mbrl_lightning.envs.family import Box, TaskFamily
from mbrl_lightning.envs.mujoco import (
    MujocoBody,
    MujocoSimulator,
    asset,
    centre_of_mass,
    paint,
    paint_direction,
)
from mbrl_lightning.envs.switching_family import (
    Body,
    PreviousReward,
    boxed,
    directions,
    switching_family,
    switching_spec,
    travelled,
)
from mbrl_lightning.envs.told import tell

CONTROL_COST, RESET_SCALE, TIME_STEP = 0.05, 0.1, 0.01
SPEED, NAMES = half_cheetah.OBSERVATION_NAMES[:1], half_cheetah.OBSERVATION_NAMES[1:]
CENTRE = tuple(f"centre_of_mass_{axis} [m]" for axis in "xyz")
# learning_to_adapt's pier: centre and half-length of each block along x, in metres.
BLOCKS = ((-8.0, 5.999), *((4.0 * i, 1.999) for i in range(6)), (42.0, 19.999))
HALF_WIDTH, HALF_HEIGHT, TRAVEL, STIFFNESS, BLOCK_MASS, SEABED = 0.99, 0.05, 0.15, 150.0, 1.38, -1.0
DAMPING, FRICTION, GRAVITY = (0.0, 10.0), (0.2, 0.8), 9.81
POSITIONS = 9  # of the cheetah; the blocks follow


def half_cheetah_fwd_bwd(
    switch_every_steps: int | None = 300,
    jitter: float = 0.1,
    horizon: int = 1000,
    flip: bool = False,
    previous_reward: PreviousReward = "observation",
    reset_scale: float = RESET_SCALE,
    told: bool = False,
) -> TaskFamily:
    """Run forwards or backwards, which is hidden and drawn anew every 270 to 330 steps; sums of rewards.

    Reward d (x' - x) / dt - 0.05 |a|^2 with dt = 0.05 s; nothing ends an episode early. Observation (17): gymnasium's.
    Test tasks: each direction ten times, the direction in which an episode starts.

    Args:
        switch_every_steps: mean steps between switches; None: only at the start of an episode.
        jitter: relative half-width of those steps.
        horizon: steps per episode.
        flip: a switch always turns round; otherwise the direction is drawn anew and may stay.
        previous_reward: where networks see it, "observation" or "history" only.
        reset_scale: standard deviation of the start.
        told: show the direction: the ceiling of what a history can be worth.
    """
    noise = functools.partial(half_cheetah.reset_noise, scale=reset_scale)
    physics = MujocoBody("half_cheetah.xml", half_cheetah.FRAME_SKIP, 1.0, paint_direction, noise, half_cheetah.observe)
    body = Body(
        NAMES,
        SPEED,
        6,
        lambda spec, tasks: MujocoSimulator(spec, physics, tasks),
        features=half_cheetah.planar_features,
    )

    def reward(before: Tensor, action: Tensor, after: Tensor, tasks: Tensor) -> Tensor:
        return tasks[..., 0] * after[..., 0] - CONTROL_COST * action.square().sum(-1)

    metrics = travelled(half_cheetah.DT, CONTROL_COST)
    spec = switching_spec("half_cheetah_fwd_bwd", body, horizon, previous_reward, metrics=metrics)
    family = switching_family(spec, body, directions(flip), reward, switch_every_steps, jitter)
    return tell(family) if told else family


def pier_model(cheetah_mass: float) -> mujoco.MjModel:
    """Gymnasium's cheetah on eight floating blocks, each on a vertical spring.

    Masses are written explicitly: the original's settotalmass shares 14 kg out over cheetah *and* blocks, which leaves the
    cheetah 2.93 kg. The floor becomes a sea bed 1 m below, so that who runs off the pier stops falling.
    """
    spec = mujoco.MjSpec.from_file(str(asset("half_cheetah.xml")))
    spec.compiler.settotalmass = -1
    spec.geom("floor").pos = [0, 0, SEABED]
    for number, (centre, half_length) in enumerate(BLOCKS):
        block = spec.worldbody.add_body(name=f"block_{number}", pos=[centre, 0, HALF_HEIGHT])
        block.add_joint(
            name=f"block_{number}",
            type=mujoco.mjtJoint.mjJNT_SLIDE,
            axis=[0, 0, 1],
            limited=True,
            range=[-TRAVEL, TRAVEL],
            armature=0.1,
        )
        block.add_geom(
            name=f"block_{number}",
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


@functools.cache
def _builder(cheetah_mass: float) -> Callable[[], mujoco.MjModel]:
    return functools.partial(pier_model, cheetah_mass)


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
    positions, velocities = half_cheetah.reset_noise(batch, generator, scale)
    still = torch.zeros(batch, len(BLOCKS), dtype=torch.float64, device=generator.device)
    return torch.cat([positions, still - BLOCK_MASS * GRAVITY / STIFFNESS], 1), torch.cat([velocities, still], 1)


def observe_pier(qpos: np.ndarray, qvel: np.ndarray, before: np.ndarray, dt: float) -> np.ndarray:
    """[B, 21]: speed of the centre of mass, then the cheetah's positions without x, velocities and centre of mass."""
    centre = qpos[:, -3:]
    speed = (centre[:, :1] - before[:, -3:-2]) / dt
    return np.concatenate([speed, qpos[:, 1:POSITIONS], qvel[:, :POSITIONS], centre], 1)


def half_cheetah_pier(
    switch_every_steps: int | None = None,
    jitter: float = 0.1,
    horizon: int = 1000,
    previous_reward: PreviousReward = "observation",
    reset_scale: float = RESET_SCALE,
    frame_skip: int = 1,
    cheetah_mass: float = 14.0,
) -> TaskFamily:
    """Run forwards over eight floating blocks whose damping and friction are hidden and drawn for each episode.

    Block damping U[0, 10] and sliding friction U[0.2, 0.8], independent; 20 fixed test draws. Reward: forward speed of the
    centre of mass - 0.05 |a|^2, summed over 1000 steps of 0.01 s; nothing ends an episode early. Observation (20): the
    cheetah's, then its centre of mass; the blocks are not seen.

    Args:
        switch_every_steps: mean steps between switches; None: only at the start of an episode.
        jitter: relative half-width of those steps.
        horizon: steps per episode.
        previous_reward: where networks see it, "observation" or "history" only.
        reset_scale: standard deviation of the cheetah's start.
        frame_skip: physics steps of 0.01 s per control step.
        cheetah_mass: kg; each block has 1.38. learning_to_adapt's compiled model has 2.93.
    """
    dt = TIME_STEP * frame_skip
    noise, seen = functools.partial(pier_noise, scale=reset_scale), functools.partial(observe_pier, dt=dt)
    physics = MujocoBody(_builder(cheetah_mass), frame_skip, 1.0, write_blocks, noise, seen, centre_of_mass)
    body = Body(
        (*NAMES, *CENTRE),
        ("x_speed_mean [m/s]",),
        6,
        lambda spec, tasks: MujocoSimulator(spec, physics, tasks),
        features=half_cheetah.planar_features,
    )
    count = len(BLOCKS)
    names = tuple(f"{what}_{number}" for what in ("damping", "friction") for number in range(count))
    low, high = zip(DAMPING, FRICTION, strict=True)
    box = Box((low[0],) * count + (low[1],) * count, (high[0],) * count + (high[1],) * count)
    distant = tuple(name for name in names if not name.endswith("_1"))  # an episode begins on block 1

    def reward(before: Tensor, action: Tensor, after: Tensor, tasks: Tensor) -> Tensor:
        return after[..., 0] - CONTROL_COST * action.square().sum(-1)

    spec = switching_spec("half_cheetah_pier", body, horizon, previous_reward, metrics=travelled(dt, CONTROL_COST))
    return switching_family(spec, body, boxed(names, box, distant), reward, switch_every_steps, jitter)
