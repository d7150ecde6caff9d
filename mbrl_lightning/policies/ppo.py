"""Actor-critic policy search: the clipped surrogate and GAE on inputs [features, z] (GSSM Eq. 11, 16, 20)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torchrl.objectives import LossModule

from mbrl_lightning.config.schema import PolicyConfig, SearchConfig
from mbrl_lightning.networks.step import GradientStep, summed
from mbrl_lightning.policies.heads import Policy, Value
from mbrl_lightning.policies.returns import gae
from mbrl_lightning.policies.trust_region import density


class ClipLoss(LossModule):
    """What TorchRL's `ClipPPOLoss` gives (Schulman et al. 2017, Eq. 7 and 9); a step on 64 rows takes 1 / 1.6 of the time.

    Args:
        policy: its first copy is trained.
        value: V(s, z, t).
        cfg: `clip_epsilon`, and the `entropy` that a nat is worth.
    """

    def __init__(self, policy: Policy, value: Value, cfg: SearchConfig) -> None:
        super().__init__()
        self.policy, self.value = policy, value
        self.entropy, self.clip = cfg.entropy, cfg.clip_epsilon
        self.in_keys = ["inputs", "seen", "time", "action", "action_log_prob", "advantage", "value_target"]
        self.out_keys = ["loss_objective", "loss_critic", "kl", *(["loss_entropy"] if self.entropy > 0 else [])]

    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """Losses of rows `[N]` (see `PPO.rows`): the policy's, half the squared error of the value, the entropy's; and `kl`."""
        outputs = self.policy(tensordict["inputs"])
        change = density(self.policy, outputs, tensordict["action"]) - tensordict["action_log_prob"]
        advantage, ratio = tensordict["advantage"].squeeze(-1), change.exp()
        gain = torch.minimum(ratio * advantage, ratio.clamp(1 - self.clip, 1 + self.clip) * advantage)
        error = self.value(tensordict["seen"], tensordict["time"]) - tensordict["value_target"]
        losses = {"loss_objective": -gain.mean(), "loss_critic": 0.5 * error.square().mean()}
        if self.entropy > 0:
            losses["loss_entropy"] = -self.entropy * entropy(self.policy, outputs).mean()
        return TensorDict(losses | {"kl": -change.detach().mean()}, batch_size=[])


def entropy(policy: Policy, outputs: tuple[Tensor, Tensor]) -> Tensor:
    """Entropy `[...]` in nats of a policy that gave `outputs`, `[..., A]`."""
    if policy.spec.discrete:
        log_prob = torch.log_softmax(outputs[0], -1)
        return -(log_prob.exp() * log_prob).sum(-1)
    return (outputs[1].log() + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)


class PPO(nn.Module):
    """Proximal policy optimisation, in a real or an imagined environment: a value, and updates of the policy it is given.

    Rewards are divided by the running root mean square of the discounted return, so that one learning rate serves
    families whose returns differ by orders of magnitude.
    """

    return_square: Tensor

    def __init__(self, policy: Policy, cfg: SearchConfig, policy_cfg: PolicyConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.value = Value(policy.spec.feature_dim + policy.latent_dim, policy_cfg)
        self.register_buffer("return_square", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def sample(
        self, policy: Policy, observation: Tensor, latent: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """For observations `[..., S]` and latents `[..., Z]`: `action` `[..., A]`, `inputs` `[..., F + Z]`, `action_log_prob`."""
        inputs = policy.inputs(observation, latent)
        outputs = policy(inputs)
        action = policy.choose(outputs[0], policy.noise(tuple(inputs.shape[:-1]), generator).to(inputs.device))
        return {"action": action, "inputs": inputs, "action_log_prob": density(policy, outputs, action)}

    @torch.no_grad()
    def rows(self, policy: Policy, data: TensorDict, latent: Tensor) -> TensorDict:
        """What the loss takes of every step of `data` `[..., T]` (see `update`), `[N]`; the value is given `seen`, the inputs."""
        following, reward = data["next"], data["next", "reward"]
        total = torch.zeros_like(reward[..., 0, :])
        squares = torch.zeros((), dtype=torch.float64, device=reward.device)
        for t in range(reward.shape[-2]):
            total = self.cfg.gamma * total + reward[..., t, :]
            squares += total.double().square().mean() / reward.shape[-2]
            total = total * ~following["done"][..., t, :]
        running = 0.95 * self.return_square + (1 - 0.95) * squares
        self.return_square.copy_(torch.where(self.return_square > 0, running, squares))
        scaled = reward / self.return_square.sqrt().clamp_min(1e-6).to(reward.dtype)
        horizon = policy.spec.horizon
        time, later = (age.unsqueeze(-1) / horizon for age in (data["age"], data["age"][..., -1] + 1))
        seen = policy.inputs(following["observation"][..., -1, :], latent.expand(*data.shape, -1)[..., -1, :])
        value, last = self.value(data["inputs"], time), self.value(seen, later)
        advantage, target = gae(scaled, following["done"], value, last, self.cfg.gamma, self.cfg.lam)
        advantage = (advantage - advantage.mean()) / advantage.std(correction=0).clamp_min(1e-6)
        rows = data.select("inputs", "action", "action_log_prob").set("time", time).reshape(-1)
        rows["seen"] = rows["inputs"]
        rows["advantage"], rows["value_target"] = advantage.reshape(-1, 1), target.reshape(-1, 1)
        return rows

    def update(
        self,
        policy: Policy,
        data: TensorDict,
        latent: Tensor,
        step: GradientStep,
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator,
    ) -> dict[str, float]:
        """`learn` from one rollout.

        The data `[..., T]`, the same on all ranks, are what `sample` gave, `age`, and under `next` `done`, `reward` and
        `observation`; `latent` is broadcastable to `[..., T, Z]`.
        """
        return self.learn(policy, self.rows(policy, data, latent), step, optimizer, generator)

    def learn(
        self,
        policy: Policy,
        rows: TensorDict,
        step: GradientStep,
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator,
        refresh: Callable[[TensorDict], dict[str, Tensor]] = lambda batch: {},
    ) -> dict[str, float]:
        """Epochs of minibatch steps on `rows` `[N]`, or on N trials of them `[N, T]`; stops early beyond `target_kl`.

        `refresh` puts into a minibatch what a belief that is learned too makes of its `inputs` (of policy) and `seen` (of value)
        today, and gives further losses. Returns mean losses and `kl` of the last epoch.
        """
        loss, size = ClipLoss(policy, self.value, self.cfg), max(self.cfg.minibatch // rows[:1].numel(), 1)
        metrics: list[dict[str, Tensor]] = []
        for _ in range(self.cfg.epochs):
            metrics = []
            order = torch.randperm(len(rows), generator=generator).to(rows.device)
            for batch in rows[order].split(size):
                if len(batch) < min(size, len(rows)) // 2:
                    continue  # a small remainder would be a noisy step of full size
                losses = partial(_losses, loss, step.share(batch), refresh)
                metrics.append(step(losses, optimizer, self.cfg.max_grad_norm))
            if self.cfg.target_kl is not None:
                kl = step.mean(torch.stack([found["kl"] for found in metrics]).mean())
                if float(kl) > self.cfg.target_kl:
                    break
        return step.means(metrics)


def _losses(loss: ClipLoss, batch: TensorDict, refresh: Callable[[TensorDict], dict[str, Tensor]]) -> dict[str, Tensor]:
    further = refresh(batch)
    return summed(loss(batch).update(further))
