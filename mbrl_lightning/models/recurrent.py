"""M3PO's meta-model: a bootstrap ensemble of Gaussian heads, each on a recurrent belief of its own (M3PO section 4.1, Eq. 6).

Departures: the likelihood of each output is weighted by its own predicted variance (`variance_weight` = 1; 0 is the paper's).
Nearly deterministic observations drive their variance to its floor, and their gradient then drowns the reward's in the
shared layers, so that the plain likelihood never learns what the hidden task does. And the model of a body with many motors sees
the squares of the actions as well (`squares`): a sum of eight squares, the effort in the ant's reward, is not learned from some
thousand steps otherwise, and a policy that is not shown what effort costs acts at full strength.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from mbrl_lightning.beliefs.history import HistoryInputs, HistoryNet
from mbrl_lightning.config.methods import HistoryConfig
from mbrl_lightning.config.schema import DynamicsConfig
from mbrl_lightning.data.buffer import TaskBuffer
from mbrl_lightning.data.windows import Histories
from mbrl_lightning.envs.spec import EnvSpec
from mbrl_lightning.models.base import Model
from mbrl_lightning.models.measures import share_of_variance
from mbrl_lightning.networks.gaussians import soft_bounds


class HistoryDynamics(Model):
    """p(next observation | history, action) with E heads in one batched product; a switching family's reward is part of it.

    A belief is the window of pairs before the observation, `pairs` `[M, L, X]` and `mask` `[M, L]`; `history.model` false leaves
    the recurrent unit out (M2PO).
    """

    def __init__(self, spec: EnvSpec, cfg: DynamicsConfig, history: HistoryConfig) -> None:
        super().__init__(spec, cfg)
        self.squares, self.inputs = history.squares, HistoryInputs(spec)
        recurrent = history.hidden if history.model else 0
        current = spec.feature_dim + (1 + self.squares) * spec.action_feature_dim
        sizes = self.inputs.pair_dim, current, 2 * spec.target_dim, [cfg.hidden] * cfg.layers
        self.net = HistoryNet(cfg.members, *sizes, recurrent=recurrent)

    @torch.no_grad()
    def see(self, real: TaskBuffer, margin: float, fit: bool) -> None:
        """Set the bounds of imagination to the range of all real transitions, and with `fit` the normalisers too (once)."""
        low, high = real.summary("range", _range, lambda parts: torch.stack(list(parts)).amax(0))
        self.bound(-low, high, margin)
        if fit:
            data = real.transitions()
            self.inputs.fit(data)
            self.target_norm.fit(self.spec.target(data["observation"], data["next", "observation"]))

    def forward(self, inputs: TensorDictBase | Mapping[str, Tensor], action: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance `[E, N, Y]` of the standardised target under each head.

        Args:
            inputs: `pairs` `[N, L, X]`, `mask` `[N, L]`, `current` `[N, F]`; with a first dimension E, rows of each head's own.
            action: `[N, A]`, or `[E, N, A]`.
        """
        extra = self.spec.action_features(action)
        if self.squares:
            extra = torch.cat([extra, 2 * extra.square() - 1], -1)
        out = self.net(inputs, extra)
        loc, log_var = out.chunk(2, -1)
        return loc, soft_bounds(log_var)

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

    @torch.no_grad()
    def held_out_error(self, batch: TensorDictBase) -> Tensor:
        """Mean squared error of each head, `[E]`: a likelihood can fall because of a variance, long after the mean got worse."""
        return self.nll(batch)[1].mean((1, 2))

    def training_step(self, batch: TensorDictBase, batch_idx: int = 0) -> dict[str, Tensor]:
        """Each head's weighted likelihood on its own bootstrap sample, summed over heads: `loss`, and detached `loss_error`.

        The batch is that of `nll`; `weight` `[N, E]` says how often each row is in each head's sample.
        """
        nll, error = self.nll(batch, self.cfg.variance_weight)
        loss = (nll * batch["weight"].T.unsqueeze(-1)).mean((1, 2)).sum()
        return {"loss": loss, "loss_error": error.mean()}

    def targets(self, observation: Tensor, following: Tensor) -> Tensor:
        """Standardised targets `[..., Y]`."""
        return self.target_norm(self.spec.target(observation, following))

    def _asked(self, observation: Tensor, action: Tensor, belief: TensorDictBase) -> tuple[Tensor, Tensor]:
        """`forward` for N queries under each of M windows, `[E, M, N, Y]` each."""
        shape, rows = observation.shape[:2], torch.arange(len(observation), device=observation.device)
        window = belief.select("pairs", "mask")[rows.repeat_interleave(shape[1])]
        current = self.inputs.current(observation.flatten(0, 1))
        loc, log_var = self(window.set("current", current), action.flatten(0, 1))
        return loc.unflatten(1, shape), log_var.unflatten(1, shape)

    @torch.no_grad()
    def imagine(  # type: ignore[override]
        self, observation: Tensor, action: Tensor, belief: TensorDictBase, head: Tensor, noise: Tensor
    ) -> Tensor:
        """Sampled next observations `[M, N, S]`, kept to the range of the data on both sides.

        Each row asks a head, `[M, N]`, and that one alone, and takes standard normal `noise` `[M, N, Y]`. Heads drawn on the
        host are best left there: how many rows each has is looked at.
        """
        order, place = (part.to(self.device) for part in dealt(head.flatten(), self.members))
        seen, window = {"current": self.inputs.current(observation.flatten(0, 1)[order])}, order // head.shape[1]
        if self.net.gru is not None:  # step by step, as it reads
            step = torch.arange(belief["pairs"].shape[1], device=self.device).unsqueeze(1)
            seen["pairs"] = belief["pairs"][window.unsqueeze(1), step].transpose(1, 2)
            seen["mask"] = belief["mask"][window]
        answers = self(seen, action.flatten(0, 1)[order])
        loc, log_var = (part.flatten(0, 1)[place].view_as(noise) for part in answers)
        y = loc + (0.5 * log_var).exp() * noise
        following = self.spec.untarget(observation, self.target_norm.inverse(y))
        return torch.clamp(following, self.low, self.high)

    @torch.no_grad()
    def predictions(self, observation: Tensor, action: Tensor, belief: TensorDictBase) -> Tensor:
        """See `Model.predictions`."""
        loc, _ = self._asked(observation, action, belief)
        return self.spec.untarget(observation.expand(len(loc), *observation.shape), self.target_norm.inverse(loc))


