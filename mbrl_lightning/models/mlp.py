"""The two baselines of every latent model: the same decoder told nothing of the task, or told its true parameters."""

from __future__ import annotations

from tensordict import TensorDict, TensorDictBase
from torch import Tensor

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
