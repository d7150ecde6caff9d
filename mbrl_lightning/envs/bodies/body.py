"""What every body says of itself, and what several bodies share: starts, names, pay for speed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from tensordict import TensorDictBase
from torch import Tensor

from mbrl_lightning.envs.spec import EnvSpec, Simulator, add_difference, difference, identity, never

SPEED = ("x_speed_mean [m/s]",)


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
        motors: the joint that each actuator turns, as ``names`` has it.
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
    motors: tuple[str, ...] = ()


def joint_entries(names: tuple[str, ...], motors: tuple[str, ...]) -> tuple[tuple[int, int], ...]:
    """Where angle and velocity of the joint of each motor stand among the entries ``names``."""
    return tuple((names.index(f"{joint} [rad]"), names.index(f"{joint}_velocity [rad/s]")) for joint in motors)


def body_spec(
    name: str,
    body: Body,
    horizon: int,
    reward: Callable[[Tensor, Tensor, Tensor], Tensor],
    speed: Callable[[TensorDictBase], Tensor],
    first: tuple[str, ...] = (),
    last: tuple[str, ...] = (),
) -> EnvSpec:
    """The spec of a ``body`` whose visible entries stand between those called ``first`` and ``last``.

    Models predict these as they are; networks see the last ones. ``speed`` gives that of each step of episodes
    [..., T], from which the distance follows; the steps that an episode lasted are told where it may end early.
    """
    begin, end = len(first), len(first) + len(body.names)

    def seen(observation: Tensor) -> Tensor:
        return observation[..., begin:end]

    def features(observation: Tensor) -> Tensor:
        own = body.features(seen(observation))
        return torch.cat([own, observation[..., end:]], -1) if last else own

    def target(observation: Tensor, next_observation: Tensor) -> Tensor:
        change = body.target(seen(observation), seen(next_observation))
        return torch.cat([next_observation[..., :begin], change, next_observation[..., end:]], -1)

    def untarget(observation: Tensor, change: Tensor) -> Tensor:
        back = change.shape[-1] - len(last)
        following = body.untarget(seen(observation), change[..., begin:back])
        return torch.cat([change[..., :begin], following, change[..., back:]], -1)

    def metrics(episodes: TensorDictBase) -> dict[str, Tensor]:
        travelled, valid = speed(episodes), episodes["valid"]
        lasted = {} if body.fallen is never else {"upright/first_fall": valid.to(travelled).sum(-1)}
        return {"distance": body.dt * (travelled * valid).sum(-1)} | lasted

    return EnvSpec(
        name,
        (*first, *body.names, *last),
        action_dim=body.action_dim,
        horizon=horizon,
        unit="episode",
        reward=reward,
        termination=never if body.fallen is never else lambda following: body.fallen(seen(following)),
        features=features,
        target=target,
        untarget=untarget,
        joints=joint_entries((*first, *body.names, *last), body.motors),
        metrics=metrics,
    )


def runner_spec(name: str, body: Body, horizon: int, cost: float, bonus: float = 0.0) -> EnvSpec:
    """Pay speed + ``bonus`` - ``cost`` |a|^2 on a ``body`` whose mean speed comes first in the observation.

    So real and imagined rewards are one exact function of the next observation (CaDM). Models predict the speed itself;
    networks do not see it, since it does not move the body. ``bonus`` is for every step, that of the fall included.
    """

    def reward(observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
        return next_observation[..., 0] + bonus - cost * action.square().sum(-1)

    def speed(episodes: TensorDictBase) -> Tensor:
        return episodes["next", "observation"][..., 0]

    return body_spec(name, body, horizon, reward, speed, first=body.unseen)


def uniform(batch: int, generator: torch.Generator, nq: int, nv: int, scale: float) -> tuple[Tensor, Tensor]:
    """A start: U[-scale, scale] on all ``nq`` positions and ``nv`` velocities."""
    unit = torch.rand(batch, nq + nv, generator=generator, dtype=torch.float64, device=generator.device)
    return (scale * (2 * unit - 1)).split([nq, nv], 1)


def half_uniform(batch: int, generator: torch.Generator, nq: int, nv: int, scale: float) -> tuple[Tensor, Tensor]:
    """A start: U[-scale, scale] on all positions, normal with that deviation on all velocities."""
    return uniform(batch, generator, nq, 0, scale)[0], normal(batch, generator, 0, nv, scale)[1]


def normal(batch: int, generator: torch.Generator, nq: int, nv: int, scale: float) -> tuple[Tensor, Tensor]:
    """A start: normal noise with deviation ``scale`` on all positions and velocities."""
    noise = torch.randn(batch, nq + nv, generator=generator, dtype=torch.float64, device=generator.device)
    return (noise * scale).split([nq, nv], 1)


def free_names(joints: tuple[str, ...]) -> tuple[str, ...]:
    """Entries of a body in space: height, quaternion (w first) and joints, then the velocities."""
    linear = (*(f"{axis}_velocity [m/s]" for axis in "xyz"), *(f"{axis}_angular_velocity [rad/s]" for axis in "xyz"))
    pose = ("z [m]", *(f"quaternion_{part}" for part in "wxyz"), *(f"{joint} [rad]" for joint in joints))
    return (*pose, *linear, *(f"{joint}_velocity [rad/s]" for joint in joints))