def _range(rows: TensorDictBase) -> Tensor:
    """The lowest observations that came, negated, and the highest, `[2, S]`."""
    following = rows["next", "observation"]
    return torch.stack([(-following).amax(0), following.amax(0)])


def dealt(owner: Tensor, owners: int) -> tuple[Tensor, Tensor]:
    """Rows dealt to their owners `[N]`: each one's, `[E, most]`, filled up with row 0, and where in it a row is, flat `[N]`."""
    held = (owner == torch.arange(owners, device=owner.device).unsqueeze(1)).cumsum(1)
    most = int(held[:, -1].max())
    place = owner * most + held.gather(0, owner.unsqueeze(0))[0] - 1
    order = torch.zeros(owners * most, dtype=torch.long, device=owner.device)
    order[place] = torch.arange(len(owner), device=owner.device)
    return order.view(owners, most), place


@torch.no_grad()
def history_errors(dynamics: HistoryDynamics, episodes: TensorDict, length: int, generator: torch.Generator) -> dict:
    """One-step errors of a model on real episodes `[B, T]`, with their own histories of `length` pairs and with others'.

    Returns:
        Numbers, of at most 4,000 rows: `nmse` and `null_nmse` (see `share_of_variance`), `wrong_nmse` with another row's
        history, `reward_nmse` (the last output, the reward where it is learned), `nll` (of standardised targets, in nats: a
        density, so it depends on units and may be below 0) and, for a hidden direction, `slope` (see `reward_slope`).
    """
    spec, device = dynamics.spec, dynamics.device
    real = TaskBuffer(1, episodes.numel())
    real.extend(episodes, torch.zeros(len(episodes), dtype=torch.long), exploratory=False)
    histories = Histories(real, dynamics.inputs, length, device)
    rows = torch.randperm(len(histories), generator=generator)[:4000].to(device)
    batch = histories.before(rows).set("action", histories.action[rows])
    observation, following = histories.observation[rows], histories.next_observation[rows]
    change = spec.change(observation, following)
    variance = change.var(0, correction=0)

    def error(inputs: TensorDict) -> Tensor:
        predicted = dynamics.predict(observation.unsqueeze(1), batch["action"].unsqueeze(1), inputs).squeeze(1)
        return (spec.change(observation, predicted) - change).square()

    right, wrong = batch["inputs"], batch["inputs"].clone(False)
    for name in ("pairs", "mask"):
        wrong[name] = right[name].roll(len(rows) // 2, 0)
    errors = error(right)
    nll, _ = dynamics.nll(batch.set("target", dynamics.targets(observation, following)))
    log_prob = -(nll + 0.5 * math.log(2 * math.pi)).sum(-1)
    of = {"nmse": errors, "wrong_nmse": error(wrong), "null_nmse": change.square()}
    out = {name: float(share_of_variance(squared, variance).mean()) for name, squared in of.items()}
    out["reward_nmse"] = float(share_of_variance(errors[:, -1:], variance[-1:]).mean())
    out["nll"] = -float(log_prob.double().mean())
    if "hidden" in episodes.keys():  # noqa: SIM118 - a TensorDict has no `in`
        hidden = episodes["hidden"][..., 0][episodes["valid"]].to(device)[rows]
        if set(hidden.unique().tolist()) == {-1.0, 1.0}:
            out["slope"] = float(reward_slope(dynamics, batch, hidden).min())
    return out


@torch.no_grad()
def reward_slope(dynamics: HistoryDynamics, batch: TensorDict, direction: Tensor) -> Tensor:
    """Correlation of what each head expects to gain by acting forwards with the hidden direction `[N]`: `[E]`.

    The gain is the reward predicted for +1 in the first action entry less that for -1, in a `batch` `[N]` of `inputs`,
    `observation` and `action`. A model may predict well by persistence and still have no slope, and imagination then teaches
    no direction.
    """
    observation, action, rewards = batch["observation"], batch["action"].clone(), []
    for sign in (1.0, -1.0):
        action[:, 0] = sign
        following = dynamics.predictions(observation.unsqueeze(1), action.unsqueeze(1), batch["inputs"]).squeeze(2)
        rewards.append(dynamics.spec.reward(observation, action, following))
    slope = rewards[0] - rewards[1]
    both = torch.cat([direction.to(slope).unsqueeze(0), slope])
    return torch.corrcoef(both)[0, 1:]
