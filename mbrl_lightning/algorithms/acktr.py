"""ACKTR, an actor and a critic by Kronecker-factored natural gradients (Wu et al., NeurIPS 2017): a model-free rival of MB-MPO.

    section 2.2   Fisher matrix of the policy from actions drawn anew, by layers       ACKTR._actor, policies.kronecker
    section 3.1   Gauss-Newton matrix of the critic, a Gaussian of deviation 1         ACKTR._critic
    section 3.2   the step's size from a trust region, without a line search           KroneckerFactored.step
Departures: the critic takes `search.epochs` steps on each batch; its rewards are scaled and it sees an episode's age, as PPO's;
factors are inverted anew for each step, which networks this small can afford; nothing has momentum.
"""

from __future__ import annotations

from functools import partial
from typing import cast

import torch
from tensordict import TensorDict
from torch import Tensor

from mbrl_lightning.algorithms.base import Algorithm
from mbrl_lightning.config.schema import Config
from mbrl_lightning.data.world import RealWorld
from mbrl_lightning.envs.family import TaskFamily
from mbrl_lightning.errors import ConfigError
from mbrl_lightning.models.imagination import mean_return
from mbrl_lightning.networks import StackedMLP
from mbrl_lightning.networks.step import GradientStep
from mbrl_lightning.policies.heads import Policy
from mbrl_lightning.policies.kronecker import KroneckerFactored
from mbrl_lightning.policies.ppo import PPO
from mbrl_lightning.policies.trust_region import TrustRegionLoss


class ACKTR(Algorithm):
    """One natural-gradient step for each batch of `search.tasks` rows of real steps, over randomly drawn tasks.

    ConfigError if the policy is a radial-basis network.
    """

    policy: Policy

    def __init__(self, family: TaskFamily, cfg: Config) -> None:
        super().__init__(family, cfg)
        meta = cfg.meta
        self.policy = Policy(self.spec, cfg.policy, 0)
        if cfg.policy.kind != "mlp":
            raise ConfigError(
                f"policy.kind={cfg.policy.kind}: Kronecker factors are of layers, and it has none",
                "set policy.kind=mlp, or algorithm=trpo",
            )
        self.ppo = PPO(self.policy, cfg.search, cfg.policy)  # its value and advantages
        make = partial(KroneckerFactored, lr=cfg.search.lr, delta=meta.delta, damping=meta.damping, decay=meta.decay)
        self.actor = make(
            cast(StackedMLP, self.policy.net), log_std=None if self.spec.discrete else self.policy.log_std
        )
        self.critic = make(self.ppo.value.net)
        self.optimizers = {"policy": self.actor, "value": self.critic}

    def sample(self, observation: Tensor, belief: TensorDict, noise: torch.Generator) -> dict[str, Tensor]:
        """See Algorithm.sample; for `PPO`."""
        return self.ppo.sample(self.policy, observation, belief["latent"], noise)

    def improve(self, world: RealWorld, step: GradientStep) -> dict[str, float]:
        """Collect on policy, then a step of the actor and `search.epochs` steps of the critic, `search.updates` times."""
        metrics: dict[str, float] = {}
        search = self.cfg.search
        for update in range(search.updates):
            tasks, steps = self.family.sample(search.tasks, self.generator), search.horizon or self.spec.horizon
            belief = self.begin(len(tasks))
            (data,) = world.interact(tasks, self, belief, steps, self.generator)
            metrics = {"real/return": float(mean_return(data, self.spec))}
            data = data.to(self.device)
            rows = self.ppo.rows(self.policy, data.update(data.pop("taken")), belief["latent"].unsqueeze(1))
            shape = len(rows), self.spec.action_dim + 1
            # the same on all ranks, of which each takes its share
            rows["noise"] = torch.rand(shape, generator=self.generator).clamp(1e-6, 1 - 1e-6).to(self.device)
            own = step.share(rows)
            found = self._actor(own, step)
            for _ in range(search.epochs):
                found |= self._critic(own, step)
            metrics |= {f"train/{name}": value for name, value in found.items()}
            if not int(self.iteration) and not update:
                self.policy.norm.fit(self.spec.features(data["observation"]))
        return metrics

    def _actor(self, rows: TensorDict, step: GradientStep) -> dict[str, float]:
        """Down the natural gradient of -E[pi(a) / pi_old(a) A] on rows `[N]`; the `kl` there is after it."""
        with torch.no_grad():
            loc, scale = self.policy(rows["inputs"])
            if self.spec.discrete:
                score = self.policy.choose(loc, rows["noise"][:, 1:]) - torch.softmax(loc, -1)
            else:
                score = torch.special.ndtri(rows["noise"][:, 1:]) / scale
        self.actor.observe(rows["inputs"], score, step.mean)
        target = rows.select("inputs", "action", "action_log_prob").update({"loc": loc, "scale": scale})
        target["advantage"] = rows["advantage"].squeeze(-1)
        batch = TensorDict({"target": target.unsqueeze(0)}, batch_size=[1])

        loss = TrustRegionLoss(self.policy)

        def losses() -> dict[str, Tensor]:
            out = loss(batch.set("policy", TensorDict(self.policy.adaptable(), batch_size=[1])))
            return {"loss": out["loss_objective"], "kl": out["kl"]}

        found = step(losses, self.actor)
        with torch.no_grad():
            return step.numbers({"surrogate": -found["loss"], "kl": step.mean(losses()["kl"])})

    def _critic(self, rows: TensorDict, step: GradientStep) -> dict[str, float]:
        """A Gauss-Newton step on half the squared error of the values."""
        value = self.ppo.value
        noise = torch.special.ndtri(rows["noise"][:, :1])
        self.critic.observe(torch.cat([rows["seen"], rows["time"]], -1), noise, step.mean)

        def losses() -> dict[str, Tensor]:
            return {"loss": 0.5 * (value(rows["seen"], rows["time"]) - rows["value_target"]).square().mean()}

        return step.numbers({"loss_critic": step(losses, self.critic)["loss"]})
