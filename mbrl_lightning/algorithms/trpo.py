"""TRPO in the true simulator (Schulman et al., ICML 2015): the model-free rival of MB-MPO and ME-TRPO, from the same blocks.

One constrained step for each batch of `search.tasks` rows of `search.horizon` real steps, with the linear baseline that MB-MPO
uses; no model, no adaptation. Observations are standardised by the statistics of the first batch.
"""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import Tensor

from mbrl_lightning.algorithms.base import Algorithm
from mbrl_lightning.config.schema import Config
from mbrl_lightning.data.world import RealWorld
from mbrl_lightning.envs.family import TaskFamily
from mbrl_lightning.models.imagination import mean_return
from mbrl_lightning.networks.step import GradientStep
from mbrl_lightning.policies.heads import Policy
from mbrl_lightning.policies.trust_region import TrustRegion, sampled_rows, standardised_advantages


class TRPO(Algorithm):
    """TRPO over randomly drawn real tasks; `meta` says how large the region is."""

    policy: Policy

    def __init__(self, family: TaskFamily, cfg: Config) -> None:
        super().__init__(family, cfg)
        self.policy = Policy(self.spec, cfg.policy, 0)
        self.outer = TrustRegion(self.policy, cfg.meta)

    def sample(self, observation: Tensor, belief: TensorDict, noise: torch.Generator) -> dict[str, Tensor]:
        """See Algorithm.sample; for `TrustRegion`."""
        return self.policy.sample(observation, belief, noise)

    def improve(self, world: RealWorld, step: GradientStep) -> dict[str, float]:
        """Collect on policy, then one step, `search.updates` times."""
        metrics: dict[str, float] = {}
        search = self.cfg.search
        for update in range(search.updates):
            tasks, steps = self.family.sample(search.tasks, self.generator), search.horizon or self.spec.horizon
            (data,) = world.interact(tasks, self, self.begin(len(tasks)), steps, self.generator)
            metrics = {"real/return": float(mean_return(data, self.spec))}
            data = data.to(self.device)
            data = data.update(data.pop("taken")).unsqueeze(0)  # one task
            data["advantage"] = standardised_advantages(self.policy, data, search)
            own = step.share(data[0]).unsqueeze(0)
            _, scale = self.policy(own["inputs"][:, 0, :1])
            found = self.outer(TensorDict({"target": sampled_rows(self.policy, own, scale)}, batch_size=[1]), step)
            metrics |= {f"train/{name}": value for name, value in found.items() if name != "inner_kl"}
            if not int(self.iteration) and not update:
                self.policy.norm.fit(data["inputs"])
        return metrics
