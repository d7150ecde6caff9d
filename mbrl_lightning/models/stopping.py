"""When to stop the members of an ensemble: each by its own held-out error, and each keeps parameters of its own.

Members are fitted in one product, so one that has stopped goes on with the others and is set back at the end.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mbrl_lightning.models.base import Model


class Kept:
    """Parameters of E members, the first dimension of each, as they were at a better time."""

    def __init__(self, dynamics: Model) -> None:
        self.parameters = [p for p in dynamics.parameters() if p.requires_grad]
        self.kept = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def keep(self, members: Tensor) -> None:
        """Keep the present parameters of some members, a mask `[E]`."""
        for kept, now in zip(self.kept, self.parameters, strict=True):
            kept[members] = now[members]

    @torch.no_grad()
    def restore(self) -> None:
        """Give every member what was kept of it."""
        for kept, now in zip(self.kept, self.parameters, strict=True):
            now.copy_(kept)


class EarlyStopping(Kept):
    """Keeps each member as it was when it did best; one is done after `patience` checks without improvement."""

    def __init__(self, dynamics: Model, patience: int) -> None:
        super().__init__(dynamics)
        self.patience = patience
        self.best = torch.full((dynamics.members,), torch.inf)
        self.waited = torch.zeros(dynamics.members, dtype=torch.long)

    def check(self, errors: Tensor) -> bool:
        """Take in held-out errors `[E]`; true when all members are done."""
        errors = errors.cpu()
        better = errors < self.best * (1 - 1e-2)
        self.keep(better)
        self.best = torch.where(better, errors, self.best)
        self.waited = torch.where(better, 0, self.waited + 1)
        return bool((self.waited >= self.patience).all())


class RollingStop(Kept):
    """Stops each member when the rolling average of its held-out error rises (MB-MPO section A.4: "decreases" is a slip).

    `persistence` is the weight of the past in the average.
    """

    def __init__(self, dynamics: Model, persistence: float) -> None:
        super().__init__(dynamics)
        self.persistence, self.average = persistence, torch.zeros(0)
        self.stopped = torch.zeros(dynamics.members, dtype=torch.bool)

    def check(self, errors: Tensor) -> bool:
        """Take in the held-out errors `[E]` after an epoch; true when all members have stopped."""
        errors = errors.cpu()
        first = not len(self.average)
        average, previous = (1.5 * errors, 2 * errors) if first else (self.average, self.average)
        self.average = self.persistence * average + (1 - self.persistence) * errors
        now = (self.average > previous) & ~self.stopped
        self.keep(now)
        self.stopped |= now
        return bool(self.stopped.all())

    def restore(self) -> None:
        """Set the members that stopped back to where they did."""
        self.keep(~self.stopped)
        super().restore()
