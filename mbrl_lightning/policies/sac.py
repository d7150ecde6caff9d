"""Soft actor-critic on histories (Haarnoja et al. 2018; with a window before each observation, M3PO section 4.2).

`SAC` is a `LossModule` with the losses of TorchRL's `SACLoss` and another way to them: all networks read h and h' in one pass,
the Q networks once for the action taken and the action proposed, both Q networks are one product, and no vmap, functional
parameters or TensorDicts are on the way. `docs/benchmarks.md` says what each of these costs.
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
from mbrl_lightning.networks import read_windows
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
        told, of_q, of_policy, after = self._read(tensordict, 2)
        loss_qvalue = self._qvalue_loss(tensordict, of_q, after, told)
        action, log_prob = self._propose(of_policy, tensordict["noise"][:, 0])
        worth = torch.minimum(*self.q.decide(of_q.detach(), action, frozen=True))
        entropy = -log_prob.detach().mean()
        loss_actor = (told["alpha"] * log_prob).mean() - worth.mean()
        loss_alpha = self.log_alpha * (entropy - self.target_entropy)
        losses = {"loss_actor": loss_actor, "loss_qvalue": loss_qvalue, "loss_alpha": loss_alpha}
        return TensorDict(losses | {"entropy": entropy} | told, batch_size=[])

    def qvalue_loss(self, tensordict: TensorDictBase) -> TensorDict:
        """`loss_qvalue` alone, with `alpha` and `q`; arguments as for `forward`."""
        told, of_q, _, after = self._read(tensordict, 1)
        loss_qvalue = self._qvalue_loss(tensordict, of_q, after, told)
        return TensorDict({"loss_qvalue": loss_qvalue} | told, batch_size=[])

    def losses(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """What `forward` gives, and their sum `loss`."""
        return summed(self(batch))

    def qvalue_losses(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """What `qvalue_loss` gives, and its `loss`."""
        return summed(self.qvalue_loss(batch))

    def _read(self, batch: TensorDictBase, learned: int) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor]:
        """`alpha`, what Q networks and policy see before the action `[2, N, .]`, `[1, N, .]`, and targets and policy after it."""
        before, after = batch["inputs"], batch["next", "inputs"]
        of_q, told = before["current"].expand(2, -1, -1), {"alpha": self.log_alpha.detach().exp()}
        seen = [of_q, of_q[:1].detach(), after["current"].expand(3, -1, -1)]
        units = [net.gru for net in (self.q, self.policy, self.target, self.policy) if net.gru is not None]
        if units:  # windows are laid out step by step, as they are read
            pairs = torch.stack([part["pairs"].transpose(0, 1) for part in (before, after)]).transpose(1, 2)
            states = read_windows(pairs, torch.stack([before["mask"], after["mask"]]), units, learned)
            seen = [torch.cat(parts, -1) for parts in zip(states.split([2, 1, 3]), seen, strict=True)]
        return told, *seen

    def _propose(self, seen: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        return squashed_sample(*self.policy.moments(seen), noise)

    def _qvalue_loss(self, batch: TensorDictBase, of_q: Tensor, after: Tensor, told: dict[str, Tensor]) -> Tensor:
        """The loss for what `_read` gave; `told` is told the mean value."""
        with torch.no_grad():
            action, log_prob = self._propose(after[2:], batch["noise"][:, 1])
            future = torch.minimum(*self.target.decide(after[:2], action))
            future = future - told["alpha"] * log_prob.unsqueeze(-1)
            kept = self.cfg.gamma * (1 - batch["next", "terminated"].to(future.dtype))
            goal = self.cfg.reward_scale * batch["next", "reward"] + kept * future
        value = self.q.decide(of_q, batch["action"])
        told["q"] = value.detach().mean()
        return F.mse_loss(value, goal.expand_as(value)) * len(value)  # a mean over rows, a sum over both

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
        metrics = step.on(self.qvalue_losses if step.count % self.cfg.policy_delay else self.losses, batch, optimizer)
        self.follow()
        return metrics
