"""A policy that plans in a model which it adapts at every control step to the last M transitions (L2A, Algorithm 1)."""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import Tensor

from mbrl_lightning.config.methods import PlannerConfig
from mbrl_lightning.models.adaptive import AdaptiveDynamics
from mbrl_lightning.models.model_env import ModelEnv
from mbrl_lightning.policies.planner_actor import PlannerActor
from mbrl_lightning.policies.planners import make_planner


class AdaptiveActor(PlannerActor):
    """An `Act` that forgets everything when an episode starts. Each step begins with theta, not with what the last step gave.

    Args:
        dynamics: the model.
        cfg: the planner.
        past: M.
        frozen: rows `[B]` that never adapt.
        generator: draws candidates; None: one of its own with a fixed seed.

    Attributes:
        belief: under which the last action was chosen, batch `[B]`.
    """

    def __init__(
        self,
        dynamics: AdaptiveDynamics,
        cfg: PlannerConfig,
        past: int,
        frozen: Tensor,
        generator: torch.Generator | None = None,
    ) -> None:
        world = ModelEnv(dynamics.spec, self._advance, dynamics.decoder.copies, dynamics.device)
        super().__init__(make_planner(world, cfg), generator)
        self.dynamics, self.adapting = dynamics, ~frozen.to(dynamics.device)
        self.belief = TensorDict({}, batch_size=[len(frozen)])
        inputs, target = dynamics.input_norm.mean.numel(), dynamics.spec.target_dim
        rows = torch.zeros(len(frozen), past, inputs + target + 1, device=dynamics.device)
        self.inputs, self.target, self.mask = rows.split([inputs, target, 1], -1)
        self.mask = self.mask[..., 0].bool()
        self.last: tuple[Tensor, Tensor] | None = None
        self.fresh = torch.ones_like(self.adapting)

    def begin(self, rows: Tensor) -> None:
        """The given rows `[B]` start an episode: what they remember belongs to another one."""
        super().begin(rows)
        self.fresh = self.fresh | rows.to(self.fresh.device)

    @torch.no_grad()
    def __call__(self, observation: Tensor) -> Tensor:
        """Actions `[B, A]` for observations `[B, S]`."""
        observation = observation.to(self.dynamics.device)
        if not self.dynamics.idle:
            if self.last is not None:
                self._remember(*self.last, observation)
            self.mask = self.mask & ~self.fresh.unsqueeze(1)
            belief = self.dynamics.believe(self.inputs, self.target, self.mask & self.adapting.unsqueeze(1))
            self.belief = self.dynamics.settle(belief)
        self.fresh = torch.zeros_like(self.fresh)
        action = super().__call__(observation)
        # the model is fitted to actions as the environment took them
        self.last = (
            observation,
            action.to(observation) if self.dynamics.spec.discrete else action.to(observation).clamp(-1, 1),
        )
        return action

    def _remember(self, observation: Tensor, action: Tensor, following: Tensor) -> None:
        step = TensorDict({"observation": observation, "action": action}, batch_size=observation.shape[:1])
        step["next"] = TensorDict({"observation": following}, batch_size=observation.shape[:1])
        news = self.dynamics.inputs(observation, action), self.dynamics.targets(step), torch.ones_like(self.fresh)
        self.inputs, self.target, self.mask = (
            torch.cat([old[:, 1:], new.unsqueeze(1)], 1)
            for old, new in zip((self.inputs, self.target, self.mask), news, strict=True)
        )

    def _advance(self, observation: Tensor, action: Tensor) -> Tensor:
        return self.dynamics(observation, action, self.belief)
