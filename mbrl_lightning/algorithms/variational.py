"""Variational model-based meta-RL (Belkhale et al., RA-L 2021; survey Algorithm 5), and GHP-MDP (Perez et al., AAAI 2020).

    Eq. 19-20   theta and one Gaussian q(z_i) per task by the ELBO of all data so far       Variational.fit
    line 7      at test q = N(0, I), theta frozen                                            Variational.begin
    line 9      CEM in the model of theta and q                                              PlanningAlgorithm.act
    line 11     gradient steps on (mu, log sigma) alone on what was seen                     Variational.adapt
GHP-MDP is the same with an ensemble of probabilistic networks. Departures: theta and the Gaussians move in one Adam step, each
at its rate; the deviation of the likelihood is learned; at test the last `variational.memory` transitions make one ELBO, whose
expectation is taken in sigma points, so that adapting draws nothing; a plan is made with the mean of q, and members' means.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
from tensordict import TensorDict, TensorDictBase

from mbrl_lightning.algorithms.planning import PlanningAlgorithm
from mbrl_lightning.beliefs.variational import infer, prior
from mbrl_lightning.config.schema import Config
from mbrl_lightning.data.buffer import TaskBuffer
from mbrl_lightning.envs.family import TaskFamily
from mbrl_lightning.errors import ConfigError
from mbrl_lightning.models.base import MAX_GRAD_NORM
from mbrl_lightning.models.variational import (
    MOST_TASKS,
    ProbabilisticVariationalDynamics,
    VariationalDynamics,
)
from mbrl_lightning.networks import any_row
from mbrl_lightning.networks.step import GradientStep


class Variational(PlanningAlgorithm):
    """A latent a task, found by gradient steps on its Gaussian alone, after a context and on inside the episode."""

    dynamics: VariationalDynamics
    model_class: ClassVar[type[VariationalDynamics]] = VariationalDynamics

    def __init__(self, family: TaskFamily, cfg: Config) -> None:
        if len(family.sample(64, torch.Generator().manual_seed(0)).unique(dim=0)) == 1:
            raise ConfigError(
                f"{family.spec.name}: nothing varies from task to task, so no latent can be learned",
                "choose a family in which something does, or algorithm=mb_mpc",
            )
        if cfg.dynamics.targets % cfg.dynamics.members:
            raise ConfigError(
                f"dynamics.targets={cfg.dynamics.targets}: members={cfg.dynamics.members} cannot share them out evenly",
                "make dynamics.targets a multiple of dynamics.members",
            )
        make = partial(self.model_class, cfg=cfg.dynamics, latent_lr=cfg.variational.latent_lr)
        super().__init__(family, cfg, make, cfg.variational.memory)

    def begin(self, tasks: int) -> TensorDict:
        """The prior, and what a planner carries."""
        return super().begin(tasks).update(prior(tasks, self.cfg.dynamics.latent_dim, self.device))

    def adapt(self, belief: TensorDict, transitions: TensorDictBase) -> TensorDict:
        """The belief after `context_steps` gradient steps for a context `[M, K]`, or `steps` where due for a step `[M]`."""
        cfg, context = self.cfg.variational, transitions.ndim > 1
        belief = super().adapt(belief, transitions)
        moving = belief["mask"].any(1) & ~belief["frozen"]
        moving = moving if context else moving & (belief["age"] % cfg.every == 0)
        if not any_row(moving):
            return belief
        with self.dynamics.constant():
            losses = partial(self.dynamics.evidence, **{key: belief[key] for key in ("inputs", "target", "mask")})
            return infer(belief, losses, moving, cfg.context_steps if context else cfg.steps, cfg.test_lr)

    def shots(self, full: bool) -> list[int]:
        """See Algorithm.contexts."""
        return self.contexts(full)

    def fit(self, real: TaskBuffer, step: GradientStep, steps: int, generator: torch.Generator) -> dict[str, float]:
        """Fit theta and the Gaussians of all tasks so far by `steps` steps; returns the mean of the losses.

        Raises:
            ConfigError: there are more tasks than the table has rows.
        """
        if len(real.tasks) > MOST_TASKS:
            raise ConfigError(
                f"{len(real.tasks)} training tasks: algorithm={self.cfg.algorithm} keeps Gaussians of at most {MOST_TASKS}",
                "choose fewer loop.tasks_per_iteration or loop.iterations",
            )
        self.dynamics.see(real, self.cfg.search.bounds)
        draw = partial(self._draw, real, generator)
        found = step.fit(self.dynamics.training_step, draw, self.optimizers["dynamics"], steps, MAX_GRAD_NORM)
        return {f"train/model_{name}": value for name, value in found.items()}

    def _draw(self, real: TaskBuffer, generator: torch.Generator) -> TensorDict:
        cfg, counts = self.cfg.dynamics, real.rows(exploratory=False)[1]
        index = real.draw_tasks(cfg.tasks, generator, exploratory=False)
        noise = torch.randn(len(index), cfg.targets, cfg.latent_dim, generator=generator)
        target = real.draw_targets(index, cfg.targets, generator)
        batch = {"index": index, "count": counts[index].float(), "target": target, "noise": noise}
        return TensorDict(batch, batch_size=[len(index)])


class GHPMDP(Variational):
    """The same with an ensemble of networks that know their noise."""

    model_class = ProbabilisticVariationalDynamics
