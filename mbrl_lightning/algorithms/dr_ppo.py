"""DR-PPO: PPO on the real families, a random task in every row (domain randomisation; GSSM section 5.1, Table 1).

The model-free rival at equal real steps. `told` makes it the oracle of `headroom`: the policy is given the task's scaled
parameters as its latent.
"""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import Tensor

from mbrl_lightning.algorithms.base import Algorithm, Collect
from mbrl_lightning.config.schema import Config
from mbrl_lightning.data.buffer import TaskBuffer
from mbrl_lightning.envs.family import TaskFamily
from mbrl_lightning.networks.step import GradientStep
from mbrl_lightning.policies.heads import Policy
from mbrl_lightning.policies.ppo import PPO


class DRPPO(Algorithm):
    """PPO over randomly drawn real tasks; no model, no adaptation.

    Args:
        family: the task family.
        cfg: `search.tasks` rows of `search.horizon` real steps an update, `search.updates` updates an iteration.
        told: give the policy the true task parameters (oracle).
    """

    collects = True
    adapts = False
    rounds: Tensor

    def __init__(self, family: TaskFamily, cfg: Config, told: bool = False) -> None:
        super().__init__(family, cfg)
        self.told = told
        self.policy = Policy(self.spec, cfg.policy, len(family.parameters) if told else 0)
        self.ppo = PPO(self.policy, cfg.search, cfg.policy)
        trained = [*self.policy.parameters(), *self.ppo.parameters()]
        self.optimizers = {"policy": torch.optim.Adam(trained, lr=cfg.search.lr, fused=True)}
        self.register_buffer("rounds", torch.zeros((), dtype=torch.long))

    def tell(self, tasks: Tensor) -> TensorDict:
        """Belief `[M]` of a policy told the tasks `[M, P]`; empty if it is not."""
        latent = self.family.scale(tasks).float()[:, : self.policy.latent_dim]
        return TensorDict({"latent": latent}, batch_size=[len(tasks)])

    def improve(self, real: TaskBuffer, step: GradientStep, collect: Collect) -> dict[str, float]:
        """Collect on policy, then PPO epochs, `search.updates` times."""
        metrics: dict[str, float] = {}
        search = self.cfg.search
        for group in self.optimizers["policy"].param_groups:
            group["lr"] = search.lr * max(1 - float(self.rounds) / max(self.cfg.loop.iterations, 1), 0.2)
        for _ in range(search.updates):
            tasks = self.family.sample(search.tasks, self.generator)
            latent = self.tell(tasks)["latent"].to(step.fabric.device)
            taken: list[dict[str, Tensor]] = []

            def act(observation: Tensor, latent: Tensor = latent, taken: list = taken) -> Tensor:
                taken.append(self.ppo.sample(self.policy, observation.to(latent.device), latent, self.generator))
                return taken[-1]["action"].cpu()

            (data,) = collect(tasks, act, search.horizon or self.spec.horizon)
            data = data.to(step.fabric.device)
            for name in taken[0]:
                data[name] = torch.stack([row[name] for row in taken], 1)
            optimizer = self.optimizers["policy"]
            metrics = self.ppo.update(self.policy, data, latent.unsqueeze(1), step, optimizer, self.generator)
            self.policy.norm.fit(self.spec.features(real.transitions()["observation"]).to(step.fabric.device))
        self.rounds += 1
        return {f"train/{name}": value for name, value in metrics.items()}
