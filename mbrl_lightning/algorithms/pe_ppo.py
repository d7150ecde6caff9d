"""PE-PPO, proximal policy optimisation with a probabilistic embedding of the task: GSSM's model-free rival that adapts.

    GSSM section 5.1: q(z | c) as in PEARL, pi(a | s, z) and V(s, z)     PEPPO, InferredLatentAlgorithm
    GSSM section H: a permutation invariant encoder, as in MLSM-v0       MeanEncoder; `pearl.pooling=product` is PEARL's
    the encoder learns from the critic's loss and a KL divergence        PEPPO._embed
An update collects the context of each task with z of the prior, and as many steps as there are to an episode with z of the
posterior; PPO learns from both. What the policy is given stays the z that acted, so its ratios are exact; what the value is
given is z as today's encoder would have it.
"""

from __future__ import annotations

from functools import partial

import torch
from tensordict import TensorDict
from torch import Tensor

from mbrl_lightning.algorithms.inferred_latent import InferredLatentAlgorithm
from mbrl_lightning.beliefs.encoders import MeanEncoder, ProductEncoder
from mbrl_lightning.config.schema import Config
from mbrl_lightning.data.world import RealWorld
from mbrl_lightning.envs.family import TaskFamily
from mbrl_lightning.models.imagination import mean_return
from mbrl_lightning.networks.gaussians import kl_divergence
from mbrl_lightning.networks.step import GradientStep
from mbrl_lightning.policies.heads import Policy
from mbrl_lightning.policies.ppo import PPO
from mbrl_lightning.policies.search import refit


class PEPPO(InferredLatentAlgorithm):
    """PPO over real tasks, given a latent inferred from a context of `pearl.context` transitions of the task at hand."""

    policy: Policy

    def __init__(self, family: TaskFamily, cfg: Config) -> None:
        pearl, width = cfg.pearl, cfg.pearl.latent_dim
        encoders = {
            "mean": lambda inputs: MeanEncoder(inputs, 0, width, pearl.hidden[0]),
            "product": lambda inputs: ProductEncoder(inputs, width, pearl.hidden),
        }
        super().__init__(family, cfg, encoders[pearl.pooling])
        family.require_several()
        self.policy = Policy(self.spec, cfg.policy, width)
        self.ppo = PPO(self.policy, cfg.search, cfg.policy)
        self.optimizers = {"policy": torch.optim.Adam(self.parameters(), lr=cfg.search.lr, fused=True)}

    @torch.no_grad()
    def act(
        self, belief: TensorDict, observation: Tensor, noise: torch.Generator | None = None
    ) -> tuple[Tensor, TensorDict]:
        """See Algorithm.act; the policy is given the latent that is held, and one that is due is drawn first."""
        return super().act(self.held(belief, noise), observation, noise)

    def sample(self, observation: Tensor, belief: TensorDict, noise: torch.Generator) -> dict[str, Tensor]:
        """See Algorithm.sample; for `PPO`."""
        return self.ppo.sample(self.policy, observation, belief["latent"], noise) | {"latent": belief["latent"]}

    def improve(self, world: RealWorld, step: GradientStep) -> dict[str, float]:
        """Collect contexts, then episodes, of new tasks; then PPO epochs, `search.updates` times."""
        metrics: dict[str, float] = {}
        search, optimizer = self.cfg.search, self.optimizers["policy"]
        for group in optimizer.param_groups:
            group["lr"] = search.lr * max(1 - float(self.iteration) / max(self.cfg.loop.iterations, 1), 0.2)
        for update in range(search.updates):
            tasks = self.family.sample(search.tasks, self.generator)
            _, prior = self.explorer(len(tasks))
            (context,) = world.interact(tasks, self, prior, self.cfg.pearl.context, self.generator, exploratory=True)
            if not int(self.iteration) and not update:
                self.inputs.fit(world.real.transitions().to(self.device))
            belief = self.adapt(self.begin(len(tasks)), context)
            (data,) = world.interact(tasks, self, belief, search.horizon or self.spec.horizon, self.generator)
            metrics = {"real/return": float(mean_return(data, self.spec))}
            pairs = self.pairs(context)
            rows = torch.cat([self._rows(context, prior, len(tasks)), self._rows(data, belief, 0)])
            embed = partial(self._embed, pairs)
            found = self.ppo.learn(self.policy, rows, step, optimizer, self.generator, embed)
            metrics |= {f"train/{name}": value for name, value in found.items()}
            refit(self.policy, self.spec, world.real)
        return metrics

    def _rows(self, data: TensorDict, belief: TensorDict, first: int) -> TensorDict:
        """Steps `[M, T]` as the loss takes them; and of z the number of the belief, and the noise, that it was drawn with."""
        data = data.to(self.device)
        data.update(data.pop("taken"))
        latent = data["latent"]
        rows = self.ppo.rows(self.policy, data, latent)
        noise = (latent - belief["loc"].unsqueeze(1)) / belief["scale"].unsqueeze(1)
        task = first + torch.arange(len(data), device=self.device).unsqueeze(1).expand(data.shape)
        return rows.update({"noise": noise.flatten(0, 1), "task": task.flatten()})

    def _embed(self, pairs: Tensor, batch: TensorDict) -> dict[str, Tensor]:
        """Let the value see z as it is drawn from what the encoder makes of contexts `[M, K, D]` today; the KL divergence."""
        belief = self.encoder(pairs)
        loc, scale = belief["loc"], belief["scale"]
        nothing, one = torch.zeros_like(loc), torch.ones_like(scale)
        of = batch["task"]
        latent = torch.cat([loc, nothing])[of] + torch.cat([scale, one])[of] * batch["noise"]
        seen = batch["inputs"][:, : -self.policy.latent_dim]
        batch["seen"] = torch.cat([seen, self.policy.gain * latent], -1)
        return {"loss_kl": self.cfg.pearl.kl_weight * kl_divergence(loc, scale, nothing, one).mean()}
