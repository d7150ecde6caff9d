"""Half-Cheetah families: the papers' mass x damping grid, a wide one, and one with a reversed joint.

Observation (18): mean forward speed over the last control step, then positions without x, then velocities.
The first entry makes the reward, forward speed minus 0.1 |action|^2, an exact function of the next
observation (CaDM).
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import mujoco
import numpy as np
import torch
from tensordict import TensorDictBase
from torch import Tensor

from mbrl_lightning.envs.family import Box, TaskFamily, draw_from, grid_of
from mbrl_lightning.envs.mujoco import MujocoBody, MujocoSimulator, paint, scale_mass_and_damping
from mbrl_lightning.envs.spec import EnvSpec
from mbrl_lightning.errors import ConfigError

DT, FRAME_SKIP, HORIZON, CONTEXT_STEPS, CONTROL_COST = 0.05, 5, 1000, 500, 0.1
TEST_TASKS, TEST_SEED = 20, 20260
L2A_CONTROL_COST, L2A_RESET_SCALE = 0.05, 0.1
JOINTS = ("bthigh", "bshin", "bfoot", "fthigh", "fshin", "ffoot")
OBSERVATION_NAMES = (
    "x_speed_mean [m/s]",
    "z [m]",
    "pitch [rad]",
    *(f"{joint} [rad]" for joint in JOINTS),
    "x_velocity [m/s]",
    "z_velocity [m/s]",
    "pitch_velocity [rad/s]",
    *(f"{joint}_velocity [rad/s]" for joint in JOINTS),
)


def observe(qpos: np.ndarray, qvel: np.ndarray, before: np.ndarray) -> np.ndarray:
    """[B, 18] from positions [B, 9], velocities [B, 9] and the positions before the step."""
    return np.concatenate([(qpos[:, :1] - before[:, :1]) / DT, qpos[:, 1:], qvel], 1)


def reward(observation: Tensor, action: Tensor, next_observation: Tensor, control_cost: float = CONTROL_COST) -> Tensor:
    """Mean forward speed over the step minus ``control_cost`` |action|^2."""
    return next_observation[..., 0] - control_cost * action.square().sum(-1)


def planar_features(observation: Tensor) -> Tensor:
    """Sine and cosine in the place of the pitch, the second entry: [..., S] -> [..., S + 1]."""
    pitch = observation[..., 1:2]
    return torch.cat([observation[..., :1], pitch.sin(), pitch.cos(), observation[..., 2:]], -1)


def features(observation: Tensor) -> Tensor:
    """Height, sin and cos of pitch, joints, velocities: [..., 18]. The mean speed does not move the body."""
    return planar_features(observation[..., 1:])


def target(observation: Tensor, next_observation: Tensor) -> Tensor:
    """The next mean speed itself, differences of everything else: [..., 18]."""
    return torch.cat([next_observation[..., :1], next_observation[..., 1:] - observation[..., 1:]], -1)


def untarget(observation: Tensor, change: Tensor) -> Tensor:
    """Inverse of :func:`target`."""
    return torch.cat([change[..., :1], observation[..., 1:] + change[..., 1:]], -1)


def reset_noise(batch: int, generator: torch.Generator, scale: float) -> tuple[Tensor, Tensor]:
    """Normal noise on all 9 positions and 9 velocities."""
    noise = torch.randn(batch, 18, generator=generator, dtype=torch.float64, device=generator.device) * scale
    return noise[:, :9], noise[:, 9:]


def metrics(episodes: TensorDictBase) -> dict[str, Tensor]:
    """Forward metres [...] of episodes [..., T]."""
    return {"distance": DT * (episodes["next", "observation"][..., 0] * episodes["valid"]).sum(-1)}


def set_gears(model: mujoco.MjModel, nominal: mujoco.MjModel, task: np.ndarray) -> None:
    """Write task = signed gear scale of the 6 joints."""
    model.actuator_gear[:, 0] = nominal.actuator_gear[:, 0] * task


def disable_joint(model: mujoco.MjModel, nominal: mujoco.MjModel, task: np.ndarray) -> None:
    """Write task = (joint,): its motor gives no torque, and what it would move is painted red."""
    joint = round(float(task[0]))
    for field in ("geom_matid", "geom_rgba", "actuator_gear"):
        getattr(model, field)[:] = getattr(nominal, field)
    model.actuator_gear[joint] = 0
    moved = model.jnt_bodyid[model.actuator_trnid[joint, 0]]
    paint(model, np.flatnonzero(model.geom_bodyid == moved), (0.85, 0.1, 0.1))


def _spec(name: str, horizon: int = HORIZON, control_cost: float = CONTROL_COST) -> EnvSpec:
    return EnvSpec(
        name,
        OBSERVATION_NAMES,
        action_dim=6,
        horizon=horizon,
        unit="episode",
        reward=functools.partial(reward, control_cost=control_cost),
        features=features,
        target=target,
        untarget=untarget,
        metrics=metrics,
    )


def _body(edit: Callable[[mujoco.MjModel, mujoco.MjModel, np.ndarray], None], noise_scale: float) -> MujocoBody:
    noise = functools.partial(reset_noise, scale=noise_scale)
    return MujocoBody("half_cheetah.xml", FRAME_SKIP, 1.0, edit, noise, observe)


def half_cheetah(reset_scale: float = 0.001, scale_inertia: bool = False, horizon: int = HORIZON) -> TaskFamily:
    """GSSM's family: mass scale and damping scale on a grid.

    Train: {.8, .9, 1, 1.1, 1.2}^2 (25 tasks); test: {.85, .95, 1.05, 1.15}^2 (16). Extreme tasks: {.5, .7,
        1.3, 1.5}^2 (16). Returns are sums over 1000 steps; random policy about -290.

    Args:
        reset_scale: standard deviation of the start (CaDM: 0.001; gymnasium uses 0.1).
        scale_inertia: scale rotational inertias with the masses (CaDM and GSSM: no).
        horizon: steps per episode.
    """
    spec, train = _spec("half_cheetah", horizon), grid_of(*[(0.8, 0.9, 1.0, 1.1, 1.2)] * 2)
    body = _body(functools.partial(scale_mass_and_damping, scale_inertia=scale_inertia), reset_scale)
    return TaskFamily(
        spec=spec,
        parameters=("mass_scale", "damping_scale"),
        draw=draw_from(train),
        build=lambda tasks: MujocoSimulator(spec, body, tasks),
        rescale=Box((0.8, 0.8), (1.2, 1.2)).scale,
        test=grid_of(*[(0.85, 0.95, 1.05, 1.15)] * 2),
        extreme=grid_of(*[(0.5, 0.7, 1.3, 1.5)] * 2),
        context_steps=CONTEXT_STEPS,
        grid=train,
    )


def half_cheetah_wide(reset_scale: float = 0.001, scale_inertia: bool = True, horizon: int = HORIZON) -> TaskFamily:
    """Mass and damping scale log-uniform in [1/3, 3]: knowing them is worth 20 to 40 % of the return.

    20 fixed test draws; 20 extreme draws log-uniform in [1/5, 5] with at least one of the two outside [1/3,
    3]. Arguments as for :func:`half_cheetah`.
    """
    spec, train = _spec("half_cheetah_wide", horizon), Box((1 / 3, 1 / 3), (3.0, 3.0), log=True)
    beyond = Box((0.2, 0.2), (5.0, 5.0), log=True)
    body = _body(functools.partial(scale_mass_and_damping, scale_inertia=scale_inertia), reset_scale)
    return TaskFamily(
        spec=spec,
        parameters=("mass_scale", "damping_scale"),
        draw=train.sample,
        build=lambda tasks: MujocoSimulator(spec, body, tasks),
        rescale=train.scale,
        test=train.draws(TEST_TASKS, TEST_SEED),
        extreme=beyond.draws(TEST_TASKS, TEST_SEED + 1, outside=train),
        context_steps=CONTEXT_STEPS,
    )


def draw_gears(n: int, generator: torch.Generator, reversed_joints: tuple[int, ...] = (0, 1)) -> Tensor:
    """N signed gear scales, float64 [n, 6]: sizes U[0.7, 1.3]; the number of reversed joints is drawn.

    With the default, none or one of the 6 joints is reversed, all 7 cases equally likely; (2,) reverses
    exactly two.
    """
    device = generator.device
    size = 0.7 + 0.6 * torch.rand(n, 6, generator=generator, dtype=torch.float64, device=device)
    order = torch.rand(n, 6, generator=generator, device=device).argsort(-1).argsort(-1)
    if reversed_joints == (0, 1):
        count = (torch.randint(7, (n, 1), generator=generator, device=device) > 0).long()
    else:
        choice = torch.randint(len(reversed_joints), (n, 1), generator=generator, device=device)
        count = torch.tensor(reversed_joints, device=device)[choice]
    return torch.where(order < count, -size, size).cpu()


def half_cheetah_flip(reset_scale: float = 0.001) -> TaskFamily:
    """One of six motors works backwards, or none; all are U[0.7, 1.3] as strong: 6 signed gear scales.

    Loud on purpose: a policy that believes the wrong task loses half its return. 20 fixed test draws; 20
    extreme draws with two motors reversed, which never happens in training.

    Args:
        reset_scale: standard deviation of the start.
    """
    spec, body = _spec("half_cheetah_flip"), _body(set_gears, reset_scale)
    return TaskFamily(
        spec=spec,
        parameters=tuple(f"gear_{joint}" for joint in JOINTS),
        draw=draw_gears,
        build=lambda tasks: MujocoSimulator(spec, body, tasks),
        rescale=lambda tasks: tasks / 1.3,
        test=draw_gears(TEST_TASKS, torch.Generator().manual_seed(TEST_SEED)),
        extreme=draw_gears(TEST_TASKS, torch.Generator().manual_seed(TEST_SEED + 1), reversed_joints=(2,)),
        context_steps=CONTEXT_STEPS,
    )


def half_cheetah_disabled(
    horizon: int = HORIZON, reset_scale: float = L2A_RESET_SCALE, held_out: int | None = None
) -> TaskFamily:
    """One of six motors gives no torque (L2A): joints 0 to 4 in training, the front foot, joint 5, in the test.

    Reward: forward speed - 0.05 |a|^2, summed over 1000 steps of 0.05 s; nothing ends an episode early. The 20 test tasks
    are the one unseen joint with other initial states.

    Args:
        horizon: steps per episode.
        reset_scale: standard deviation of the start.
        held_out: of the joints 0 to 4, the one that fails in the test and never in training: for choices, which must not be
            made on joint 5.

    Raises:
        ConfigError: no such joint.
    """
    spec = _spec("half_cheetah_disabled", horizon, L2A_CONTROL_COST)
    if held_out is not None and held_out not in range(5):
        raise ConfigError(f"held_out={held_out}", "choose one of the training joints, 0 to 4")
    tested, trained = 5 if held_out is None else held_out, [joint for joint in range(5) if joint != held_out]
    body, train = _body(disable_joint, reset_scale), torch.tensor(trained, dtype=torch.float64).unsqueeze(1)
    return TaskFamily(
        spec=spec,
        parameters=("disabled_joint",),
        draw=draw_from(train),
        build=lambda tasks: MujocoSimulator(spec, body, tasks),
        rescale=Box((0.0,), (5.0,)).scale,
        test=torch.full((TEST_TASKS, 1), float(tested), dtype=torch.float64),
        extreme=torch.empty(0, 1, dtype=torch.float64),
        context_steps=CONTEXT_STEPS,
        grid=train,
    )
