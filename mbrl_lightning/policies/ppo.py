"""Actor-critic policy search: TorchRL's ClipPPOLoss and GAE on inputs [features, z] (GSSM Eq. 11, 16, 20)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from tensordict import TensorDict
from tensordict.nn import ProbabilisticTensorDictModule, ProbabilisticTensorDictSequential, TensorDictModule
from torch import Tensor, nn
from torchrl.modules import IndependentNormal, OneHotCategorical
from torchrl.objectives import ClipPPOLoss

from mbrl_lightning.config.schema import PolicyConfig, SearchConfig
from mbrl_lightning.networks.step import GradientStep, summed
from mbrl_lightning.policies.heads import Policy, Value
from mbrl_lightning.policies.returns import gae
from mbrl_lightning.policies.trust_region import density


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

    def loss(self, policy: Policy) -> ClipPPOLoss:
        """TorchRL's loss of `policy` (its first copy) and the value; not functional: one set of parameters, the cheapest call."""
        discrete, cfg = policy.spec.discrete, self.cfg
        actor = ProbabilisticTensorDictSequential(
            TensorDictModule(policy, in_keys=["inputs"], out_keys=["loc", "scale"]),
            ProbabilisticTensorDictModule(
                in_keys={"logits": "loc"} if discrete else ["loc", "scale"],
                out_keys=["action"],
                return_log_prob=True,
                distribution_class=OneHotCategorical if discrete else IndependentNormal,
            ),
        )
        return ClipPPOLoss(
            actor,
            TensorDictModule(self.value, in_keys=["seen", "time"], out_keys=["state_value"]),
            clip_epsilon=cfg.clip_epsilon,
            entropy_bonus=cfg.entropy > 0,
            entropy_coeff=cfg.entropy or None,
            critic_coeff=0.5,
            loss_critic_type="l2",
            normalize_advantage=False,
            log_explained_variance=False,
            functional=False,
            device=self.return_square.device,
        )

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
        loss, size = self.loss(policy), max(self.cfg.minibatch // rows[:1].numel(), 1)
        metrics: list[dict[str, Tensor]] = []
        for _ in range(self.cfg.epochs):
            metrics = []
            for index in torch.randperm(len(rows), generator=generator).split(size):
                if len(index) < min(size, len(rows)) // 2:
                    continue  # a small remainder would be a noisy step of full size
                batch = step.share(rows[index.to(rows.device)])
                metrics.append(step(partial(_losses, loss, batch, refresh), optimizer, self.cfg.max_grad_norm))
            if self.cfg.target_kl is not None:
                kl = step.mean(torch.stack([found["kl"] for found in metrics]).mean())
                if float(kl) > self.cfg.target_kl:
                    break
        return step.means(metrics)


def _losses(
    loss: ClipPPOLoss, batch: TensorDict, refresh: Callable[[TensorDict], dict[str, Tensor]]
) -> dict[str, Tensor]:
    further = refresh(batch)
    out = loss(batch)
    names = [name for name in loss.out_keys if name.startswith("loss_")]
    return {**summed(out.select(*names).update(further)), "kl": out["kl_approx"]}
