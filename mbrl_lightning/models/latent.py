"""Models that are told a latent of the task: GSSM and its rivals by neural processes (Wang & van Hoof 2022, Eq. 2-8, Table 3).

    Eq. 2-4  message passing, context -> context -> target      beliefs.encoders.GraphEncoder
    Table 3  neural processes, MLSM-v0 and MLSM-v1              beliefs.encoders.MeanEncoder, AttentiveEncoder
    Eq. 5-7  evidence lower bound, q(z_c) the prior             LatentDynamics.training_step
    Eq. 8    predictive distribution, averaged over particles   Dynamics.predict
Departures: E decoders share one encoder (E = 1 is the paper); the likelihood has a small or learned deviation, since
unit variance in standardised units collapses the latent; inputs and outputs are standardised in every family.
"""

from __future__ import annotations

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from mbrl_lightning.beliefs.encoders import GraphEncoder, MeanEncoder
from mbrl_lightning.config.schema import DynamicsConfig
from mbrl_lightning.envs.spec import EnvSpec
from mbrl_lightning.models.base import Dynamics
from mbrl_lightning.networks.gaussians import kl_divergence


class LatentDynamics(Dynamics):
    """Task-conditioned dynamics: context transitions -> q(z) -> next observation; sizes as in Table 7.

    `encoder` is all that GSSM, MLSM-v0 and MLSM-v1 differ in.
    """

    def __init__(
        self, spec: EnvSpec, cfg: DynamicsConfig, encoder: type[GraphEncoder] | type[MeanEncoder] = GraphEncoder
    ) -> None:
        super().__init__(spec, cfg, code_dim=encoder.codes * cfg.latent_dim)
        self.noise_dim = cfg.latent_dim
        inputs = spec.feature_dim + spec.action_feature_dim
        self.encoder = encoder(inputs, spec.target_dim, cfg.latent_dim, cfg.width, cfg.message)

    def infer(self, context: TensorDictBase) -> TensorDict:
        """Belief q(z_c) `[M]` after `context` `[M, K]`: one forward pass, no gradient step (Algorithm 2)."""
        return self.encoder.context(self.inputs(context["observation"], context["action"]), self.targets(context))

    def code(self, x: Tensor, belief: TensorDict, noise: Tensor | None = None) -> Tensor:
        """What is told of z given x and the context, reparametrised, `[M, N, Z]` or wider; of its mean without noise."""
        loc, scale = self.encoder.target(x, belief)
        return self.encoder.code(x, loc if noise is None else loc + scale * noise, belief)

    def training_step(self, batch: TensorDictBase, batch_idx: int = 0) -> dict[str, Tensor]:
        """Negative evidence lower bound, mean over tasks and targets: `loss`, its detached parts `loss_*`.

        GSSM Eq. 7 has a latent for each target, a neural process one for each task: that one is drawn once, and its KL weighs
        against the sum of the task's N log-likelihoods.

        The batch `[M]` has `context` `[M, K]`, `target` `[M, N]` (N a multiple of E) and the particles' `noise` `[M, P, N, Z]`.
        """
        target, encoder = batch["target"], self.encoder
        belief = self.infer(batch["context"])
        x, y = self.inputs(target["observation"], target["action"]), self.targets(target)
        loc, scale = encoder.posterior(x, y, belief)
        drawn = loc.shape[1]  # latents of a task: N, or 1
        codes = [encoder.code(x, loc + scale * eps[:, :drawn], belief) for eps in batch["noise"].unbind(1)]
        likelihood = torch.stack([self.nll(self.decode(x, z), y).mean() for z in codes]).mean()
        kl = kl_divergence(loc, scale, belief["loc"].unsqueeze(1), belief["scale"].unsqueeze(1)).mean()
        kl = kl * (drawn / x.shape[1])
        loss = likelihood + self.cfg.kl_weight * kl
        return {"loss": loss, "loss_likelihood": likelihood.detach(), "loss_kl": kl.detach()}
