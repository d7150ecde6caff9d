"""A network with dropout, of which every mask is a function that it holds possible (Gal et al. 2016; GSSM appendix H)."""

from __future__ import annotations

from statistics import NormalDist

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from mbrl_lightning.beliefs.gradient import GradientAdaptation, Parameters, repeat
from mbrl_lightning.config.schema import DynamicsConfig
from mbrl_lightning.envs.spec import EnvSpec
from mbrl_lightning.models.base import Dynamics


class DropoutDynamics(Dynamics):
    """One network for all tasks, with dropout on what goes into each of its layers.

    A mask is the code of a row: made of the row's normal noise of width U, the number of units that may drop, so that a stream
    that keeps its noise keeps its function. Without noise there is no mask, which is the mean network. The units that stay
    are scaled by 1 / (1 - p).
    """

    def __init__(self, spec: EnvSpec, cfg: DynamicsConfig) -> None:
        super().__init__(spec, cfg)
        self.widths = self.decoder.sizes[:-1]
        self.noise_dim, self.threshold = sum(self.widths), NormalDist().inv_cdf(cfg.dropout)
        names = [name for name, _ in self.decoder.named_parameters()]
        self.refresh = GradientAdaptation(names, cfg.refresh_lr, cfg.refresh_steps)

    def code(self, x: Tensor, belief: TensorDict, noise: Tensor | None = None) -> Tensor:
        """Factors on the units of all layers for inputs `[M, N, X]` and noise `[M, N, U]`: `[M, N, U]`."""
        if noise is None:
            return x.new_ones(*x.shape[:-1], self.noise_dim)
        return (noise > self.threshold).to(x.dtype) / (1 - self.cfg.dropout)

    def evaluate(self, blocks: Tensor, members: slice, belief: TensorDictBase | None) -> Tensor:
        """See Dynamics.evaluate, for one member; with `weights` in the belief each task has a network of its own."""
        x, mask = blocks.squeeze(1).split([self.widths[0], self.noise_dim], -1)
        own = None if belief is None else belief.get("weights", None)
        for number, (layer, factors) in enumerate(zip(self.decoder.affine, mask.split(self.widths, -1), strict=True)):
            x = (self.decoder.activation(x) if number else x) * factors
            if own is None:
                x = layer(x.reshape(1, -1, x.shape[-1])).view(*x.shape[:2], -1)
            else:
                x = torch.baddbmm(own[f"{2 * number}.bias"], x, own[f"{2 * number}.weight"])
        return x.unsqueeze(1)

    def refreshed(self, x: Tensor, y: Tensor) -> TensorDict:
        """Belief `[M]` after standardised transitions `[M, K, X]`, `[M, K, Y]`: an empty `latent`, and `weights` `[M, ...]`.

        These are what `dynamics.refresh_steps` gradient steps of the mean network's squared error make of the weights; they are
        left out where there is no transition or no step.
        """
        belief = TensorDict({"latent": x.new_zeros(len(x), 0)}, batch_size=[len(x)])
        if self.refresh.idle or not x.shape[1]:
            return belief

        def losses(parameters: Parameters) -> Tensor:
            return (self.decoder.evaluate(x, parameters) - y).square().mean((1, 2))

        own = self.refresh(losses, repeat(self.decoder.named_parameters(), len(x), stacked=True))
        return belief.set("weights", TensorDict(own, batch_size=[len(x)]))

    def training_step(self, batch: TensorDictBase, batch_idx: int = 0) -> dict[str, Tensor]:
        """Negative log-likelihood of `target` `[M, N]`, each with a mask of its own from the particles' `noise` `[M, P, N, U]`.

        With the weight decay that is the variational bound of dropout. Returns `loss`, and `loss_likelihood`, detached.
        """
        target = batch["target"]
        x, y = self.inputs(target["observation"], target["action"]), self.targets(target)
        masks = [self.code(x, batch, eps) for eps in batch["noise"].unbind(1)]
        loss = torch.stack([self.nll(self.decode(x, mask), y).mean() for mask in masks]).mean()
        return {"loss": loss, "loss_likelihood": loss.detach()}
