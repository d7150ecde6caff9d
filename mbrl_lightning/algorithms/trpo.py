"""TRPO in the true simulator (Schulman et al., ICML 2015): the model-free rival of MB-MPO and ME-TRPO, from the same blocks.

One constrained step for each batch of `search.tasks` rows of `search.horizon` real steps, with the linear baseline that MB-MPO
uses; no model, no adaptation. Observations are standardised by the statistics of the first batch.
"""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import Tensor

from mbrl_lightning.algorithms.base import Algorithm, Collect
from mbrl_lightning.config.schema import Config
from mbrl_lightning.data.buffer import TaskBuffer
from mbrl_lightning.envs.family import TaskFamily
from mbrl_lightning.models.imagination import mean_return
from mbrl_lightning.networks.step import GradientStep
from mbrl_lightning.policies.heads import Policy
from mbrl_lightning.policies.returns import advantages
from mbrl_lightning.policies.trust_region import TrustRegion, TrustRegionLoss, sampled_rows


class TRPO(Algorithm):
    """TRPO over randomly drawn real tasks.

    Args:
        family: the task family.
        cfg: `meta` (the trust region), `search.tasks`, `search.horizon`, `search.updates`, `search.gamma`, `search.lam`.
    """

    collects = True
    adapts = False
    policy: Policy
    rounds: Tensor

    def __init__(self, family: TaskFamily, cfg: Config) -> None:
        super().__init__(family, cfg)
        self.policy = Policy(self.spec, cfg.policy, 0)
        self.outer = TrustRegion(TrustRegionLoss(self.policy), cfg.meta)
        self.register_buffer("rounds", torch.zeros((), dtype=torch.long))

    def improve(self, real: TaskBuffer, step: GradientStep, collect: Collect) -> dict[str, float]:
        """Collect on policy, then one step, `search.updates` times."""
        metrics: dict[str, float] = {}
        search, device = self.cfg.search, step.fabric.device
        for _ in range(search.updates):
            tasks = self.family.sample(search.tasks, self.generator)
            taken: list[TensorDict] = []

            def act(observation: Tensor, taken: list[TensorDict] = taken) -> Tensor:
                taken.append(self._sample(observation.to(device)))
                return taken[-1]["action"].cpu()

            (data,) = collect(tasks, act, search.horizon or self.spec.horizon)
            metrics = {"real/return": float(mean_return(data, self.spec))}
            data = data.to(device).update(torch.stack(taken, 1)).unsqueeze(0)  # one task
            last = self.policy.norm(self.spec.features(data["next", "observation"][..., -1, :]))
            data["advantage"] = advantages(data["inputs"], last, data, search.gamma, search.lam)
            own = step.share(data[0]).unsqueeze(0)
            _, scale = self.policy(own["inputs"][:, 0, :1])
            found = self.outer(TensorDict({"target": sampled_rows(self.policy, own, scale)}, batch_size=[1]), step)
            metrics |= {f"train/{name}": value for name, value in found.items() if name != "inner_kl"}
            if not int(self.rounds):
                self.policy.norm.fit(data["inputs"])
            self.rounds += 1
        return metrics

    @torch.no_grad()
    def _sample(self, observation: Tensor) -> TensorDict:
        inputs = self.policy.norm(self.spec.features(observation))
        loc, _ = self.policy(inputs)
        noise = self.policy.noise(tuple(loc.shape[:-1]), self.generator).to(loc.device)
        return TensorDict(
            {"inputs": inputs, "loc": loc, "action": self.policy.choose(loc, noise)}, batch_size=[len(inputs)]
        )
