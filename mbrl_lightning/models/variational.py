"""Dynamics p(o' | o, a, z) with one free Gaussian q(z_i) for each training task (Belkhale et al. 2021; Perez et al. 2020).

    ELBO_i = E_q sum_n log p(o'_n | o_n, a_n, z) - KL(q(z_i) || N(0, I))        VariationalDynamics.training_step
The sum is over all n_i transitions of the task, so a batch's mean stands beside KL / n_i.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from mbrl_lightning.beliefs.variational import from_prior, sigma_points
from mbrl_lightning.config.schema import DynamicsConfig
from mbrl_lightning.envs.spec import EnvSpec
from mbrl_lightning.models.base import Dynamics
from mbrl_lightning.networks import StackedMLP

MOST_TASKS = 4096
LOG_VAR = (-5.0, 2.0)  # of standardised targets; lower, outputs that are nearly certain drown the others


class VariationalDynamics(Dynamics):
    """E decoders that see a latent; `table` `[MOST_TASKS, 2, Z]` holds (mu, log sigma) of training tasks, in the data's order.

    Args:
        spec: the family's.
        cfg: of the model.
        latent_lr: learning rate of the table.
    """

    def __init__(self, spec: EnvSpec, cfg: DynamicsConfig, latent_lr: float) -> None:
        super().__init__(spec, cfg, code_dim=cfg.latent_dim)
        self.latent_lr = latent_lr
        self.table = torch.nn.Parameter(torch.zeros(MOST_TASKS, 2, cfg.latent_dim))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam; the Gaussians learn at a rate of their own, without decay."""
        rest = [p for name, p in self.named_parameters() if p.requires_grad and name != "table"]
        own: dict[str, Any] = {"params": [self.table], "lr": self.latent_lr, "weight_decay": 0.0}
        return torch.optim.Adam([{"params": rest}, own], lr=self.cfg.lr, weight_decay=self.cfg.weight_decay, fused=True)

    def code(self, x: Tensor, belief: TensorDict, noise: Tensor | None = None) -> Tensor:
        """The latent of each task, `[M, N, Z]`: a draw of q for each row, or its mean without noise."""
        loc = belief["latent"].unsqueeze(1).expand(-1, x.shape[1], -1)
        return loc if noise is None else loc + belief["scale"].unsqueeze(1) * noise

    def row_losses(self, x: Tensor, code: Tensor, y: Tensor) -> Tensor:
        """-log p(y | x, code) of standardised rows, each by its member: `[M, N]`."""
        return self.nll(self.decode(x, code), y)

    def evidence(self, q: Tensor, inputs: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Negative ELBO of each q `[M, 2, Z]` over its number of transitions, `[M]`: theta stays as it is.

        Args:
            q: see `beliefs.variational`; its expectation is taken in sigma points, and over members.
            inputs: standardised `[M, N, X]`.
            target: standardised `[M, N, Y]`.
            mask: which of the N there are, `[M, N]`.
        """
        points, count = sigma_points(q), mask.sum(1).clamp_min(1)
        copies, rows = len(points), inputs.shape[1]
        code = points.transpose(0, 1).repeat_interleave(rows, 1).repeat(1, self.members, 1)
        x, y, there = (part.repeat(1, copies * self.members, *[1] * (part.ndim - 2)) for part in (inputs, target, mask))
        losses = self.row_losses(x, code, y) * there / (copies * self.members)
        return (losses.sum(1) + self.cfg.kl_weight * from_prior(q)) / count

    def training_step(self, batch: TensorDictBase, batch_idx: int = 0) -> dict[str, Tensor]:
        """Negative ELBO over the number of transitions, mean over tasks: `loss`, and its detached parts.

        The batch `[M]` has `index` in the table, the `count` n_i of the task's transitions, `target` `[M, N]` of them and
        `noise` `[M, N, Z]`.
        """
        q, target = self.table[batch["index"]], batch["target"]
        loc, log_scale = q.unbind(1)
        belief = TensorDict({"latent": loc, "scale": log_scale.exp()}, batch_size=[len(q)])
        x = self.inputs(target["observation"], target["action"])
        likelihood = self.row_losses(x, self.code(x, belief, batch["noise"]), self.targets(target)).mean()
        kl = (from_prior(q) / batch["count"]).mean()
        loss = likelihood + self.cfg.kl_weight * kl
        return {"loss": loss, "loss_likelihood": likelihood.detach(), "loss_kl": kl.detach()}


class ProbabilisticVariationalDynamics(VariationalDynamics):
    """The same with a deviation for every row and output, the decoders' second half (GHP-MDP's probabilistic ensemble)."""

    def __init__(self, spec: EnvSpec, cfg: DynamicsConfig, latent_lr: float) -> None:
        super().__init__(spec, cfg, latent_lr)
        self.log_scale.requires_grad_(False)
        *sizes, outputs = self.decoder.sizes
        self.decoder = StackedMLP(cfg.members, [*sizes, 2 * outputs], cfg.activation)

    def decode(
        self, x: Tensor, code: Tensor, members: slice = slice(None), belief: TensorDictBase | None = None
    ) -> Tensor:
        """See Dynamics.decode: means."""
        return super().decode(x, code, members, belief)[..., : self.spec.target_dim]

    def row_losses(self, x: Tensor, code: Tensor, y: Tensor) -> Tensor:
        """See VariationalDynamics.row_losses; log-variances are bounded softly, as in M3PO's model."""
        loc, log_var = super().decode(x, code).chunk(2, -1)
        low, high = LOG_VAR
        log_var = low + F.softplus(high - F.softplus(high - log_var) - low)
        return 0.5 * ((loc - y).square() * (-log_var).exp() + log_var).sum(-1)
