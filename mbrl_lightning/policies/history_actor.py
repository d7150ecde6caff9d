"""A policy with a memory: it keeps the window of pairs of every environment it acts in."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict import TensorDict
from torch import Tensor

from mbrl_lightning.beliefs.history import HistoryInputs, no_history, remember


class HistoryActor:
    """An `Act` whose belief grows with every step and is empty at the start of every episode.

    Args:
        inputs: what pairs and observations look like to the networks.
        choose: history inputs, batch `[B]` -> actions `[B, A]`.
        length: L.
        device: where the networks are.
    """

    def __init__(
        self,
        inputs: HistoryInputs,
        choose: Callable[[TensorDict], Tensor],
        length: int,
        device: torch.device | None = None,
    ) -> None:
        self.inputs, self.choose, self.length, self.device = inputs, choose, length, device
        self.belief = no_history(0, length, inputs.pair_dim, device)
        self.last: tuple[Tensor, Tensor] | None = None
        self.fresh = torch.zeros(0, dtype=torch.bool)

    def begin(self, rows: Tensor) -> None:
        """The given rows `[B]` forget everything."""
        if self.last is None:
            self.belief, self.fresh = no_history(len(rows), self.length, self.inputs.pair_dim, self.device), rows
        else:
            self.fresh = self.fresh | rows

    def __call__(self, observation: Tensor) -> Tensor:
        """Actions `[B, A]` for observations `[B, S]`."""
        observation = observation.to(self.device)
        if self.last is not None:
            grown = remember(self.belief, self.inputs.pair(*self.last, observation))
            kept = ~self.fresh.to(observation.device)
            grown["pairs"] = grown["pairs"] * kept.view(-1, 1, 1)
            grown["mask"] = grown["mask"] & kept.unsqueeze(1)
            self.belief = grown
        self.fresh = torch.zeros_like(self.fresh)
        action = self.choose(self.belief.clone(False).set("current", self.inputs.current(observation)))
        # what enters the history is the action as the environment took it
        self.last = observation, action.clamp(-1, 1)
        return action.cpu()
