"""Policy search by PPO in imagined tasks (GSSM Eq. 11, 16)."""

from __future__ import annotations

import copy

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from mbrl_lightning.config.schema import Config
from mbrl_lightning.data.buffer import TaskBuffer
from mbrl_lightning.data.seeds import of_rank
from mbrl_lightning.data.world import RealWorld
from mbrl_lightning.envs.spec import EnvSpec
from mbrl_lightning.models.imagination import ImaginedStreams, mean_return
from mbrl_lightning.networks.step import GradientStep
from mbrl_lightning.policies.heads import Policy
from mbrl_lightning.policies.ppo import PPO
from mbrl_lightning.policies.search import Learner, prepare, searched, starts


class PPOSearch(nn.Module):
    """One policy, improved on streams of imagined episodes.

    Args:
        spec: features and actions.
        cfg: `policy`, `search`.
        latent_dim: width of what the policy is told of the task.
    """

    def __init__(self, spec: EnvSpec, cfg: Config, latent_dim: int) -> None:
        super().__init__()
        self.policy = Policy(spec, cfg.policy, latent_dim)
        self.ppo = PPO(self.policy, cfg.search, cfg.policy)
        self.optimizer = torch.optim.Adam(self.parameters(), lr=cfg.search.lr, fused=True)

    def collectors(self, belief: TensorDict) -> TensorDict:
        """What is deployed collects."""
        return belief

    def improve(self, learner: Learner, world: RealWorld, step: GradientStep) -> dict[str, float]:
        """`search.updates` updates, each on `search.horizon` further steps of the streams."""
        prepare(learner, self.policy, self.optimizer, world)
        search = learner.cfg.search
        metrics: dict[str, float] = {}
        returns: list[Tensor] = []
        own = of_rank(learner.generator, step.fabric)
        for first in range(0, search.updates, search.segments):
            batch = learner.imagined_tasks(world.real, step, search.tasks, search.rollouts)
            streams = self._streams(learner, batch, world.real, own)
            latent = batch["belief", "latent"][:, None]
            for _ in range(min(search.segments, search.updates - first)):
                data = self._imagine(learner, streams, latent, own)
                returns.append(mean_return(data, learner.spec))
                whole, told = step.gather(data), step.gather(latent).unsqueeze(1)
                metrics = self.ppo.update(self.policy, whole, told, step, self.optimizer, learner.generator)
        out = {f"train/{name}": value for name, value in metrics.items()}
        if returns:
            out["imagined/return"] = float(step.mean(torch.stack(returns[-search.segments :]).mean()))
        return out

    def tune(
        self, learner: Learner, belief: TensorDict, real: TaskBuffer, step: GradientStep, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Parameters `[M, ...]` of the policy after updates in each task's own imagined world, one task after another."""
        search, evaluation, stacks = learner.cfg.search, learner.cfg.evaluation, list[dict[str, Tensor]]()
        before = copy.deepcopy(self.state_dict())
        try:
            for task in range(len(belief)):
                one = starts(learner, belief[task : task + 1], real, search.rollouts, search.initial_starts, generator)
                streams = self._streams(learner, one, real, generator)
                optimizer = torch.optim.Adam(self.parameters(), lr=evaluation.fine_tune_lr, fused=True)
                latent = one["belief", "latent"][:, None]
                for _ in range(evaluation.fine_tune_updates):
                    data = self._imagine(learner, streams, latent, generator)
                    self.ppo.update(self.policy, data, latent.unsqueeze(1), step, optimizer, generator)
                stacks.append({name: value.detach()[0].clone() for name, value in self.policy.net.named_parameters()})
                self.load_state_dict(before)
        finally:
            self.load_state_dict(before)
        return {name: torch.stack([own[name] for own in stacks]) for name in stacks[0]}

    def _imagine(
        self, learner: Learner, streams: ImaginedStreams, latent: Tensor, generator: torch.Generator
    ) -> TensorDict:
        """`search.horizon` further steps with latents `[M, 1, Z]`."""

        def act(observation: Tensor) -> dict[str, Tensor]:
            return self.ppo.sample(self.policy, observation, latent.expand(*observation.shape[:2], -1), generator)

        return streams.rollout(act, learner.cfg.search.horizon or learner.spec.horizon)

    @staticmethod
    def _streams(learner: Learner, batch: TensorDict, real: TaskBuffer, generator: torch.Generator) -> ImaginedStreams:
        search = learner.cfg.search

        def restart(count: int) -> Tensor:
            fresh = real.start_states(count, generator, search.initial_starts)
            return fresh[torch.randperm(count, generator=generator)]

        return ImaginedStreams(
            learner.dynamics,
            batch["belief"],
            batch["observation"],
            learner.spec.horizon,
            batch["noise"],
            searched(learner.cfg),
            restart,
            search.noise,
            generator,
        )
