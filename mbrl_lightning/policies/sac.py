"""Soft actor-critic on histories (Haarnoja et al. 2018; with a window before each observation, M3PO section 4.2).

`SAC` is a `LossModule` with the losses of TorchRL's `SACLoss` and another way to them: policy on h and h' in one pass, recurrent
state of the Q networks read once for the action taken and the action proposed, both Q networks in one product, and no vmap,
functional parameters or TensorDicts on the way. `docs/benchmarks.md` says what each of these costs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torchrl.objectives import LossModule

from mbrl_lightning.beliefs.history import HistoryNet
from mbrl_lightning.config.methods import SACConfig
from mbrl_lightning.config.schema import PolicyConfig
from mbrl_lightning.networks.gaussians import squashed_sample
from mbrl_lightning.networks.step import GradientStep, summed

LOG_SCALE = (-5.0, 2.0)


class HistoryPolicy(HistoryNet):
    """Mean and deviation of a tanh-Gaussian policy pi(a | h), before the tanh."""

    def moments(self, seen: Tensor, own: Mapping[str, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Mean and log deviation `[N, A]` for what `read` gave, `[1, N, H + F]`; with parameters of each row's `own`, `[N, ...]`.

        The log deviation bends towards its bounds in place of being cut, so that a policy at a bound can come back.
        """
        out = self.decide(seen).squeeze(0) if own is None else self.net.evaluate(seen.transpose(0, 1), own).squeeze(1)
        loc, raw = out.chunk(2, -1)
        low, high = LOG_SCALE
        middle, half = (low + high) / 2, (high - low) / 2
        return loc, middle + half * torch.tanh((raw - middle) / half)

    def forward(self, inputs: TensorDictBase) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Mean and deviation `[N, A]` for histories, batch `[N]`."""
        loc, log_scale = self.moments(self.read(inputs))
        return loc, log_scale.exp()


class SAC(LossModule):
    """Policy, two Q functions with their slowly following targets, and temperature.

    Args:
        policy_cfg: widths and activation of all networks.
        cfg: discount, rates, temperature.
        pair_dim: width X of a remembered pair.
        current_dim: width F of the current observation, with a latent where there is one.
        action_dim: A; actions span [-1, 1].
        recurrent: width of each network's recurrent unit; 0 for policies that see the current observation alone.
    """

    log_alpha: Tensor

    def __init__(
        self,
        policy_cfg: PolicyConfig,
        cfg: SACConfig,
        pair_dim: int,
        current_dim: int,
        action_dim: int,
        recurrent: int = 5,
    ) -> None:
        super().__init__()
        self.in_keys = ["inputs", "action", "noise", ("next", "inputs"), ("next", "reward"), ("next", "terminated")]
        self.out_keys = ["loss_actor", "loss_qvalue", "loss_alpha", "entropy", "alpha", "q"]
        self.cfg, self.action_dim = cfg, action_dim
        self.target_entropy = float(-action_dim if cfg.target_entropy is None else cfg.target_entropy)
        shape: dict[str, Any] = {
            "activation": policy_cfg.activation,
            "recurrent": recurrent,
            "layer_norm": cfg.layer_norm,
        }
        self.policy = HistoryPolicy(1, pair_dim, current_dim, 2 * action_dim, policy_cfg.hidden, **shape)
        self.q, self.target = (
            HistoryNet(2, pair_dim, current_dim + action_dim, 1, policy_cfg.hidden, **shape) for _ in range(2)
        )
        self.target.requires_grad_(False).load_state_dict(self.q.state_dict())
        log_alpha = torch.tensor(math.log(cfg.alpha or cfg.initial_alpha))
        if cfg.alpha is None:
            self.log_alpha = nn.Parameter(log_alpha)
        else:
            self.register_buffer("log_alpha", log_alpha)

    def trained_parameters(self) -> list[nn.Parameter]:
        """Parameters of policy, Q functions and temperature, for one optimizer."""
        return [p for p in self.parameters() if p.requires_grad]

    def noise(self, rows: int, generator: torch.Generator | None = None) -> Tensor:
        """Standard normal noise `[rows, 2, A]`: for the actions proposed before and after each transition."""
        device = self.log_alpha.device if generator is None else generator.device
        drawn = torch.randn(rows, 2, self.action_dim, generator=generator, device=device, dtype=self.log_alpha.dtype)
        return drawn.to(self.log_alpha.device)

    @torch.no_grad()
    def act(
        self, inputs: TensorDictBase, noise: Tensor | None = None, own: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Actions `[N, A]` in [-1, 1] for histories, batch `[N]`.

        Args:
            inputs: `pairs`, `mask`, `current`, see `HistoryNet.read`.
            noise: standard normal `[N, A]`; None gives the tanh of the mean.
            own: parameters of a network for each row, see `HistoryPolicy.moments`.
        """
        loc, log_scale = self.policy.moments(self.policy.read(inputs), own)
        return torch.tanh(loc if noise is None else torch.addcmul(loc, log_scale.exp(), noise))

    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """Losses of all three parts.

        Policy and targets take the inputs as constants; a latent in `current` gets its gradient from the Q loss alone
        (PEARL). The policy's loss takes the Q networks as constants.

        Args:
            tensordict: batch `[N]` with `inputs` (`pairs` `[N, L, X]`, `mask` `[N, L]`, `current` `[N, F]`), `action`
                `[N, A]`, `noise` (see `noise`), and under `next` again `inputs`, `reward` `[N, 1]`, `terminated` `[N, 1]`
                (0 or 1).

        Returns:
            `loss_actor`, `loss_qvalue`, `loss_alpha`, and detached `alpha`, `entropy` and `q` (mean).
        """
        (inputs, following), rows = self._histories(tensordict), len(tensordict)
        action, log_prob = self._propose(_joined(inputs, following), tensordict["noise"].transpose(0, 1).flatten(0, 1))
        loss_qvalue, seen, told = self._qvalue_loss(tensordict, inputs, following, action[rows:], log_prob[rows:])

        log_prob, alpha = log_prob[:rows], told["alpha"]
        worth = torch.minimum(*self.q.decide(seen.detach(), action[:rows].unsqueeze(0), frozen=True))
        entropy = -log_prob.detach().mean()
        loss_actor = (alpha * log_prob).mean() - worth.mean()
        loss_alpha = self.log_alpha * (entropy - self.target_entropy)
        losses = {"loss_actor": loss_actor, "loss_qvalue": loss_qvalue, "loss_alpha": loss_alpha}
        return TensorDict(losses | {"entropy": entropy} | told, batch_size=[])

    def qvalue_loss(self, tensordict: TensorDictBase) -> TensorDict:
        """`loss_qvalue` alone, with `alpha` and `q`; arguments as for `forward`."""
        inputs, following = self._histories(tensordict)
        with torch.no_grad():
            proposed = self._propose(following, tensordict["noise"][:, 1])
        loss_qvalue, _, told = self._qvalue_loss(tensordict, inputs, following, *proposed)
        return TensorDict({"loss_qvalue": loss_qvalue} | told, batch_size=[])

    def _histories(self, batch: TensorDictBase) -> list[dict[str, Tensor]]:
        return [_laid_out(part, self.policy.gru is not None) for part in (batch["inputs"], batch["next", "inputs"])]

    def _propose(self, inputs: dict[str, Tensor], noise: Tensor) -> tuple[Tensor, Tensor]:
        loc, log_scale = self.policy.moments(self.policy.read(inputs))
        return squashed_sample(loc, log_scale, noise)

    def _qvalue_loss(
        self,
        batch: TensorDictBase,
        inputs: dict[str, Tensor],
        following: dict[str, Tensor],
        proposed: Tensor,
        log_prob: Tensor,
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The loss, what the Q networks read, and what is logged."""
        alpha = self.log_alpha.detach().exp()
        with torch.no_grad():
            future = torch.minimum(*self.target.decide(self.target.read(following), proposed.unsqueeze(0)))
            future = future - alpha * log_prob.unsqueeze(-1)
            kept = self.cfg.gamma * (1 - batch["next", "terminated"].to(future.dtype))
            goal = self.cfg.reward_scale * batch["next", "reward"] + kept * future
        seen = self.q.read(inputs)
        value = self.q.decide(seen, batch["action"].unsqueeze(0))
        loss = F.mse_loss(value, goal.expand_as(value)) * len(value)  # a mean over rows, a sum over both
        return loss, seen, {"alpha": alpha, "q": value.detach().mean()}

    @torch.no_grad()
    def follow(self) -> None:
        """Let the target networks go the share tau of their way to the Q networks."""
        torch._foreach_lerp_(list(self.target.parameters()), list(self.q.parameters()), self.cfg.tau)

    def update(self, batch: TensorDictBase, step: GradientStep, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """One step on all three losses, or on the Q networks' alone between those of the policy; then the targets follow.

        Args:
            batch: see `forward`; this rank's share.
            step: takes the gradient step.
            optimizer: over `trained_parameters()`, and whatever else `batch` has gradients for.

        Returns:
            The losses.

        Raises:
            DivergedError: see `GradientStep.check`.
        """
        loss = self.qvalue_loss if step.count % self.cfg.policy_delay else self
        metrics = step(lambda: summed(loss(batch)), optimizer)
        self.follow()
        return metrics


def _laid_out(inputs: TensorDictBase, recurrent: bool) -> dict[str, Tensor]:
    """Histories as plain tensors; windows step by step, as every recurrent unit would otherwise copy them for itself."""
    out = {"current": inputs["current"]}
    if recurrent:
        out["pairs"] = inputs["pairs"].transpose(0, 1).contiguous().transpose(0, 1)
        out["mask"] = inputs["mask"]
    return out


def _joined(inputs: dict[str, Tensor], following: dict[str, Tensor]) -> dict[str, Tensor]:
    """Histories of `[N]` and `[N]` as one batch `[2 N]`, without their gradients."""
    both = {name: torch.cat([inputs[name], following[name]]) for name in inputs if name != "pairs"}
    if "pairs" in inputs:
        steps = [part["pairs"].transpose(0, 1) for part in (inputs, following)]
        both["pairs"] = torch.cat(steps, 1).transpose(0, 1)
    return {name: value.detach() for name, value in both.items()}
