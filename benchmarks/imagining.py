"""Imagined rollouts through `ImaginedStreams`, against the same networks called bare in a loop."""

from __future__ import annotations

from functools import partial

import torch
from tensordict import TensorDict
from torch import Tensor

from benchmarks import bare
from benchmarks.measure import Ratio, compare, ratio
from benchmarks.setting import Setting, prepare
from mbrl_lightning.models.imagination import ImaginedStreams
from mbrl_lightning.policies.pathwise import PathwiseLoss
from mbrl_lightning.policies.search import searched

OURS, BARE = "ImaginedStreams", "networks alone"


class Imagination:
    """Start states, beliefs and noise of the sizes that the configuration's policy search uses."""

    def __init__(self, setting: Setting) -> None:
        search, self.algorithm, self.spec = setting.cfg.search, setting.algorithm, setting.family.spec
        self.setting, self.horizon = setting, search.horizon or self.spec.horizon
        self.batch: TensorDict = setting.algorithm.imagined_tasks(
            setting.real, setting.step, search.tasks, search.rollouts
        )
        self.members = len(range(*searched(self.algorithm.cfg).indices(setting.cfg.dynamics.members)))
        self.algorithm.dynamics.requires_grad_(False)

    def bare_step(self, observation: Tensor, action: Tensor, noise: Tensor) -> Tensor:
        """Next observations by the networks alone."""
        belief = self.batch["belief"]
        return bare.next_observation(
            self.algorithm.dynamics,
            observation,
            action,
            noise,
            belief["keys"],
            belief["values"],
            self.members,
        )


class SampledRollout(Imagination):
    """What PPO asks for: sampled actions, no gradient."""

    policies = 1

    def ours(self) -> None:
        """By the library."""
        batch, draw, sample = (
            self.batch,
            self.setting.generator,
            partial(self.algorithm.search.ppo.sample, self.algorithm.policy),
        )
        latent = batch["belief", "latent"][:, None]
        streams = ImaginedStreams(
            self.algorithm.dynamics,
            batch["belief"],
            batch["observation"],
            self.spec.horizon,
            batch["noise"],
            searched(self.algorithm.cfg),
        )
        streams.rollout(lambda o: sample(o, latent.expand(*o.shape[:2], -1), draw), self.horizon)

    @torch.no_grad()
    def bare(self) -> None:
        """By the networks alone; what was seen and done is kept, as any user of the rollout needs it."""
        policy, observation, seen = self.algorithm.policy, self.batch["observation"], []
        latent = self.batch["belief", "latent"][:, None].expand(*observation.shape[:2], -1)
        std = policy.log_std[0, 0].exp()
        for _ in range(self.horizon):
            inputs = torch.cat([policy.norm(self.spec.features(observation)), latent], -1)
            loc = bare.mlp(policy, inputs.flatten(0, 1).unsqueeze(0)).view(*observation.shape[:2], -1)
            action = loc + std * torch.randn(loc.shape, generator=self.setting.generator)
            seen.append((observation, action))
            observation = self.bare_step(observation, action.clamp(-1, 1), self.batch["noise"])
        [torch.stack(column, 2) for column in zip(*seen, strict=True)]


class DifferentiatedRollout(Imagination):
    """What the pathwise search asks for: rollout of all restarts, reward, gradient of the policies."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        search = setting.cfg.search
        self.policies = search.restarts
        self.loss = PathwiseLoss(
            self.algorithm.search.restarts,
            self.algorithm.dynamics,
            self.horizon,
            search.gamma,
            searched(self.algorithm.cfg),
        )

    def ours(self) -> None:
        """By the library."""
        self.algorithm.search.restarts.zero_grad()
        self.loss(self.batch)["loss_policy"].backward()

    def bare(self) -> None:
        """By the networks alone, and the sum of rewards."""
        policy, batch, members = self.algorithm.search.restarts, self.batch, self.members
        policy.zero_grad()
        tasks, copies = len(batch["observation"]), policy.copies

        def lay_out(value: Tensor) -> Tensor:
            return (
                value.unflatten(1, (members, 1, -1)).expand(-1, -1, copies, -1, -1).reshape(tasks, -1, value.shape[-1])
            )

        observation, noise = lay_out(batch["observation"]), lay_out(batch["noise"])
        latent = batch["belief", "latent"].unsqueeze(1).expand(-1, observation.shape[1], -1)
        total: Tensor | float = 0.0
        for _ in range(self.horizon):
            inputs = torch.cat([policy.norm(self.spec.features(observation)), latent], -1)
            stacked = inputs.view(tasks, members, copies, -1, inputs.shape[-1]).permute(2, 0, 1, 3, 4)
            action = bare.mlp(policy, stacked.reshape(copies, -1, inputs.shape[-1]))
            action = action.view(copies, tasks, members, -1, action.shape[-1]).permute(1, 2, 0, 3, 4)
            action = action.reshape(tasks, observation.shape[1], -1)
            following = self.bare_step(observation, action, noise)
            total = total - self.spec.reward(observation, action, following).sum()
            observation = following
        assert isinstance(total, Tensor)
        total.backward()


def run(repeats: int) -> list[Ratio]:
    """Half-cheetah's imagination for PPO and cart-pole's for the pathwise search."""
    ratios = []
    for conf, kind, label in (
        ("half_cheetah", SampledRollout, "for PPO"),
        ("cartpole", DifferentiatedRollout, "and back, for the pathwise search"),
    ):
        work = kind(prepare(conf))
        streams = work.batch["observation"].shape[:2].numel() * work.policies
        case = f"{conf}: {work.horizon} steps {label}, {streams} streams, {work.members} members"
        seconds = compare({OURS: work.ours, BARE: work.bare}, repeats, 1)
        ratios.append(ratio("imagined steps", case, seconds, OURS, BARE, ceiling=1.5))
    return ratios
