"""What observations, actions, rewards and dynamics targets of a task family mean, once, in batched torch.

The real environment, imagined rollouts and planners all call the same functions, so a reward can never differ between them.
Shapes: ``...`` any batch, S observation, A action, F features, U action features, Y dynamics target.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import torch
from tensordict import TensorDictBase
from torch import Tensor

from mbrl_lightning.errors import ConfigError, DivergedError, EnvError

if TYPE_CHECKING:
    from mbrl_lightning.envs.bodies.shapes import Drawing


def difference(observation: Tensor, next_observation: Tensor) -> Tensor:
    """The plainest dynamics target: ``next_observation - observation``, [..., S]."""
    return next_observation - observation


def add_difference(observation: Tensor, target: Tensor) -> Tensor:
    """Inverse of :func:`difference`: ``observation + target``, [..., S]."""
    return observation + target


def never(next_observation: Tensor) -> Tensor:
    """Termination of a family whose episodes end by the time limit only: all False, [...]."""
    return torch.zeros(next_observation.shape[:-1], dtype=torch.bool, device=next_observation.device)


def exchanged(order: Sequence[int], signs: Sequence[float]) -> Callable[[Tensor], Tensor]:
    """Entry i of the result is ``signs[i]`` times entry ``order[i]``: how a mirror image comes about, [..., D] -> [..., D]."""
    index, sign = torch.tensor(order), torch.tensor(signs)

    def image(value: Tensor) -> Tensor:
        return value[..., index] * sign.to(value)

    return image


def identity(value: Tensor) -> Tensor:
    """The value itself; the default for features and action features."""
    return value


@dataclass(frozen=True)
class EnvSpec:
    """The fixed part of a task family: everything but the task.

    Continuous actions are always normalised to [-1, 1]; the simulator clips them and scales them to physical units.

    Attributes:
        name: of the family.
        observation_names: one per entry (S of them), with units where they are not obvious.
        action_dim: A; for discrete actions the number of choices (actions are then one-hot floats).
        horizon: steps per episode.
        unit: how returns are reported: "step" divides the sum of rewards by ``horizon``, "episode" keeps the sum.
        reward: (obs [..., S], normalised and clipped action [..., A], next_obs [..., S]) -> [...].
        termination: next_obs [..., S] -> bool [...]; True where the MDP itself ends.
        features: obs [..., S] -> [..., F], what networks see.
        target: (obs, next_obs) -> [..., Y], what a dynamics model predicts.
        untarget: (obs [..., S], target [..., Y]) -> next_obs [..., S].
        discrete: actions are one-hot.
        action_features: action [..., A] -> [..., U], what a dynamics model sees of the action.
        training_termination: next_obs -> bool [...] or None. Training episodes are cut there and imagination treats it as
            terminal; evaluation episodes run on.
        change: (obs, next_obs) -> [..., S], the change in which prediction errors are measured (angles wrapped).
        outcome: next_obs [..., S] -> [..., R] or None: what a history pair holds beside observation and action, such as the
            reward just received.
        joints: of each actuator the entries of the observation that are its joint's angle and velocity; empty: not told.
        mirror: left and right exchanged, where the body and all of its tasks have them: observation [..., S] -> [..., S] and
            action [..., A] -> [..., A]; None: no symmetry.
        metrics: evaluation episodes [..., T] -> further numbers by name, [...] each (upright share, distance ...).
    """

    name: str
    observation_names: tuple[str, ...]
    action_dim: int
    horizon: int
    unit: Literal["step", "episode"]
    reward: Callable[[Tensor, Tensor, Tensor], Tensor]
    termination: Callable[[Tensor], Tensor] = never
    features: Callable[[Tensor], Tensor] = identity
    target: Callable[[Tensor, Tensor], Tensor] = difference
    untarget: Callable[[Tensor, Tensor], Tensor] = add_difference
    discrete: bool = False
    action_features: Callable[[Tensor], Tensor] = identity
    training_termination: Callable[[Tensor], Tensor] | None = None
    change: Callable[[Tensor, Tensor], Tensor] = difference
    outcome: Callable[[Tensor], Tensor] | None = None
    joints: tuple[tuple[int, int], ...] = ()
    mirror: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]] | None = None
    metrics: Callable[[TensorDictBase], dict[str, Tensor]] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.horizon, Integral) or self.horizon < 1 or self.unit not in ("step", "episode"):
            raise ConfigError(
                f"{self.name}: horizon={self.horizon!r}, unit={self.unit!r}.",
                'Give a whole number of steps, at least 1, and "step" or "episode".',
            )

    @property
    def observation_dim(self) -> int:
        """S."""
        return len(self.observation_names)

    @property
    def feature_dim(self) -> int:
        """F, the width of ``features``."""
        return self.features(torch.zeros(1, self.observation_dim)).shape[-1]

    @property
    def action_feature_dim(self) -> int:
        """U, the width of ``action_features``."""
        return self.action_features(torch.zeros(1, self.action_dim)).shape[-1]

    @property
    def outcome_dim(self) -> int:
        """R, the width of ``outcome``; 0 without one."""
        return 0 if self.outcome is None else self.outcome(torch.zeros(1, self.observation_dim)).shape[-1]

    @property
    def target_dim(self) -> int:
        """Y, the width of ``target``."""
        zeros = torch.zeros(1, self.observation_dim)
        return self.target(zeros, zeros).shape[-1]

    def random_action(self, batch: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Uniform random actions [*batch, A] float32: in [-1, 1], or one-hot for discrete families."""
        if self.discrete:
            choice = torch.randint(self.action_dim, batch, generator=generator, device=generator.device)
            return torch.nn.functional.one_hot(choice, self.action_dim).float()
        return torch.rand(*batch, self.action_dim, generator=generator, device=generator.device) * 2 - 1


