"""The two baselines of every latent model: the same decoder told nothing of the task, or told its true parameters."""

from __future__ import annotations

from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from mbrl_lightning.config.schema import DynamicsConfig
from mbrl_lightning.envs.spec import EnvSpec
from mbrl_lightning.models.base import Dynamics


class MLPDynamics(Dynamics):
    """Context-free model, or the oracle given the scaled task parameters.

    Args:
        spec: the environment's features and targets.
        cfg: sizes and optimiser.
        parameters: number P of task parameters it is told; 0 for the blind model.
    """

    def __init__(self, spec: EnvSpec, cfg: DynamicsConfig, parameters: int = 0) -> None:
        super().__init__(spec, cfg, code_dim=parameters)

    def tell(self, parameters: Tensor) -> TensorDict:
        """Belief `[M]` of a model told the scaled task parameters `[M, P]`."""
        return TensorDict({"latent": parameters[:, : self.code_dim].float()}, batch_size=[len(parameters)])

    def infer(self, context: TensorDictBase) -> TensorDict:
        """The blind model believes nothing: an empty code `[M, 0]`, whatever the context."""
        return self.tell(context["observation"].new_zeros(len(context), self.code_dim))

    def code(self, x: Tensor, belief: TensorDict, noise: Tensor | None = None) -> Tensor:
        """The told parameters, one copy for each row: `[M, N, P]`."""
        return belief["latent"].unsqueeze(1).expand(-1, x.shape[1], -1)

    def training_step(self, batch: TensorDictBase, batch_idx: int = 0) -> dict[str, Tensor]:
        """Negative log-likelihood of `batch["target"]` `[M, N]`, told `batch["task"]` `[M, P]`."""
        target = batch["target"]
        x = self.inputs(target["observation"], target["action"])
        loss = self.nll(self.decode(x, self.code(x, self.tell(batch["task"]))), self.targets(target)).mean()
        return {"loss": loss, "loss_likelihood": loss.detach()}
