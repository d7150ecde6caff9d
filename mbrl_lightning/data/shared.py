"""Real environments shared out among ranks: each steps its own, and all see what all of them show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mbrl_lightning.envs.family import TaskFamily
from mbrl_lightning.envs.spec import EnvSpec, require_finite_action
from mbrl_lightning.errors import EnvError, MBRLError
from mbrl_lightning.networks.step import GradientStep

ROWS = 8  # of a rank, below which an exchange takes longer than stepping all of them


class SharedSimulator:
    """A simulator of B rows of which each rank steps its share; its rows are those of one process, bit for bit.

    Draws are made for all rows on every rank, and everyone who acts sees all rows, so nothing else need know.

    Args:
        inner: all B rows, on every rank.
        spec: the family's.
        step: knows the ranks.
    """

    def __init__(self, inner: Any, spec: EnvSpec, step: GradientStep) -> None:
        self._inner, self._spec, self._step, self.batch_size = inner, spec, step, inner.batch_size
        self._own = torch.zeros(self.batch_size, dtype=torch.bool)
        self._own[step.share(torch.arange(self.batch_size)).cpu()] = True
        self.tasks: Tensor | None = getattr(inner, "tasks", None)

    def reset(self, generator: torch.Generator, mask: Tensor | None = None) -> Tensor:
        """See Simulator.reset."""
        return self._exchange(partial(self._inner.reset, generator), mask)

    def step(self, action: Tensor, mask: Tensor | None = None) -> Tensor:
        """See Simulator.step; where an environment fails there is an EnvError on every rank."""
        require_finite_action(self._spec, action, mask)  # all rows, so that all ranks say the same
        return self._exchange(partial(self._inner.step, action), mask)

    def _exchange(self, advance: Callable[[Tensor], Tensor], mask: Tensor | None) -> Tensor:
        failed: MBRLError | None = None
        try:
            shown = [advance(self._own if mask is None else self._own & mask)]
            shown += [] if self.tasks is None else [self._inner.tasks]
        except MBRLError as error:  # the others wait: they are told first, by what no simulator gives
            failed, nothing = error, torch.full((self.batch_size, self._spec.observation_dim), torch.nan)
            shown = [nothing] if self.tasks is None else [nothing, self.tasks]
        own = torch.cat([part.double() for part in shown], 1)[self._own]
        whole = self._step.gather(own.to(self._step.fabric.device)).cpu()
        if failed is not None:
            raise failed
        if not bool(whole.isfinite().all()):
            raise EnvError(f"{self._spec.name}: an environment of another process failed.", "See what that one said.")
        observation, tasks = whole.split([shown[0].shape[1], whole.shape[1] - shown[0].shape[1]], 1)
        self.tasks = None if self.tasks is None else tasks
        return observation.float()

    def close(self) -> None:
        """See Simulator.close."""
        self._inner.close()


def shared(family: TaskFamily, step: GradientStep) -> TaskFamily:
    """The family with simulators that are shared out among ranks, where that saves time.

    It does where rows are stepped one after the other (`one_by_one`), they divide among the ranks, and each has `ROWS` or more.
    Everywhere else each rank steps them all.
    """
    world = step.fabric.world_size

    def build(tasks: Tensor) -> Any:
        inner: Any = family.build(tasks)
        worth = len(tasks) % world == 0 and len(tasks) >= ROWS * world and getattr(inner, "one_by_one", False)
        return SharedSimulator(inner, family.spec, step) if worth else inner

    return family if world == 1 else replace(family, build=build)