class Simulator(Protocol):
    """B environments of one family, each with its own task. No rewards and no automatic resets."""

    batch_size: int

    def reset(self, generator: torch.Generator, mask: Tensor | None = None) -> Tensor:
        """Draw initial states for the rows in ``mask`` (bool [B], None: all); returns obs [B, S] float32.

        Draws are made for all rows whatever the mask, so what a row gets does not depend on the other rows.
        """

    def step(self, action: Tensor, mask: Tensor | None = None) -> Tensor:
        """Advance the rows in ``mask`` (None: all) by one control step; returns next obs [B, S] float32.

        The others are not stepped and keep their observation. An EnvError tells what is not finite, or what the physics raised.
        """

    def state(self) -> Tensor:
        """Everything needed to continue exactly, float64 [B, X]."""

    def set_state(self, state: Tensor) -> None:
        """Restore what :meth:`state` gave."""

    def render(self, index: int = 0) -> np.ndarray:
        """Picture of row ``index``, uint8 [height, width, 3]."""

    def drawing(self, index: int = 0) -> Drawing | None:
        """Row ``index`` as shapes in space; None: there is but a picture of it."""

    def close(self) -> None:
        """Release what the simulator holds; calling it twice does no harm."""


def chosen_rows(batch_size: int, mask: Tensor | None) -> range | list[int]:
    """Indices of the rows in ``mask`` (bool [B], None: all)."""
    return range(batch_size) if mask is None else torch.nonzero(mask).flatten().tolist()


def require_finite(spec: EnvSpec, observation: Tensor) -> None:
    """Raise EnvError naming the first non-finite row and component of ``observation`` [B, S]."""
    bad = _not_finite(observation)
    if len(bad):
        task, component = bad[0]
        raise EnvError(
            f"{spec.name}: task {task} has a non-finite {spec.observation_names[component]} after the step "
            f"({len(bad)} bad entries in this batch).",
            "Narrow the family's parameter ranges or limit the actions; "
            "`python -m mbrl_lightning.check_env` shows whether random actions do it too.",
        )


def require_finite_reward(spec: EnvSpec, reward: Tensor) -> None:
    """Raise EnvError naming the first row of ``reward`` [B, T] that is not finite."""
    bad = _not_finite(reward)
    if len(bad):
        raise EnvError(
            f"{spec.name}: the reward of task {bad[0][0]} is not finite though its observations are.",
            "Mend the reward function, or narrow the family's parameter ranges.",
        )


def require_finite_action(spec: EnvSpec, action: Tensor, mask: Tensor | None) -> None:
    """Raise DivergedError naming the first row in ``mask`` (None: all) with a non-finite ``action`` [B, A].

    Before a simulator steps, so that a policy that diverged is not taken for a broken environment.
    """
    rows = [row for row, _ in _not_finite(action) if mask is None or bool(mask[row])]
    if rows:
        cause = f"{spec.name}: the policy's action for task {rows[0]} is not finite."
        raise DivergedError(cause, "a smaller learning rate, or another seed")


def _not_finite(values: Tensor) -> list[list[int]]:
    """Indices of the entries of ``values`` [B, n] that are not finite."""
    # A sum is one cheap reduction, and is non-finite whenever an entry is.
    return [] if math.isfinite(values.sum().item()) else torch.nonzero(~torch.isfinite(values)).tolist()
