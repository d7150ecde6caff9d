"""Policy search by back-propagation through imagined rollouts (GSSM Eq. 10; deep PILCO, Gal et al. 2016)."""

from __future__ import annotations

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.objectives import LossModule

from mbrl_lightning.errors import ConfigError
from mbrl_lightning.models.base import Dynamics
from mbrl_lightning.models.imagination import ImaginedStreams
from mbrl_lightning.policies.heads import Policy


class PathwiseLoss(LossModule):
    """Minus the imagined return of C policies at once, differentiated along the path.

    TorchRL has no loss of this kind (its `ImaginedEnv` carries Gaussian moments for PILCO).

    The caller has frozen the model; `members` of it share out the streams of each policy, H = `horizon` steps long. If `paired`,
    policy m acts in task m alone (fine-tuning), instead of every policy in every task.
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
        """Loss of GSSM Eq. 10.

        The batch `[M]` has start states `observation` `[M, B, S]`, `belief` (with `latent` `[M, Z]`) and the code's `noise`
        `[M, B, Z]`. Every policy sees the same starts and noise, so that they compare.

        Returns:
            `loss_policy`, summed over the C policies (their parameters are apart, so each gets its own gradient), and
            `imagined_return` `[C]`, discounted mean over the H steps; those after the end of an episode count as 0.
        """
        over = (1, 2, 3) if self.paired else (0, 1, 3)
        returns = (self._rewards(tensordict) * self.discount).sum(-1).mean(over) / self.discount.sum()
        if torch.is_grad_enabled() and not returns.requires_grad:
            raise ConfigError(
                f"{self.policy.spec.name}: the reward has no gradient in the actions, so nothing can be "
                "propagated back through imagined rollouts",
                "set search.method=ppo",
            )
        values = {"loss_policy": -returns.sum(), "imagined_return": returns.detach()}
        return TensorDict(values, batch_size=[])

    def _rewards(self, tensordict: TensorDictBase) -> Tensor:
        """Of all imagined steps, `[M, E, C, b, H]`, with C = 1 where policies are paired with tasks."""
        # streams are laid out [member, policy, row], since the model gives equal blocks of rows to its members
        copies, tasks = 1 if self.paired else self.policy.copies, len(tensordict["observation"])
        members = len(range(*self.members.indices(self.dynamics.members)))
        rows = tensordict["observation"].shape[1] // members
        latent = tensordict["belief", "latent"].unsqueeze(1).expand(-1, members * copies * rows, -1)

        def lay_out(value: Tensor) -> Tensor:
            return value.unflatten(1, (members, 1, rows)).expand(-1, -1, copies, -1, -1).flatten(1, 3)

        def act(observation: Tensor) -> dict[str, Tensor]:
            inputs = self.policy.inputs(observation, latent)
            if self.paired:
                return {"action": self.policy.head(inputs)}
            stacked = inputs.view(tasks, members, copies, rows, -1).permute(2, 0, 1, 3, 4)
            action = self.policy.head(stacked.reshape(copies, tasks * members * rows, -1))
            action = action.view(copies, tasks, members, rows, -1).permute(1, 2, 0, 3, 4)
            return {"action": action.reshape(tasks, members * copies * rows, -1)}

        start, noise = lay_out(tensordict["observation"]), lay_out(tensordict["noise"])
        streams = ImaginedStreams(self.dynamics, tensordict["belief"], start, self.horizon + 1, noise, self.members)
        return streams.rollout(act, self.horizon)["next", "reward"].view(tasks, members, copies, rows, self.horizon)
