"""A model told of the task by a context that it reads off the last transitions, and that must serve backwards too (CaDM).

z = g(last M changes of the observation and actions)                              ContextDynamics.believe
L = sum over the next K steps of -log p(s' | s, a, z), + beta |s - b(s', a, z)|^2, one z for all of them
"""

from __future__ import annotations

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from mbrl_lightning.config.methods import CaDMConfig
from mbrl_lightning.config.schema import DynamicsConfig
from mbrl_lightning.envs.spec import EnvSpec
from mbrl_lightning.models.adaptive import AdaptiveDynamics
from mbrl_lightning.networks import StackedMLP
from mbrl_lightning.networks.gaussians import soft_bounds


class ContextDynamics(AdaptiveDynamics):
    """E Gaussian heads and a backward one on a context of width Z; with Z = 0 a plain probabilistic ensemble (PETS)."""

    def __init__(self, spec: EnvSpec, cfg: DynamicsConfig, cadm: CaDMConfig) -> None:
        super().__init__(spec, cfg, cadm.context_dim)
        self.idle, self.past, self.weight = cadm.context_dim == 0, cadm.past, cadm.backward
        first, *hidden, outputs = self.decoder.sizes
        self.decoder = StackedMLP(cfg.members, [first, *hidden, 2 * outputs], cfg.activation)
        self.reverse = StackedMLP(1, [first, *hidden, outputs], cfg.activation)
        window = cadm.past * (outputs + spec.action_feature_dim)
        self.encoder = StackedMLP(1, [window, *cadm.hidden, cadm.context_dim])

    def columns(self, data: TensorDictBase) -> dict[str, Tensor]:
        """See AdaptiveDynamics.columns; and `back`, the inputs `[..., X]` of the prediction backwards."""
        return super().columns(data) | {"back": self.inputs(data["next", "observation"], data["action"])}

    def believe(self, inputs: Tensor, target: Tensor, mask: Tensor) -> TensorDict:
        """See AdaptiveDynamics.believe: `context` `[B, Z]`; empty if there is none."""
        if self.idle:
            return TensorDict({}, batch_size=inputs.shape[:1])
        seen = torch.cat([target, inputs[..., -self.spec.action_feature_dim :]], -1) * mask.unsqueeze(-1)
        return TensorDict({"context": self.encoder(seen.flatten(1).unsqueeze(0))[0]}, batch_size=inputs.shape[:1])

    def _told(self, blocks: Tensor, belief: TensorDictBase | None) -> Tensor:
        """Inputs `[B, ..., X]` with the context of their belief `[B]`; one without has that of who has seen nothing."""
        if self.idle:
            return blocks
        context = None if belief is None else belief.get("context", None)
        if context is None:
            context = self.encoder(blocks.new_zeros(1, len(blocks), self.encoder.sizes[0]))[0]
        return torch.cat(
            [blocks, context.view(len(blocks), *[1] * (blocks.ndim - 2), -1).expand(*blocks.shape[:-1], -1)], -1
        )

    def evaluate(self, blocks: Tensor, members: slice, belief: TensorDictBase | None) -> Tensor:
        """See Dynamics.evaluate: means."""
        return super().evaluate(self._told(blocks, belief), members, belief).chunk(2, -1)[0]

    def training_step(self, batch: TensorDictBase, batch_idx: int = 0) -> dict[str, Tensor]:
        """Likelihood of the future given the past's context and, weighted, the error backwards, in segments `[B]`.

        Returns:
            `loss`, the sum over members, and detached `loss_after`, the mean squared error of the heads' means.
        """
        past, future = batch["past"], batch["future"]
        belief, y = self.believe(past["inputs"], past["target"], past["mask"]), future["target"].unsqueeze(1)
        blocks, used = future["inputs"].unsqueeze(1).expand(-1, self.members, -1, -1), future["mask"]
        out = super().evaluate(self._told(blocks, belief), slice(None), belief)
        loc, log_var = out.chunk(2, -1)
        log_var = soft_bounds(log_var)
        error = (loc - y).square()
        likelihood = 0.5 * (error * (-log_var).exp() + log_var)
        likelihood = (likelihood * (self.cfg.variance_weight * log_var.detach()).exp()).mean(-1)
        back = self.reverse(self._told(future["back"], belief).flatten(0, 1).unsqueeze(0))[0].view_as(future["target"])
        backwards = (back - future["target"]).square().mean(-1)
        # over all places, masked ones too, so that the mean over ranks is that of one process
        loss = (likelihood.sum(1) + self.weight * self.members * backwards) * used
        return {
            "loss": loss.sum() / used.numel(),
            "loss_after": (error.detach().mean((1, 3)) * used).sum() / used.sum(),
        }
