"""Soft actor-critic on real data alone (Haarnoja et al. 2018): what a policy search in a model has to beat.

A policy for randomly drawn tasks; nothing adapts. Choices may be commands that are held and fed back (`data.control`).
"""

from __future__ import annotations

import torch

from mbrl_lightning.algorithms.base import Algorithm
from mbrl_lightning.config.schema import Config
from mbrl_lightning.data.control import Control
from mbrl_lightning.data.decisions import Decisions
from mbrl_lightning.data.world import RealWorld
from mbrl_lightning.envs.family import TaskFamily
from mbrl_lightning.networks.step import GradientStep
from mbrl_lightning.policies.soft import SoftPolicy


class SoftActorCritic(Algorithm):
    """One policy for all tasks.

    Args:
        family: the task family.
        cfg: `sac`, `policy`; `loop.tasks_per_iteration` and `loop.episode_steps` set the real steps.

    Raises:
        ConfigError: see `SoftPolicy` and `Control`.
    """

    policy: SoftPolicy

    def __init__(self, family: TaskFamily, cfg: Config) -> None:
        super().__init__(family, cfg)
        self.control = Control(self.spec, cfg.policy.feedback, cfg.policy.hold)
        self.policy = SoftPolicy(self.spec, cfg, 0)
        self.optimizers = {"sac": torch.optim.Adam(self.policy.sac.trained_parameters(), lr=cfg.sac.lr, fused=True)}

    def collect(self, world: RealWorld) -> dict[str, float]:
        """Random choices first; `improve` collects the rest."""
        return self.warm_up(world, self.cfg.sac.warmup_steps, self.control)

    def improve(self, world: RealWorld, step: GradientStep) -> dict[str, float]:
        """One stretch of real steps in new tasks, with the updates that are due."""
        cfg, generator = self.cfg, self.generator
        if not int(self.iteration):
            seen = self.spec.features(world.real.transitions()["observation"])
            self.policy.norm.fit(seen.to(self.device))
        tasks, steps = self.family.sample(cfg.loop.tasks_per_iteration, generator), cfg.loop.episode_steps
        parts = world.interact(
            tasks, self, self.begin(len(tasks)), steps or self.spec.horizon, generator, cfg.sac.every
        )
        decisions = Decisions(world.real, self.control.hold)
        nothing = torch.zeros(len(world.real.tasks) + len(tasks), 0)
        return self.policy.learn(parts, decisions, nothing, step, self.optimizers["sac"], generator)
