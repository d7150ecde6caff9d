"""Trajectories imagined in an ensemble: each member a world of its own, or one world in which members take random turns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from tensordict import TensorDict
from torch import Tensor

from mbrl_lightning.config.schema import Config
from mbrl_lightning.data.buffer import TaskBuffer
from mbrl_lightning.models.ensemble import EnsembleDynamics
from mbrl_lightning.models.imagination import ImaginedAct, ImaginedStreams


class _Once:
    """A function that keeps its last result: policy and model ask for the features of the same observations."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function, self.last = function, (torch.empty(0), torch.empty(0))

    def __call__(self, value: Tensor) -> Tensor:
        if value is not self.last[0]:
            self.last = value, self.function(value)
        return self.last[1]


class Worlds:
    """The ensemble as K worlds, or as one in which every row asks a random member at every step; biased and noisy if asked.

    There are `rows` imagined trajectories, a multiple of K, which start from `initial` states `[n, S]` and from `real` ones.
    The `bias` of each model `[K]` is added to every predicted change, in deviations of that change.
    """

    def __init__(
        self,
        dynamics: EnsembleDynamics,
        cfg: Config,
        rows: int,
        bias: Tensor,
        initial: Tensor,
        real: TaskBuffer,
        generator: torch.Generator,
    ) -> None:
        self.dynamics, self.cfg, self.rows = dynamics.frozen(), cfg, rows
        self.spec = self.dynamics.spec = replace(dynamics.spec, features=_Once(dynamics.spec.features))
        self.steps = cfg.search.horizon or dynamics.spec.horizon
        self.initial, self.real, self.generator = initial, real, generator
        self.device = dynamics.device
        self.random, self.disturbed = cfg.meta.random_model, cfg.meta.bias > 0 or cfg.meta.noise > 0
        self.bias = bias.repeat_interleave(rows // len(bias)).view(1, -1, 1).to(self.device)
        self.belief = TensorDict({"latent": torch.zeros(1, 0, device=self.device)}, batch_size=[1])

    def starts(self, count: int) -> Tensor:
        """States to begin in, `[count, S]`: a share of initial ones, the rest out of the data."""
        first = self.initial[torch.randint(len(self.initial), (count,), generator=self.generator)]
        share = self.cfg.search.initial_starts
        if share < 1:
            other = self.real.start_states(count, self.generator, initial=0.0)
            first = torch.where(torch.rand(count, 1, generator=self.generator) < share, first, other)
        return first.to(self.device)

    def rollout(self, act: ImaginedAct) -> TensorDict:
        """One trajectory of the imagined horizon in each row, `[1, rows, T]`; what ends early begins anew."""
        start = self.starts(self.rows).unsqueeze(0)
        streams = ImaginedStreams(self, self.belief, start, self.steps, restart=self.starts)
        return streams.rollout(act, self.steps)

    def imagine(self, observation: Tensor, action: Tensor, belief: TensorDict, *_: object) -> Tensor:
        """Next observations `[1, rows, S]`; blocks of rows belong to the members."""
        order = None
        if self.random:
            order = torch.randperm(self.rows, generator=self.generator).to(self.device)
            observation, action = observation[:, order], action[:, order]
        following = self.dynamics.imagine(observation, action, belief)
        if self.disturbed:
            noise = torch.randn((*following.shape[:2], self.spec.target_dim), generator=self.generator)
            change = self.dynamics.target_norm(self.spec.target(observation, following))
            change = change + self.bias + self.cfg.meta.noise * noise.to(self.device)
            following = self.spec.untarget(observation, self.dynamics.target_norm.inverse(change))
        return following if order is None else torch.empty_like(following).index_copy_(1, order, following)
