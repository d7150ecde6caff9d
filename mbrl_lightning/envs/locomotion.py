"""MB-MPO's five runners: nothing varies, and the reward is an exact function of (o, a, o') (MB-MPO appendix A.1).

gymnasium's bodies and time steps, 200 steps an episode. The mean forward speed over the last step comes first in the
observation, so that real and imagined rewards are one function; networks do not see it. Rewards and ends are those of the
paper's code: speed - cost |a|^2 (+ 1 for every step not fallen before, the step of the fall included).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import mujoco
import numpy as np
import torch
from tensordict import TensorDictBase
from torch import Tensor

from mbrl_lightning.envs import ant as ants
from mbrl_lightning.envs import half_cheetah
from mbrl_lightning.envs import walker2d as walkers
from mbrl_lightning.envs.family import TaskFamily, one_task
from mbrl_lightning.envs.mujoco import MujocoBody, MujocoSimulator
from mbrl_lightning.envs.spec import EnvSpec, add_difference, never

HORIZON, SPEED = 200, ("x_speed_mean [m/s]",)
SWIMMER_NAMES = (
    "angle [rad]",
    *(f"joint_{number} [rad]" for number in (1, 2)),
    *(f"{axis}_velocity [m/s]" for axis in "xy"),
    "angular_velocity [rad/s]",
    *(f"joint_{number}_velocity [rad/s]" for number in (1, 2)),
)
HOPPER_JOINTS = ("thigh", "leg", "foot")
HOPPER_NAMES = (
    "z [m]",
    "pitch [rad]",
    *(f"{joint} [rad]" for joint in HOPPER_JOINTS),
    "x_velocity [m/s]",
    "z_velocity [m/s]",
    "pitch_velocity [rad/s]",
    *(f"{joint}_velocity [rad/s]" for joint in HOPPER_JOINTS),
)
HOPPER_HEIGHT, HOPPER_PITCH, HOPPER_LIMIT, LARGEST_SPEED = 0.7, 0.2, 100.0, 10.0


@dataclass(frozen=True)
class Runner:
    """A body that is paid for forward speed. B bodies, S observation entries behind the speed, F of their features.

    Attributes:
        xml: see MujocoBody.
        names: the S entries.
        action_dim: A.
        dt: seconds per control step.
        frame_skip: physics steps in it.
        cost: of |a|^2 with actions in [-1, 1].
        noise: see MujocoBody.
        observe: see MujocoBody; [B, 1 + S].
        bonus: for every step.
        termination: entries [..., S] -> bool [...].
        features: entries [..., S] -> [..., F].
        untarget: (entries, their change) -> next entries.
    """

    xml: str
    names: tuple[str, ...]
    action_dim: int
    dt: float
    frame_skip: int
    cost: float
    noise: Callable[[int, torch.Generator], tuple[Tensor, Tensor]]
    observe: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
    bonus: float = 0.0
    termination: Callable[[Tensor], Tensor] = never
    features: Callable[[Tensor], Tensor] = half_cheetah.planar_features
    untarget: Callable[[Tensor, Tensor], Tensor] = add_difference


def runner_family(name: str, body: Runner, horizon: int) -> TaskFamily:
    """The family of one ``body``; episodes of ``horizon`` steps, sums of rewards."""

    def reward(observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
        return next_observation[..., 0] + body.bonus - body.cost * action.square().sum(-1)

    def untarget(observation: Tensor, change: Tensor) -> Tensor:
        return torch.cat([change[..., :1], body.untarget(observation[..., 1:], change[..., 1:])], -1)

    def metrics(episodes: TensorDictBase) -> dict[str, Tensor]:
        speed, valid = episodes["next", "observation"][..., 0], episodes["valid"]
        lasted = {} if body.termination is never else {"upright/first_fall": valid.to(speed).sum(-1)}
        return {"distance": body.dt * (speed * valid).sum(-1)} | lasted

    spec = EnvSpec(
        name,
        (*SPEED, *body.names),
        action_dim=body.action_dim,
        horizon=horizon,
        unit="episode",
        reward=reward,
        termination=never if body.termination is never else lambda following: body.termination(following[..., 1:]),
        features=lambda observation: body.features(observation[..., 1:]),
        target=half_cheetah.target,
        untarget=untarget,
        metrics=metrics,
    )
    physics = MujocoBody(body.xml, body.frame_skip, 1.0, leave, body.noise, body.observe)
    return one_task(spec, lambda tasks: MujocoSimulator(spec, physics, tasks), horizon)


def leave(model: mujoco.MjModel, nominal: mujoco.MjModel, task: np.ndarray) -> None:
    """A ``MujocoBody.edit`` that changes nothing."""


def uniform(
    batch: int, generator: torch.Generator, positions: int, velocities: int, scale: float
) -> tuple[Tensor, Tensor]:
    """U[-scale, scale] on all positions and velocities."""
    unit = torch.rand(batch, positions + velocities, generator=generator, dtype=torch.float64, device=generator.device)
    noise = scale * (2 * unit - 1)
    return noise[:, :positions], noise[:, positions:]


def half_uniform(
    batch: int, generator: torch.Generator, positions: int, velocities: int, scale: float
) -> tuple[Tensor, Tensor]:
    """U[-scale, scale] on all positions, normal with that deviation on all velocities."""
    moved, _ = uniform(batch, generator, positions, 0, scale)
    shape, device = (batch, velocities), generator.device
    return moved, scale * torch.randn(*shape, generator=generator, dtype=torch.float64, device=device)


def observe_planar(qpos: np.ndarray, qvel: np.ndarray, before: np.ndarray, dt: float, hidden: int = 1) -> np.ndarray:
    """[B, 1 + S]: mean speed along x, positions but the first ``hidden``, velocities within +-10."""
    speed = (qpos[:, :1] - before[:, :1]) / dt
    return np.concatenate([speed, qpos[:, hidden:], qvel], 1)


def observe_hopper(qpos: np.ndarray, qvel: np.ndarray, before: np.ndarray) -> np.ndarray:
    """[B, 12]: mean speed along x, positions but x, velocities clipped to +-10."""
    return observe_planar(qpos, np.clip(qvel, -LARGEST_SPEED, LARGEST_SPEED), before, dt=0.008)


def hopper_fallen(entries: Tensor) -> Tensor:
    """Bool [...]: torso not above 0.7 m, pitch outside (-0.2, 0.2) rad, or a joint beyond 100 rad."""
    height, pitch = entries[..., 0], entries[..., 1]
    return (height <= HOPPER_HEIGHT) | (pitch.abs() >= HOPPER_PITCH) | (entries[..., 1:].abs() >= HOPPER_LIMIT).any(-1)


def swimmer_features(entries: Tensor) -> Tensor:
    """Sine and cosine in the place of the first entry, an angle without bounds: [..., 8] -> [..., 9]."""
    return torch.cat([entries[..., :1].sin(), entries[..., :1].cos(), entries[..., 1:]], -1)


def swimmer(horizon: int = HORIZON, reset_scale: float = 0.1) -> TaskFamily:
    """Swim forwards: speed - 0.0001 |a|^2, 200 steps of 0.04 s. Observation 9: mean speed, then gymnasium's 8.

    Args:
        horizon: steps per episode.
        reset_scale: half-width of the start, uniform on positions and velocities.
    """
    noise = functools.partial(uniform, positions=5, velocities=5, scale=reset_scale)
    seen = functools.partial(observe_planar, dt=0.04, hidden=2)
    body = Runner("swimmer.xml", SWIMMER_NAMES, 2, 0.04, 4, 1e-4, noise, seen, features=swimmer_features)
    return runner_family("swimmer", body, horizon)


def half_cheetah_200(horizon: int = HORIZON, reset_scale: float = 0.1) -> TaskFamily:
    """Run forwards: speed - 0.1 |a|^2, 200 steps of 0.05 s. Observation 18: mean speed, then gymnasium's 17.

    Args:
        horizon: steps per episode (MB-MPO: 200; 100 with noisy models, 1000 in its Fig. 5).
        reset_scale: half-width (positions) and deviation (velocities) of the start.
    """
    noise = functools.partial(half_uniform, positions=9, velocities=9, scale=reset_scale)
    names, cost = half_cheetah.OBSERVATION_NAMES[1:], half_cheetah.CONTROL_COST
    skip, seen = half_cheetah.FRAME_SKIP, half_cheetah.observe
    return runner_family(
        "half_cheetah_200", Runner("half_cheetah.xml", names, 6, half_cheetah.DT, skip, cost, noise, seen), horizon
    )


def hopper(horizon: int = HORIZON, reset_scale: float = 0.005) -> TaskFamily:
    """Hop forwards: speed + 1 - 0.001 |a|^2, at most 200 steps of 0.008 s. Observation 12: mean speed, then gymnasium's 11.

    The episode ends when the torso's height is not above 0.7 m or its pitch leaves (-0.2, 0.2) rad.

    Args:
        horizon: steps per episode.
        reset_scale: half-width of the start, uniform on positions and velocities.
    """
    noise = functools.partial(uniform, positions=6, velocities=6, scale=reset_scale)
    body = Runner("hopper.xml", HOPPER_NAMES, 3, 0.008, 4, 1e-3, noise, observe_hopper, 1.0, hopper_fallen)
    return runner_family("hopper", body, horizon)


def walker2d(horizon: int = HORIZON, reset_scale: float = 0.005) -> TaskFamily:
    """Walk forwards: speed + 1 - 0.001 |a|^2, at most 200 steps of 0.008 s. Observation 18: mean speed, gymnasium's 17.

    The episode ends when the torso's height leaves (0.8, 2) m or its pitch (-1, 1) rad.

    Args:
        horizon: steps per episode.
        reset_scale: half-width of the start, uniform on positions and velocities.
    """
    noise = functools.partial(uniform, positions=9, velocities=9, scale=reset_scale)
    dt, skip, seen = walkers.DT, walkers.FRAME_SKIP, walkers.observe
    body = Runner("walker2d_v5.xml", walkers.NAMES, 6, dt, skip, 1e-3, noise, seen, 1.0, walkers.fallen)
    return runner_family("walker2d", body, horizon)


def ant(horizon: int = HORIZON, reset_scale: float = 0.1) -> TaskFamily:
    """Run forwards: speed + 1 - 0.005 |a|^2, at most 200 steps of 0.05 s. Observation 28: mean speed, gymnasium's first 27.

    No contact forces, as in the paper's code. The episode ends when the torso's height leaves [0.2, 1] m.

    Args:
        horizon: steps per episode.
        reset_scale: half-width (positions) and deviation (velocities) of the start.
    """
    noise = functools.partial(half_uniform, positions=15, velocities=14, scale=reset_scale)
    body = Runner(
        "ant.xml",
        ants.NAMES,
        8,
        ants.DT,
        ants.FRAME_SKIP,
        0.005,
        noise,
        functools.partial(ants.observe, x=0),
        bonus=1.0,
        termination=ants.fallen,
        features=lambda entries: entries,
        untarget=ants.untarget,
    )
    return runner_family("ant", body, horizon)
