"""A model told a context vector, which gradient steps on a task's own transitions identify (MIER, Mendonca et al. 2020).

    phi_T = phi - alpha grad_phi L(context; theta, phi)              IdentifiedDynamics.identify
    min over theta, phi (and alpha) of the loss of phi_T on targets  IdentifiedDynamics.training_step
L is the mean squared error of standardised targets, of which a hidden reward is one.
"""

from __future__ import annotations

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from mbrl_lightning.beliefs.gradient import GradientAdaptation, Parameters
from mbrl_lightning.config.methods import MIERConfig
from mbrl_lightning.config.schema import DynamicsConfig
from mbrl_lightning.envs.spec import EnvSpec
from mbrl_lightning.models.base import Dynamics

PHI = "phi"


class IdentifiedDynamics(Dynamics):
    """The belief's `latent` `[M, Z]` is phi_T; what is believed of a task of which nothing is known is `prior` `[Z]`.

    Args:
        spec: the family's.
        cfg: of the model.
        mier: of the steps.
    """

    def __init__(self, spec: EnvSpec, cfg: DynamicsConfig, mier: MIERConfig) -> None:
        super().__init__(spec, cfg, code_dim=cfg.latent_dim)
        self.log_scale.requires_grad_(False)
        self.prior = nn.Parameter(torch.zeros(cfg.latent_dim))
        self.inner = GradientAdaptation([PHI], mier.inner_lr, mier.inner_steps, learned=mier.inner_lr > 0)

    def code(self, x: Tensor, belief: TensorDict, noise: Tensor | None = None) -> Tensor:
        """The context vector of each task, `[M, N, Z]`."""
        return belief["latent"].unsqueeze(1).expand(-1, x.shape[1], -1)

    def errors(self, x: Tensor, y: Tensor, phi: Tensor) -> Tensor:
        """Mean squared errors over rows `[M, N, X]`, `[M, N, Y]` and members, given vectors `[M, Z]`: `[M]`."""
        x, y = (part.repeat(1, self.members, 1) for part in (x, y))
        code = phi.unsqueeze(1).expand(-1, x.shape[1], -1)
        return (self.decode(x, code) - y).square().mean((1, 2))

    def identify(self, x: Tensor, y: Tensor) -> Tensor:
        """phi_T `[M, Z]` of standardised contexts `[M, K, X]`, `[M, K, Y]`; differentiable where gradients are enabled."""
        start: Parameters = {PHI: self.prior.expand(len(x), -1)}
        return self.inner(lambda held: self.errors(x, y, held[PHI]), start)[PHI] if x.shape[1] else start[PHI]

    def training_step(self, batch: TensorDictBase, batch_idx: int = 0) -> dict[str, Tensor]:
        """Error on `target` `[M, N]` given what `context` `[M, K]` identifies, `loss`; detached `loss_prior` of the prior."""
        context, target = batch["context"], batch["target"]
        phi = self.identify(self.inputs(context["observation"], context["action"]), self.targets(context))
        x, y = self.inputs(target["observation"], target["action"]), self.targets(target)
        with torch.no_grad():
            before = self.errors(x, y, self.prior.expand(len(x), -1)).mean()
        return {"loss": self.errors(x, y, phi).mean(), "loss_prior": before}
