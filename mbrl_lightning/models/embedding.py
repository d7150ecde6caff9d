"""A model with an embedding of each training situation, meta-trained by Reptile (FAMLE; Kaushik et al., IROS 2020).

s' = s + f_theta(s, a, h_i), theta and h_i of situation i
phi, h'_i after inner steps on data of i; theta moves towards phi, h_i towards h'_i       EmbeddingDynamics.training_step
online: the most likely h of the last M transitions, inner steps on theta and h           EmbeddingDynamics.believe
"""

from __future__ import annotations

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from mbrl_lightning.beliefs.gradient import GradientAdaptation, Losses, Parameters, repeat
from mbrl_lightning.config.methods import FAMLEConfig
from mbrl_lightning.config.schema import DynamicsConfig
from mbrl_lightning.envs.spec import EnvSpec
from mbrl_lightning.models.adaptive import AdaptiveDynamics

CODE = "embedding"


class EmbeddingDynamics(AdaptiveDynamics):
    """The belief is a situation's embedding and the decoder's weights, adapted together; one who knows nothing has the first's.

    Args:
        famle: sizes of embeddings and steps; the others: see Dynamics.
        situations: I, how many there are.
    """

    def __init__(self, spec: EnvSpec, cfg: DynamicsConfig, famle: FAMLEConfig, situations: int) -> None:
        super().__init__(spec, cfg, famle.embedding)
        self.table = nn.Parameter(torch.randn(cfg.members, situations, famle.embedding))
        names = [*dict(self.decoder.named_parameters()), CODE]
        self.inner = GradientAdaptation(names, famle.inner_lr, famle.inner_steps)
        self.online = GradientAdaptation(names, famle.online_lr, famle.online_steps)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain steps from the start of the inner steps to their end, of weights and of embeddings; `fit` sets how far."""
        return torch.optim.SGD([{"params": list(self.decoder.parameters())}, {"params": [self.table]}], fused=True)

    def _start(self, situation: Tensor) -> Parameters:
        """Weights and embeddings of situations `[B]`, for each of B x E networks."""
        start = repeat(self.decoder.named_parameters(), len(situation)) | {
            CODE: self.table[:, situation].transpose(0, 1)
        }
        start[CODE] = start[CODE].unsqueeze(2)
        return {name: value.flatten(0, 1) for name, value in start.items()}

    def _losses(self, inputs: Tensor, target: Tensor, weights: Tensor) -> Losses:
        """Squared errors of B x E networks, summed over rows `[B, M, X]`, `[B, M, Y]` with `weights` `[B, M]`: `[B x E]`."""
        x, y, share = (part.repeat_interleave(self.members, 0) for part in (inputs, target, weights))

        def losses(parameters: Parameters) -> Tensor:
            joined = torch.cat([x, parameters[CODE].expand(-1, x.shape[1], -1)], -1)
            return ((self.decoder.evaluate(joined, parameters) - y).square().mean(-1) * share).sum(1)

        return losses

    def training_step(self, batch: TensorDictBase, batch_idx: int = 0) -> dict[str, Tensor]:
        """A loss whose gradient is the mean over situations of theta - phi, and of h - h' (Reptile); its value says nothing.

        Args:
            batch: `situation` `[B]`, each once; `inputs` `[B, k, N, X]` and `target` `[B, k, N, Y]` for k inner steps.
            batch_idx: unused.

        Returns:
            `loss`, and detached `loss_after`, the error on the last rows after the inner steps.
        """
        parts = zip(batch["inputs"].unbind(1), batch["target"].unbind(1), strict=True)
        mean = batch["target"].new_full(batch["target"].shape[::2], 1 / batch["target"].shape[2])
        steps, start = [self._losses(x, y, mean) for x, y in parts], self._start(batch["situation"])
        with torch.no_grad():
            end = self.inner(steps, start)
            left = steps[-1](end).mean()
        moved = [(value * (value - end[name]).detach()).sum() for name, value in start.items()]
        return {"loss": torch.stack(moved).sum() / len(batch), "loss_after": left}

    @torch.no_grad()
    def likely(self, inputs: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """The situation `[B]` in which transitions `[B, M, X]`, `[B, M, Y]`, but those masked, are the most likely."""
        shape = len(inputs), *self.table.shape[:2], inputs.shape[1]
        x = inputs[:, None, None].expand(*shape, -1)
        joined = torch.cat([x, self.table[None, :, :, None].expand(*shape, -1)], -1).flatten(2, 3)
        errors = (super().evaluate(joined, slice(None), None).unflatten(2, shape[2:]) - target[:, None, None]).square()
        return (errors.mean(-1) * mask[:, None, None]).sum(-1).mean(1).argmin(1)

    def believe(self, inputs: Tensor, target: Tensor, mask: Tensor) -> TensorDict:
        """See AdaptiveDynamics.believe: adapted `weights`, by name, with the `embedding`, `[B, E, ...]` each."""
        start = self._start(self.likely(inputs, target, mask))
        end = self.online(self._losses(inputs, target, mask / max(inputs.shape[1], 1)), start)
        weights = {name: value.unflatten(0, (len(inputs), self.members)) for name, value in end.items()}
        return TensorDict({"weights": TensorDict(weights, batch_size=inputs.shape[:1])}, batch_size=inputs.shape[:1])

    def evaluate(self, blocks: Tensor, members: slice, belief: TensorDictBase | None) -> Tensor:
        """See Dynamics.evaluate; each task has weights and an embedding of its own."""
        weights = None if belief is None else belief.get("weights", None)
        if weights is None:
            code = self.table[members, :1].expand(len(blocks), -1, blocks.shape[2], -1)
            return super().evaluate(torch.cat([blocks, code], -1), members, belief)
        own = {name: value[:, members].flatten(0, 1) for name, value in weights.items()}
        joined = torch.cat([blocks.flatten(0, 1), own[CODE].expand(-1, blocks.shape[2], -1)], -1)
        return self.decoder.evaluate(joined, own).unflatten(0, blocks.shape[:2])
