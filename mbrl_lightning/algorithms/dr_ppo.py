"""DR-PPO: PPO on the real families, a random task in every row (domain randomisation; GSSM section 5.1, Table 1).

The model-free rival at equal real steps. `told` makes it the oracle of `headroom`: the policy is given the task's scaled
parameters as its latent.
"""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import Tensor

from mbrl_lightning.algorithms.base import Algorithm
from mbrl_lightning.config.schema import Config
from mbrl_lightning.data.world import RealWorld
from mbrl_lightning.envs.family import TaskFamily
from mbrl_lightning.networks.step import GradientStep
from mbrl_lightning.policies.heads import Policy
from mbrl_lightning.policies.ppo import PPO
from mbrl_lightning.policies.search import refit


class DRPPO(Algorithm):
    """PPO over randomly drawn real tasks; no model, no adaptation.

    An update has `search.tasks` rows of `search.horizon` real steps. `told` gives the policy the true task parameters (oracle).
    """

    def __init__(self, family: TaskFamily, cfg: Config, told: bool = False) -> None:
        super().__init__(family, cfg)
        self.policy = Policy(self.spec, cfg.policy, len(family.parameters) if told else 0)
        self.ppo = PPO(self.policy, cfg.search, cfg.policy)
        trained = [*self.policy.parameters(), *self.ppo.parameters()]
        self.optimizers = {"policy": torch.optim.Adam(trained, lr=cfg.search.lr, fused=True)}

    def tell(self, tasks: Tensor) -> TensorDict:
        """Belief `[M]` of a policy told the tasks `[M, P]`; empty if it is not."""
        latent = self.family.scale(tasks).float()[:, : self.policy.latent_dim]
        return TensorDict({"latent": latent.to(self.device)}, batch_size=[len(tasks)])

    def sample(self, observation: Tensor, belief: TensorDict, noise: torch.Generator) -> dict[str, Tensor]:
        """See Algorithm.sample; for `PPO`."""
        return self.ppo.sample(self.policy, observation, belief["latent"], noise)

    def improve(self, world: RealWorld, step: GradientStep) -> dict[str, float]:
        """Collect on policy, then PPO epochs, `search.updates` times."""
        metrics: dict[str, float] = {}
        search = self.cfg.search
        for group in self.optimizers["policy"].param_groups:
            group["lr"] = search.lr * max(1 - float(self.iteration) / max(self.cfg.loop.iterations, 1), 0.2)
        for _ in range(search.updates):
            tasks = self.family.sample(search.tasks, self.generator)
            belief = self.tell(tasks)
            (data,) = world.interact(tasks, self, belief, search.horizon or self.spec.horizon, self.generator)
            data = data.to(self.device)
            data.update(data.pop("taken"))
            latent, optimizer = belief["latent"].unsqueeze(1), self.optimizers["policy"]
            metrics = self.ppo.update(self.policy, data, latent, step, optimizer, self.generator)
            refit(self.policy, self.spec, world.real)
        return {f"train/{name}": value for name, value in metrics.items()}
