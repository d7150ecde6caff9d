"""The two baselines of every latent model: the same decoder told nothing of the task, or told its true parameters.

And a model that need not be told: of what happens in tasks that differ in their reward alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from mbrl_lightning.config.schema import DynamicsConfig
from mbrl_lightning.envs.spec import EnvSpec
from mbrl_lightning.models.base import Dynamics


class MLPDynamics(Dynamics):
    """Context-free model (`code_dim` 0), or the oracle given the P = `code_dim` scaled task parameters."""

    def tell(self, parameters: Tensor) -> TensorDict:
        """Belief `[M]` of a model told the scaled task parameters `[M, P]`, of which the context-free one takes none."""
        return TensorDict({"latent": parameters[:, : self.code_dim].float()}, batch_size=[len(parameters)])

    def code(self, x: Tensor, belief: TensorDict, noise: Tensor | None = None) -> Tensor:
        """The told parameters, one copy for each row: `[M, N, P]`."""
        return belief["latent"].unsqueeze(1).expand(-1, x.shape[1], -1)

    def training_step(self, batch: TensorDictBase, batch_idx: int = 0) -> dict[str, Tensor]:
        """Negative log-likelihood of `batch["target"]` `[M, N]`, told `batch["task"]` `[M, P]`."""
        target = batch["target"]
        x = self.inputs(target["observation"], target["action"])
        loss = self.nll(self.decode(x, self.code(x, self.tell(batch["task"]))), self.targets(target)).mean()
        return {"loss": loss, "loss_likelihood": loss.detach()}


class PaidDynamics(MLPDynamics):
    """The context-free one, for observations whose last entry is what was paid: that of the belief's `task` `[M, P]`.

    Where tasks do not say what they pay, it is no more than that.

    Args:
        paid: see `TaskFamily`; the others: see Dynamics.
    """

    def __init__(self, spec: EnvSpec, cfg: DynamicsConfig, paid: Callable[..., Tensor] | None) -> None:
        super().__init__(spec, cfg)
        self.paid = paid

    def code(self, x: Tensor, belief: TensorDict, noise: Tensor | None = None) -> Tensor:
        """Nothing."""
        return x[..., :0]

    def imagine(self, observation: Tensor, action: Tensor, belief: TensorDict, *others: Any) -> Tensor:
        """See `Dynamics.imagine`; the reward is the task's own."""
        following = super().imagine(observation, action, belief, *others)
        if self.paid is None:
            return following
        reward = self.paid(observation, action, following, belief["task"].unsqueeze(1))
        return torch.cat([following[..., :-1], reward.unsqueeze(-1)], -1)
