"""What every body says of itself, and what several bodies share: starts, planar observations, pay for speed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from tensordict import TensorDictBase
from torch import Tensor

from mbrl_lightning.envs.spec import EnvSpec, Simulator, add_difference, difference, identity, never

SPEED, LARGEST_SPEED = ("x_speed_mean [m/s]",), 10.0


class Retaskable(Simulator, Protocol):
    """A simulator whose rows can be given another task in flight: positions and velocities stay as they are."""

    def set_tasks(self, rows: Tensor, tasks: Tensor) -> None:
        """Give ``rows`` (indices [n]) the tasks [n, P]; nothing else of them changes."""


@dataclass(frozen=True)
class Body:
    """A body whose speed is paid. Its simulator observes the unseen entries first, then the S visible ones.

    Attributes:
        names: visible entries.
        action_dim: A.
        dt: seconds per control step.
        build: (spec with all entries, tasks [B, P]) -> simulator.
        unseen: what only rewards and models see: the mean forward speed over the last step.
        speed: the entry that is paid.
        features: visible entries [..., S] -> [..., F], what networks see.
        target: (visible, next visible) -> what a model predicts.
        untarget: its inverse.
        fallen: visible entries [..., S] -> bool [...], where an episode ends.
    """

    names: tuple[str, ...]
    action_dim: int
    dt: float
    build: Callable[[EnvSpec, Tensor], Retaskable]
    unseen: tuple[str, ...] = SPEED
    speed: int = 0
    features: Callable[[Tensor], Tensor] = identity
    target: Callable[[Tensor, Tensor], Tensor] = difference
    untarget: Callable[[Tensor, Tensor], Tensor] = add_difference
    fallen: Callable[[Tensor], Tensor] = never


def runner_spec(name: str, body: Body, horizon: int, cost: float, bonus: float = 0.0) -> EnvSpec:
    """Pay speed + ``bonus`` - ``cost`` |a|^2 on a ``body`` whose mean speed comes first in the observation.

    So real and imagined rewards are one exact function of the next observation (CaDM). Models predict the speed itself;
    networks do not see it, since it does not move the body. ``bonus`` is for every step, that of the fall included.
    """

    def reward(observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
        return next_observation[..., 0] + bonus - cost * action.square().sum(-1)

    def target(observation: Tensor, next_observation: Tensor) -> Tensor:
        change = body.target(observation[..., 1:], next_observation[..., 1:])
        return torch.cat([next_observation[..., :1], change], -1)

    def untarget(observation: Tensor, change: Tensor) -> Tensor:
        return torch.cat([change[..., :1], body.untarget(observation[..., 1:], change[..., 1:])], -1)

    def metrics(episodes: TensorDictBase) -> dict[str, Tensor]:
        speed, valid = episodes["next", "observation"][..., 0], episodes["valid"]
        lasted = {} if body.fallen is never else {"upright/first_fall": valid.to(speed).sum(-1)}
        return {"distance": body.dt * (speed * valid).sum(-1)} | lasted

    return EnvSpec(
        name,
        (*body.unseen, *body.names),
        action_dim=body.action_dim,
        horizon=horizon,
        unit="episode",
        reward=reward,
        termination=never if body.fallen is never else lambda following: body.fallen(following[..., 1:]),
        features=lambda observation: body.features(observation[..., 1:]),
        target=target,
        untarget=untarget,
        metrics=metrics,
    )


def uniform(
    batch: int, generator: torch.Generator, positions: int, velocities: int, scale: float
) -> tuple[Tensor, Tensor]:
    """A start: U[-scale, scale] on all positions and velocities."""
    unit = torch.rand(batch, positions + velocities, generator=generator, dtype=torch.float64, device=generator.device)
    noise = scale * (2 * unit - 1)
    return noise[:, :positions], noise[:, positions:]


def half_uniform(
    batch: int, generator: torch.Generator, positions: int, velocities: int, scale: float
) -> tuple[Tensor, Tensor]:
    """A start: U[-scale, scale] on all positions, normal with that deviation on all velocities."""
    moved, _ = uniform(batch, generator, positions, 0, scale)
    return moved, normal(batch, generator, 0, velocities, scale)[1]


def normal(
    batch: int, generator: torch.Generator, positions: int, velocities: int, scale: float
) -> tuple[Tensor, Tensor]:
    """A start: normal noise with deviation ``scale`` on all positions and velocities."""
    noise = torch.randn(
        batch, positions + velocities, generator=generator, dtype=torch.float64, device=generator.device
    )
    noise = noise * scale
    return noise[:, :positions], noise[:, positions:]


def observe_planar(qpos: np.ndarray, qvel: np.ndarray, before: np.ndarray, dt: float, hidden: int = 1) -> np.ndarray:
    """[B, 1 + S]: mean speed along x, positions but the first ``hidden``, velocities."""
    return np.concatenate([(qpos[:, :1] - before[:, :1]) / dt, qpos[:, hidden:], qvel], 1)


def observe_clipped(qpos: np.ndarray, qvel: np.ndarray, before: np.ndarray, dt: float) -> np.ndarray:
    """[B, 1 + S]: as :func:`observe_planar`, velocities within +-10."""
    return observe_planar(qpos, np.clip(qvel, -LARGEST_SPEED, LARGEST_SPEED), before, dt)


def planar_names(joints: tuple[str, ...]) -> tuple[str, ...]:
    """Entries of a body in the x-z plane: height, pitch and joints, then their velocities."""
    return (
        "z [m]",
        "pitch [rad]",
        *(f"{joint} [rad]" for joint in joints),
        "x_velocity [m/s]",
        "z_velocity [m/s]",
        "pitch_velocity [rad/s]",
        *(f"{joint}_velocity [rad/s]" for joint in joints),
    )


def planar_features(observation: Tensor) -> Tensor:
    """Sine and cosine in the place of the pitch, the second entry: [..., S] -> [..., S + 1]."""
    pitch = observation[..., 1:2]
    return torch.cat([observation[..., :1], pitch.sin(), pitch.cos(), observation[..., 2:]], -1)
