"""Policy search by back-propagation through imagined rollouts (GSSM Eq. 10; deep PILCO, Gal et al. 2016)."""

from __future__ import annotations

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.objectives import LossModule

from mbrl_lightning.errors import ConfigError
from mbrl_lightning.models.base import Dynamics
from mbrl_lightning.models.imagination import ImaginedAct, ImaginedStreams
from mbrl_lightning.policies.heads import Policy


class PathwiseLoss(LossModule):
    """Minus the imagined return of C policies at once, differentiated along the path.

    TorchRL has no loss of this kind (its `ImaginedEnv` carries Gaussian moments for PILCO), so this is a `LossModule` of
    our own: TensorDict in, `loss_policy` out, gradients to the policies alone.

    Args:
        policy: C policies.
        dynamics: the model, which the caller has frozen.
        horizon: H, imagined steps.
        gamma: discount.
        members: ensemble members that share out the streams of each policy.
        paired: policy m acts in task m alone (fine-tuning), instead of every policy in every task.
    """

    def __init__(
        self,
        policy: Policy,
        dynamics: Dynamics,
        horizon: int,
        gamma: float = 1.0,
        members: slice = slice(None),
        paired: bool = False,
    ) -> None:
        super().__init__()
        self.policy, self.dynamics, self.horizon, self.members, self.paired = policy, dynamics, horizon, members, paired
        self.register_buffer("discount", gamma ** torch.arange(horizon))
        self.in_keys = ["observation", "belief", "noise"]
        self.out_keys = ["loss_policy", "imagined_return"]

    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """Loss of Eq. 10.

        Args:
            tensordict: batch `[M]` with start states `observation` `[M, B, S]`, `belief` (with `latent` `[M, Z]`) and
                `noise` `[M, B, Z]` of the code. Every policy sees the same starts and noise, so that they compare.

        Returns:
            `loss_policy`, summed over the C policies (their parameters are apart, so each gets its own gradient), and
            `imagined_return` `[C]`, discounted mean over the H steps; those after the end of an episode count as 0.

        Raises:
            ConfigError: the reward has no gradient in the actions.
        """
        if self.paired:
            reward = self._rollout(tensordict, self._act_paired(tensordict["belief", "latent"]), copies=1)
            returns = (reward * self.discount).sum(-1).mean(1) / self.discount.sum()  # [M] = [C]
        else:
            reward = self._rewards(tensordict)  # [M, E, C, b, H]
            returns = (reward * self.discount).sum(-1).mean((0, 1, 3)) / self.discount.sum()  # [C]
        if torch.is_grad_enabled() and not returns.requires_grad:
            raise ConfigError(
                f"{self.policy.spec.name}: the reward has no gradient in the actions, so nothing can be "
                "propagated back through imagined rollouts",
                "set search.method=ppo",
            )
        values = {"loss_policy": -returns.sum(), "imagined_return": returns.detach()}
        return TensorDict(values, batch_size=[])

    def _act_paired(self, latent: Tensor) -> ImaginedAct:
        def act(observation: Tensor) -> dict[str, Tensor]:
            inputs = self.policy.inputs(observation, latent.unsqueeze(1).expand(-1, observation.shape[1], -1))
            return {"action": self.policy.head(inputs)}

        return act

    def _rewards(self, tensordict: TensorDictBase) -> Tensor:
        # streams are laid out [member, policy, row], since the model gives equal blocks of rows to its members
        copies, tasks, members = self.policy.copies, len(tensordict["observation"]), self._num_members()
        rows = tensordict["observation"].shape[1] // members
        latent = tensordict["belief", "latent"].unsqueeze(1).expand(-1, members * copies * rows, -1)

        def act(observation: Tensor) -> dict[str, Tensor]:
            inputs = self.policy.inputs(observation, latent).view(tasks, members, copies, rows, -1)
            stacked = inputs.permute(2, 0, 1, 3, 4).reshape(copies, tasks * members * rows, -1)
            action = self.policy.head(stacked).view(copies, tasks, members, rows, -1)
            return {"action": action.permute(1, 2, 0, 3, 4).reshape(tasks, members * copies * rows, -1)}

        return self._rollout(tensordict, act, copies).view(tasks, members, copies, rows, self.horizon)

    def _num_members(self) -> int:
        return len(range(*self.members.indices(self.dynamics.decoder.copies)))

    def _rollout(self, tensordict: TensorDictBase, act: ImaginedAct, copies: int) -> Tensor:
        tasks, members = len(tensordict["observation"]), self._num_members()

        def lay_out(value: Tensor) -> Tensor:
            blocks = value.unflatten(1, (members, 1, -1)).expand(-1, -1, copies, -1, -1)
            return blocks.reshape(tasks, -1, value.shape[-1])

        streams = ImaginedStreams(
            self.dynamics,
            tensordict["belief"],
            lay_out(tensordict["observation"]),
            self.horizon + 1,
            lay_out(tensordict["noise"]),
            self.members,
        )
        return streams.rollout(act, self.horizon)["next", "reward"].squeeze(-1)
