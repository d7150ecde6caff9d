"""Histories as beliefs: what a pair (observation, action) and what followed look like to a recurrent network (M3PO section 4).

The belief is the window of the last L pairs, a value; each network reads it with a recurrent unit of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from mbrl_lightning.envs.spec import EnvSpec
from mbrl_lightning.networks import Normalizer, StackedGRU, StackedMLP


class HistoryInputs(nn.Module):
    """Standardised pairs and current observations.

    Statistics that move while a policy learns change what it is shown under its feet, so `fit` is called when the random
    warm-up is over and never again.
    """

    def __init__(self, spec: EnvSpec) -> None:
        super().__init__()
        self.spec = spec
        self.current_norm = Normalizer(spec.feature_dim)
        self.outcome_norm = Normalizer(spec.outcome_dim)

    @property
    def pair_dim(self) -> int:
        """X, the width of a pair."""
        return self.spec.feature_dim + self.spec.action_feature_dim + self.spec.outcome_dim

    def fit(self, transitions: TensorDictBase) -> None:
        """Set the statistics to those of real transitions `[N]`."""
        self.current_norm.fit(self.spec.features(transitions["observation"]))
        if self.spec.outcome is not None:
            self.outcome_norm.fit(self.spec.outcome(transitions["next", "observation"]))

    def current(self, observation: Tensor) -> Tensor:
        """What a network sees of the observation it is in, `[..., S] -> [..., F]`."""
        return self.current_norm(self.spec.features(observation))

    def pair(self, observation: Tensor, action: Tensor, following: Tensor) -> Tensor:
        """What it remembers of a step: observation, action and outcome, `[..., X]`."""
        parts = [self.current(observation), self.spec.action_features(action)]
        if self.spec.outcome is not None:
            parts.append(self.outcome_norm(self.spec.outcome(following)))
        return torch.cat(parts, -1)


class TransitionInputs(HistoryInputs):
    """A whole transition as a network sees it: observation, action, reward and next observation, standardised."""

    def __init__(self, spec: EnvSpec) -> None:
        super().__init__(spec)
        self.outcome_norm = Normalizer(1)

    @property
    def pair_dim(self) -> int:
        """D, the width of a transition."""
        return 2 * self.spec.feature_dim + self.spec.action_feature_dim + 1

    def fit(self, transitions: TensorDictBase) -> None:
        """Set the statistics to those of real transitions `[N]`."""
        self.current_norm.fit(self.spec.features(transitions["observation"]))
        self.outcome_norm.fit(transitions["next", "reward"])

    def pair(self, observation: Tensor, action: Tensor, following: Tensor) -> Tensor:
        """A transition, `[..., D]`."""
        reward = self.spec.reward(observation, action, following).unsqueeze(-1)
        before, after = self.current(observation), self.current(following)
        return torch.cat([before, self.spec.action_features(action), self.outcome_norm(reward), after], -1)


def no_history(rows: int, length: int, pair_dim: int, device: torch.device | None = None) -> TensorDict:
    """The belief `[rows]` at the start of an episode: `pairs` `[rows, L, X]` of zeros, `mask` `[rows, L]` false."""
    pairs = torch.zeros(rows, length, pair_dim, device=device)
    return TensorDict({"pairs": pairs, "mask": pairs[..., 0].bool()}, batch_size=[rows], device=device)


def remember(belief: TensorDictBase, pair: Tensor) -> TensorDict:
    """The belief after one more pair `[N, X]`; the oldest of its L pairs is forgotten."""
    pairs = torch.cat([belief["pairs"][:, 1:], pair.unsqueeze(1)], 1)
    mask = torch.cat([belief["mask"][:, 1:], torch.ones_like(belief["mask"][:, :1])], 1)
    return TensorDict({"pairs": pairs, "mask": mask}, batch_size=belief.batch_size)


class HistoryNet(nn.Module):
    """C networks of histories: each reads the window with a recurrent unit of its own, whose last state joins its inputs.

    One unit per network is M3PO's figure of the architecture: policy, Q functions and model heads share none.

    `pair_dim` is the width X of a remembered pair, `current_dim` that of everything beside the window: `current` and, where there
    is one, `extra`. `recurrent` is the width H of the recurrent unit; with 0 the window is ignored.
    """

    def __init__(
        self,
        copies: int,
        pair_dim: int,
        current_dim: int,
        outputs: int,
        hidden: Sequence[int],
        activation: str = "silu",
        recurrent: int = 5,
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        self.copies = copies
        self.gru = StackedGRU(copies, pair_dim, recurrent) if recurrent else None
        self.net = StackedMLP(copies, [recurrent + current_dim, *hidden, outputs], activation, layer_norm)

    def read(self, inputs: TensorDictBase | Mapping[str, Tensor]) -> Tensor:
        """What does not depend on `extra`: state of the recurrent unit and current observation, `[C, N, H + F]`.

        `inputs` are `current` `[N, F]` and, for a recurrent unit, `pairs` `[N, L, X]` and `mask` `[N, L]`; with a first dimension
        C, rows of each network's own.
        """
        current = inputs["current"].expand(self.copies, -1, -1)
        if self.gru is None:
            return current
        pairs = inputs["pairs"]
        return torch.cat([self.gru(pairs.view(-1, *pairs.shape[-3:]), inputs["mask"]), current], -1)

    def decide(self, seen: Tensor, extra: Tensor | None = None, frozen: bool = False) -> Tensor:
        """Outputs `[C, N, outputs]` for what `read` gave and `extra`, `[N, D]` or `[C, N, D]`; `frozen` weights are constants."""
        if extra is not None:
            seen = torch.cat([seen, extra.expand(self.copies, -1, -1)], -1)
        return self.net(seen, frozen=frozen)

    def forward(self, inputs: TensorDictBase, extra: Tensor | None = None) -> Tensor:
        """Outputs `[C, N, outputs]` for histories (see `read`) and `extra` `[C or 1, N, D]`."""
        return self.decide(self.read(inputs), extra)
