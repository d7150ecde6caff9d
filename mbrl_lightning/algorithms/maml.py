"""MAML and Reptile on real tasks: model-free meta-reinforcement learning by gradient (Finn et al. 2017; Nichol et al. 2018).

    MAML, Algorithm 3, lines 5-7    episodes of theta in each task, an inner policy-gradient step     AdaptedPolicyAlgorithm
    line 8                          episodes of the adapted policies                                  MAML._sampled
    line 10, section 5.3            theta moves by TRPO, differentiated through the inner steps       MAML._outer, TrustRegion
    Reptile, Eq. 5 of the survey    theta <- theta + eps (phi_i - theta), averaged over tasks         Reptile._outer
MAML differs from TRPO in `meta.inner_steps` alone: with an inner step of 0 it is TRPO over many tasks. Departures: inner steps
are of mean losses of standardised advantages; Reptile draws episodes anew before each inner step.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from tensordict import TensorDict
from torch import Tensor

from mbrl_lightning.algorithms.adapted_policy import AdaptedPolicyAlgorithm
from mbrl_lightning.beliefs.gradient import Parameters
from mbrl_lightning.config.schema import Config
from mbrl_lightning.data.world import RealWorld
from mbrl_lightning.envs.family import TaskFamily
from mbrl_lightning.errors import ConfigError
from mbrl_lightning.models.imagination import mean_return
from mbrl_lightning.networks.step import GradientStep
from mbrl_lightning.policies.trust_region import inner_loss, sampled_rows, standardised_advantages

Sample = Callable[[Parameters], TensorDict]
"""Parameters `[M, ...]` -> rows `[M, N]` of what these policies did (see `sampled_rows`)."""


class MAML(AdaptedPolicyAlgorithm):
    """A policy from which inner steps on a task's own episodes lead to a good policy for that task.

    An update has `search.tasks` tasks, and of each `meta.rollouts` episodes of every policy on the way.
    """

    def __init__(self, family: TaskFamily, cfg: Config) -> None:
        super().__init__(family, cfg)
        if self.inner_steps:
            family.require_several()

    def sample(self, observation: Tensor, belief: TensorDict, noise: torch.Generator) -> dict[str, Tensor]:
        """See Algorithm.sample; for `TrustRegion`."""
        return self.policy.sample(observation, belief, noise)

    def improve(self, world: RealWorld, step: GradientStep) -> dict[str, float]:
        """Collect in new tasks before and after the inner steps, then one outer step, `search.updates` times."""
        metrics: dict[str, float] = {}
        for update in range(self.cfg.search.updates):
            tasks, returns = self.family.sample(self.cfg.search.tasks, self.generator), list[float]()
            found = self._outer(partial(self._sampled, world, tasks, returns), len(tasks), step)
            metrics = {f"train/{name}": value for name, value in found.items()}
            metrics |= {"real/return": returns[0], "real/adapted": returns[-1]}
            if not int(self.iteration) and not update:
                self.policy.norm.fit(self.spec.features(world.real.transitions()["observation"]).to(self.device))
        return metrics

    def _outer(self, sample: Sample, tasks: int, step: GradientStep) -> dict[str, float]:
        batch, _ = self.trajectories(sample, tasks)
        return self.outer(step.share(batch), step)

    @torch.no_grad()
    def _sampled(self, world: RealWorld, tasks: Tensor, returns: list[float], parameters: Parameters) -> TensorDict:
        """Rows `[M, N]` of real episodes in `tasks` `[M, P]` by policies with `parameters` `[M, ...]`; notes their return."""
        rollouts, steps = self.cfg.meta.rollouts, self.cfg.search.horizon or self.spec.horizon
        rows = torch.arange(len(tasks)).repeat_interleave(rollouts)
        own = TensorDict(dict(parameters), batch_size=[len(tasks)])[rows.to(self.device)]
        belief = self.begin(len(rows)).set("policy", own)
        (data,) = world.interact(tasks[rows], self, belief, steps, self.generator)
        returns.append(float(mean_return(data, self.spec)))
        data = data.to(self.device)
        data = data.update(data.pop("taken")).unflatten(0, (len(tasks), rollouts))
        data["advantage"] = standardised_advantages(self.policy, data, self.cfg.search)
        return sampled_rows(self.policy, data, self.policy.scale(parameters))

    def shots(self, full: bool) -> list[int]:
        """See Algorithm.contexts; none where there is no inner step."""
        return self.contexts(full) if self.inner_steps else [0]

    def controls(self, belief: TensorDict) -> dict[str, TensorDict]:
        """Theta itself."""
        return {"unadapted": self.begin(len(belief))} if self.inner_steps else {}


class Reptile(MAML):
    """The same tasks, episodes and inner steps; theta moves towards where they end, and no derivative is taken of them."""

    def __init__(self, family: TaskFamily, cfg: Config) -> None:
        super().__init__(family, cfg)
        if not self.inner_steps:
            raise ConfigError(
                "Reptile moves to where inner steps lead, and with a size or a number of 0 they lead nowhere",
                "set meta.inner_lr and meta.inner_steps above 0, or algorithm=maml, which is TRPO then",
            )
        theta = list(self.policy.adaptable().values())
        self.optimizers = {"outer": torch.optim.SGD(theta, lr=cfg.meta.outer_lr, fused=True)}

    def _outer(self, sample: Sample, tasks: int, step: GradientStep) -> dict[str, float]:
        theta = self.outer.theta(tasks)
        adapted = theta
        for _ in range(self.inner_steps):
            with torch.no_grad():
                adapted = self.inner_step(inner_loss(self.policy, sample(adapted)), adapted)
        for group in self.optimizers["outer"].param_groups:
            group["lr"] = self.cfg.meta.outer_lr * (1 - int(self.iteration) / self.cfg.loop.iterations)

        def distance() -> dict[str, Tensor]:
            """Half the squared distance from where the inner steps end, whose gradient is theta - phi."""
            own = self.policy.adaptable()
            parts = [(own[name] - value).square().sum() / (2 * tasks) for name, value in adapted.items()]
            return {"loss": torch.stack(parts).sum()}

        return step.numbers(step(distance, self.optimizers["outer"]))
