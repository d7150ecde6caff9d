"""A policy that plans: it keeps the plan of every environment it acts in."""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import Tensor

from mbrl_lightning.policies.planners import Planner


class PlannerActor:
    """An `Act` that plans at every step and starts the next search where the last one ended.

    Args:
        planner: how.
        generator: draws candidates; None: one of its own with a fixed seed.
    """

    def __init__(self, planner: Planner, generator: torch.Generator | None = None) -> None:
        self.planner, self.generator = planner, generator or torch.Generator().manual_seed(0)
        self.plan: TensorDict | None = None

    def begin(self, rows: Tensor) -> None:
        """The given rows `[B]` start an episode: their plans are cold."""
        if self.plan is not None:
            cold = self.planner.cold(len(rows)).to(self.plan["mean"])
            self.plan[rows] = cold[rows]

    def __call__(self, observation: Tensor) -> Tensor:
        """Actions `[B, A]` for observations `[B, S]`."""
        observation = observation.to(self.planner.world.device)
        action, self.plan = self.planner.plan(observation, self.generator, self.plan)
        return action.cpu()
