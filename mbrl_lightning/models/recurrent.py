"""M3PO's meta-model: a bootstrap ensemble of Gaussian heads, each on a recurrent belief of its own (M3PO section 4.1, Eq. 6).

Departures: the likelihood of each output is weighted by its own predicted variance (`variance_weight` = 1; 0 is the paper's).
Nearly deterministic observations drive their variance to its floor, and their gradient then drowns the reward's in the
shared layers, so that the plain likelihood never learns what the hidden task does. And the model of a body with many motors sees
the squares of the actions as well (`squares`): a sum of eight squares, the effort in the ant's reward, is not learned from some
thousand steps otherwise, and a policy that is not shown what effort costs acts at full strength.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from mbrl_lightning.beliefs.history import HistoryInputs, HistoryNet
from mbrl_lightning.config.methods import HistoryConfig
from mbrl_lightning.config.schema import DynamicsConfig
from mbrl_lightning.envs.spec import EnvSpec
from mbrl_lightning.models.base import PlacedModule
from mbrl_lightning.networks import Normalizer

LOG_VAR = (-9.0, 1.0)


class HistoryDynamics(PlacedModule):
    """p(next observation | history, action) with E heads in one batched product; a switching family's reward is part of it.

    Args:
        spec: features and targets.
        cfg: sizes and optimiser.
        history: width of the recurrent unit; `model` false leaves it out (M2PO).
    """

    low: Tensor
    high: Tensor

    def __init__(self, spec: EnvSpec, cfg: DynamicsConfig, history: HistoryConfig) -> None:
        super().__init__()
        self.spec, self.cfg, self.members, self.squares = spec, cfg, cfg.members, history.squares
        self.inputs = HistoryInputs(spec)
        self.target_norm = Normalizer(spec.target_dim)
        sizes = [cfg.hidden] * cfg.layers
        recurrent = history.hidden if history.model else 0
        current = spec.feature_dim + (1 + self.squares) * spec.action_feature_dim
        self.net = HistoryNet(
            cfg.members, self.inputs.pair_dim, current, 2 * spec.target_dim, sizes, recurrent=recurrent
        )
        self.register_buffer("low", torch.full((spec.observation_dim,), -torch.inf))
        self.register_buffer("high", torch.full((spec.observation_dim,), torch.inf))

    @torch.no_grad()
    def observe(self, transitions: TensorDictBase, margin: float, fit: bool) -> None:
        """Set the bounds of imagination to the range of real transitions `[N]`, and with `fit` the normalisers too.

        Args:
            transitions: `observation`, `action`, `("next", "observation")`.
            margin: share of the seen range added on both sides.
            fit: once, when the warm-up is over.
        """
        following = transitions["next", "observation"]
        low, high = following.amin(0), following.amax(0)
        self.low.copy_(low - margin * (high - low))
        self.high.copy_(high + margin * (high - low))
        if fit:
            self.inputs.fit(transitions)
            self.target_norm.fit(self.spec.target(transitions["observation"], following))

    def forward(self, inputs: TensorDictBase, action: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the standardised target under each head.

        Args:
            inputs: batch `[N]`: `pairs` `[N, L, X]`, `mask` `[N, L]`, `current` `[N, F]`.
            action: `[N, A]`.

        Returns:
            `[E, N, Y]` each.
        """
        extra = self.spec.action_features(action)
        if self.squares:
            extra = torch.cat([extra, 2 * extra.square() - 1], -1)
        out = self.net(inputs, extra.unsqueeze(0))
        loc, log_var = out.chunk(2, -1)
        low, high = LOG_VAR
        log_var = high - F.softplus(high - log_var)
        return loc, low + F.softplus(log_var - low)

    def nll(self, batch: TensorDictBase, weight: float = 0.0) -> tuple[Tensor, Tensor]:
        """Negative log-likelihood (without its constant) and squared error of each head, `[E, N, Y]`.

        Args:
            batch: batch `[N]` with `inputs`, `action`, `target` `[N, Y]`.
            weight: power of the predicted variance by which each output's likelihood is multiplied.
        """
        loc, log_var = self(batch["inputs"], batch["action"])
        error = (loc - batch["target"]).square()
        nll = 0.5 * (error * (-log_var).exp() + log_var)
        return (nll * (weight * log_var.detach()).exp() if weight else nll), error.detach()

    def training_step(self, batch: TensorDictBase, batch_idx: int = 0) -> dict[str, Tensor]:
        """Loss on one batch: each head's weighted likelihood on its own bootstrap sample, summed over heads.

        Args:
            batch: see `nll`; `weight` `[N, E]` says how often each row is in each head's sample.
            batch_idx: unused; Lightning passes it.

        Returns:
            `loss`, and detached `loss_error` (mean squared error, standardised).
        """
        nll, error = self.nll(batch, self.cfg.variance_weight)
        weight = batch["weight"].T.unsqueeze(-1)
        loss = (nll * weight).mean((1, 2)).sum()
        return {"loss": loss, "loss_error": error.mean()}

    def targets(self, observation: Tensor, following: Tensor) -> Tensor:
        """Standardised targets `[..., Y]`."""
        return self.target_norm(self.spec.target(observation, following))

    @torch.no_grad()
    def imagine(
        self, observation: Tensor, inputs: TensorDictBase, action: Tensor, head: Tensor, noise: Tensor
    ) -> Tensor:
        """Sampled next observations, kept to the range of the data on both sides.

        Args:
            observation: `[N, S]`.
            inputs: histories, batch `[N]`.
            action: `[N, A]`.
            head: which head each row asks `[N]`.
            noise: standard normal `[N, Y]`.

        Returns:
            `[N, S]`.
        """
        loc, log_var = self(inputs, action)
        rows = torch.arange(len(head), device=loc.device)
        y = loc[head, rows] + (0.5 * log_var[head, rows]).exp() * noise
        following = self.spec.untarget(observation, self.target_norm.inverse(y))
        return torch.clamp(following, self.low, self.high)

    @torch.no_grad()
    def predict(self, observation: Tensor, inputs: TensorDictBase, action: Tensor) -> Tensor:
        """Mean next observation of each head, without bounds: `[E, N, S]`."""
        loc, _ = self(inputs, action)
        return self.spec.untarget(observation.expand(len(loc), -1, -1), self.target_norm.inverse(loc))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam over all heads."""
        return torch.optim.Adam(self.parameters(), lr=self.cfg.lr, weight_decay=self.cfg.weight_decay, fused=True)


class EarlyStopping:
    """Keeps, head by head, the parameters that did best on held-out rows, and says when none has improved for a while.

    Args:
        dynamics: the ensemble; the first dimension of its parameters counts heads.
        patience: checks without improvement after which a head is done.
    """

    def __init__(self, dynamics: HistoryDynamics, patience: int) -> None:
        self.dynamics, self.patience = dynamics, patience
        self.best = torch.full((dynamics.members,), torch.inf)
        self.waited = torch.zeros(dynamics.members, dtype=torch.long)
        self.kept = [p.detach().clone() for p in dynamics.parameters()]

    @torch.no_grad()
    def check(self, held_out: TensorDict) -> bool:
        """Score the heads on `held_out` (see `HistoryDynamics.nll`); true when all of them are done.

        The score is the mean squared error: a likelihood can fall because of a variance, long after the mean got worse.
        """
        _, error = self.dynamics.nll(held_out)
        score = error.mean((1, 2)).cpu()
        better = score < self.best * (1 - 1e-2)
        for kept, now in zip(self.kept, self.dynamics.parameters(), strict=True):
            kept[better] = now[better]
        self.best = torch.where(better, score, self.best)
        self.waited = torch.where(better, 0, self.waited + 1)
        return bool((self.waited >= self.patience).all())

    @torch.no_grad()
    def restore(self) -> None:
        """Give every head its best parameters back."""
        for kept, now in zip(self.kept, self.dynamics.parameters(), strict=True):
            now.copy_(kept)
