"""Families whose reward is learned: the one just received is the last entry of the observation, and so models predict it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from mbrl_lightning.envs.family import TaskFamily
from mbrl_lightning.envs.spec import EnvSpec, Simulator, never, require_finite
from mbrl_lightning.errors import ConfigError

RECEIVED = "previous_reward"


def received(observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
    """The reward [...] of a step, where it is what the next observation ends with."""
    return next_observation[..., -1]


def rewarded(spec: EnvSpec, shown: bool) -> EnvSpec:
    """``spec`` with the reward just received behind the S entries of the observation, 0 at the start of an episode.

    Models predict it as it is, and nothing else of the spec changes. Networks see it in the observation if it is ``shown``.
    """

    def others(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *seen: function(*(value[..., :-1] for value in seen))

    def and_last(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *seen: torch.cat([function(*(value[..., :-1] for value in seen)), seen[-1][..., -1:]], -1)

    def change(observation: Tensor, next_observation: Tensor) -> Tensor:
        last = next_observation[..., -1:] - observation[..., -1:]
        return torch.cat([spec.change(observation[..., :-1], next_observation[..., :-1]), last], -1)

    def metrics(episodes: TensorDictBase) -> dict[str, Tensor]:
        bare = episodes.clone(False)
        for key in ("observation", ("next", "observation")):
            bare[key] = episodes[key][..., :-1]
        assert spec.metrics is not None
        return spec.metrics(bare)

    return replace(
        spec,
        observation_names=(*spec.observation_names, RECEIVED),
        reward=received,
        termination=never if spec.termination is never else others(spec.termination),
        features=and_last(spec.features) if shown else others(spec.features),
        target=and_last(spec.target),
        untarget=and_last(spec.untarget),
        change=change,
        training_termination=spec.training_termination and others(spec.training_termination),
        outcome=spec.outcome and others(spec.outcome),
        mirror=spec.mirror and (and_last(spec.mirror[0]), spec.mirror[1]),
        metrics=spec.metrics and metrics,
    )


class RewardedSimulator:
    """A :class:`~mbrl_lightning.envs.spec.Simulator` that shows what ``inner`` does and, behind it, the reward just received.

    Args:
        inner: the simulator; whatever else it has is asked of it.
        spec: of what is shown.
        pay: (obs [B, S], action clipped [B, A], next obs [B, S]) of ``inner`` -> [B], what its last step is paid.
    """

    def __init__(self, inner: Any, spec: EnvSpec, pay: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        self._inner, self._spec, self._pay = inner, spec, pay
        self._observation = torch.zeros(inner.batch_size, spec.observation_dim)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def _write(self, observation: Tensor, reward: Tensor, mask: Tensor | None) -> Tensor:
        fresh = torch.cat([observation, reward.to(observation).unsqueeze(-1)], -1)
        self._observation = fresh if mask is None else torch.where(mask[:, None], fresh, self._observation)
        return self._observation.clone()

    def reset(self, generator: torch.Generator, mask: Tensor | None = None) -> Tensor:
        """See Simulator.reset."""
        observation = self._inner.reset(generator, mask)
        return self._write(observation, torch.zeros(len(observation)), mask)

    @torch.no_grad()
    def step(self, action: Tensor, mask: Tensor | None = None) -> Tensor:
        """See Simulator.step."""
        following = self._inner.step(action, mask)
        reward = self._pay(self._observation[:, :-1], action.detach().to(following).clamp(-1, 1), following)
        observation = self._write(following, reward, mask)
        require_finite(self._spec, observation)
        return observation

    def state(self) -> Tensor:
        """See Simulator.state."""
        return torch.cat([self._inner.state(), self._observation.double()], -1)

    def set_state(self, state: Tensor) -> None:
        """See Simulator.set_state."""
        size = state.shape[1] - self._observation.shape[1]
        self._inner.set_state(state[:, :size])
        self._observation = state[:, size:].float().cpu().clone()


def learned_reward(family: TaskFamily, known: bool = True) -> TaskFamily:
    """The family with the reward as the last entry of the observation: what ``spec.reward`` says of a step in it.

    Where that is not ``known`` it is the simulator's own ``last_reward``, which networks see too: it may be all that tells the
    task.

    Raises:
        ConfigError: the reward is an entry of the observation as it is.
    """
    if family.spec.reward is received:
        cause = f"{family.spec.name}: the reward is an entry of the observation, and so learned, as it is."
        raise ConfigError(cause, "Leave env.learned_reward out.")
    spec = rewarded(family.spec, shown=not known)

    def build(tasks: Tensor) -> Simulator:
        inner: Any = family.build(tasks)
        pay = family.spec.reward if known else lambda *_: inner.last_reward
        return RewardedSimulator(inner, spec, pay)

    return replace(family, spec=spec, build=build)
