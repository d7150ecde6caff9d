"""GSSM, the graph structured surrogate model (Wang & van Hoof 2022, Eq. 2-8, Appendix D).

    Eq. 2-4  message passing, context -> context -> target      beliefs.encoders.GraphEncoder
    Eq. 5-7  evidence lower bound with q(z_c) as prior of q(z_t)  GraphDynamics.training_step
    Eq. 8    predictive distribution, averaged over particles   Dynamics.predict
Departures: E decoders share one encoder (E = 1 is the paper); the likelihood has a small or learned deviation, since
unit variance in standardised units collapses the latent; inputs and outputs are standardised in every family.
"""

from __future__ import annotations

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from mbrl_lightning.beliefs.encoders import GraphEncoder
from mbrl_lightning.config.schema import DynamicsConfig
from mbrl_lightning.envs.spec import EnvSpec
from mbrl_lightning.models.base import Dynamics
from mbrl_lightning.networks.gaussians import kl_divergence


class GraphDynamics(Dynamics):
    """Task-conditioned dynamics: context transitions -> q(z_c), q(z_t) -> next observation; sizes as in Table 7."""

    def __init__(self, spec: EnvSpec, cfg: DynamicsConfig) -> None:
        super().__init__(spec, cfg, code_dim=cfg.latent_dim)
        inputs = spec.feature_dim + spec.action_feature_dim
        self.encoder = GraphEncoder(inputs, spec.target_dim, cfg.latent_dim, cfg.width, cfg.message)

    def infer(self, context: TensorDictBase) -> TensorDict:
        """Belief q(z_c) `[M]` after `context` `[M, K]`: one forward pass, no gradient step (Algorithm 2)."""
        return self.encoder.context(self.inputs(context["observation"], context["action"]), self.targets(context))

    def code(self, x: Tensor, belief: TensorDict, noise: Tensor | None = None) -> Tensor:
        """z_t ~ q(z_t | x_t, context), reparametrised, `[M, N, Z]`; its mean without noise."""
        loc, scale = self.encoder.target(x, belief)
        return loc if noise is None else loc + scale * noise

    def training_step(self, batch: TensorDictBase, batch_idx: int = 0) -> dict[str, Tensor]:
        """Negative evidence lower bound of GSSM Eq. 7, mean over tasks and targets: `loss`, its detached parts `loss_*`.

        The batch `[M]` has `context` `[M, K]`, `target` `[M, N]` (N a multiple of E) and the particles' `noise` `[M, P, N, Z]`.
        """
        target = batch["target"]
        belief = self.infer(batch["context"])
        x, y = self.inputs(target["observation"], target["action"]), self.targets(target)
        loc, scale = self.encoder.target(x, belief)
        codes = [loc + scale * eps for eps in batch["noise"].unbind(1)]
        likelihood = torch.stack([self.nll(self.decode(x, z), y).mean() for z in codes]).mean()
        kl = kl_divergence(loc, scale, belief["loc"].unsqueeze(1), belief["scale"].unsqueeze(1)).mean()
        loss = likelihood + self.cfg.kl_weight * kl
        return {"loss": loss, "loss_likelihood": likelihood.detach(), "loss_kl": kl.detach()}
