"""Policy search by back-propagation through imagined rollouts (GSSM Eq. 10; deep PILCO, Gal et al. 2016)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torchrl.objectives import LossModule

from mbrl_lightning.config.schema import Config
from mbrl_lightning.data.buffer import TaskBuffer
from mbrl_lightning.data.world import RealWorld
from mbrl_lightning.envs.spec import EnvSpec
from mbrl_lightning.errors import ConfigError
from mbrl_lightning.models.base import Dynamics
from mbrl_lightning.models.imagination import ImaginedStreams, require_imaginable
from mbrl_lightning.networks.step import GradientStep
from mbrl_lightning.policies.heads import Policy
from mbrl_lightning.policies.search import Learner, prepare, searched, starts


class PathwiseLoss(LossModule):
    """Minus the imagined return of C policies at once, differentiated along the path.

    TorchRL has no loss of this kind (its `ImaginedEnv` carries Gaussian moments for PILCO).

    The caller has frozen the model; `members` of it share out the streams of each policy, H = `horizon` steps long. If `paired`,
    policy m acts in task m alone (fine-tuning), instead of every policy in every task. With a generator of `moments` the
    streams that a policy has in a task and member are drawn anew at every step from the normal with their moments (deep PILCO).
    """

    def __init__(
        self,
        policy: Policy,
        dynamics: Dynamics,
        horizon: int,
        gamma: float = 1.0,
        members: slice = slice(None),
        paired: bool = False,
        moments: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.moments = moments
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
        returns = (self.rewards(tensordict) * self.discount).sum(-1).mean(over) / self.discount.sum()
        if torch.is_grad_enabled() and not returns.requires_grad:
            raise ConfigError(
                f"{self.policy.spec.name}: the reward has no gradient in the actions, so nothing can be "
                "propagated back through imagined rollouts",
                "set search.method=ppo",
            )
        values = {"loss_policy": -returns.sum(), "imagined_return": returns.detach()}
        return TensorDict(values, batch_size=[])

    def rewards(self, tensordict: TensorDictBase) -> Tensor:
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
        settle = None if self.moments is None else partial(moment_matched, rows=rows, generator=self.moments)
        streams = ImaginedStreams(
            self.dynamics, tensordict["belief"], start, self.horizon + 1, noise, self.members, settle=settle
        )
        return streams.rollout(act, self.horizon)["next", "reward"].view(tasks, members, copies, rows, self.horizon)


def moment_matched(observation: Tensor, rows: int, generator: torch.Generator) -> Tensor:
    """Draws from the normal with mean and deviation of each group of `rows` particles, of each number apart: `[M, B, S]` both.

    They are differentiable in the particles, of which a group has at least two.
    """
    groups = observation.unflatten(1, (-1, rows))
    scale = (groups.var(2, keepdim=True) + 1e-12).sqrt()
    noise = torch.randn(groups.shape, generator=generator, dtype=groups.dtype).to(groups.device)
    return (groups.mean(2, keepdim=True) + scale * noise).flatten(1, 2)


def _policy_loss(loss: PathwiseLoss, batch: TensorDict) -> dict[str, Tensor]:
    return {"loss": loss(batch)["loss_policy"]}


class PathwiseSearch(nn.Module):
    """Several policies searched at once; the best under ensemble members that none was trained on is deployed.

    Args:
        spec: features and actions.
        cfg: `policy`, `search`, `dynamics.members`, `loop.action_noise`.
        latent_dim: width of what the policies are told of the task.

    Raises:
        ConfigError: actions are discrete.
    """

    ranking: Tensor

    def __init__(self, spec: EnvSpec, cfg: Config, latent_dim: int) -> None:
        super().__init__()
        if spec.discrete:
            raise ConfigError(
                f"{spec.name}: no gradient passes through discrete actions, so search.method=pathwise "
                "cannot improve a policy",
                "set search.method=ppo",
            )
        # a pathwise policy learns no deviation of its own: it explores with a fixed one
        sizes = replace(cfg.policy, initial_std=max(cfg.loop.action_noise, 0.01))
        self.policy = Policy(spec, sizes, latent_dim, squash=True)
        self.restarts = Policy(spec, sizes, latent_dim, cfg.search.restarts, squash=True)
        self.optimizer = torch.optim.Adam(self.restarts.net.parameters(), lr=cfg.search.lr, fused=True)
        self.register_buffer("ranking", torch.arange(cfg.search.restarts))

    def collectors(self, belief: TensorDict) -> TensorDict:
        """Each row is driven by one of the better half of the restarts, in turn."""
        best = self.ranking[: max(len(self.ranking) // 2, 1)]
        chosen = best[torch.arange(len(belief)) % len(best)]
        own = {name: value.detach()[chosen] for name, value in self.restarts.net.named_parameters()}
        return belief.clone(False).set("policy", TensorDict(own, batch_size=[len(belief)]))

    def improve(self, learner: Learner, world: RealWorld, step: GradientStep) -> dict[str, float]:
        """`search.updates` steps of Eq. 10 in imagined tasks, then the choice."""
        search, horizon = learner.cfg.search, learner.cfg.search.horizon or learner.spec.horizon
        prepare(learner, self.policy, self.optimizer, world)
        self.restarts.norm.load_state_dict(self.policy.norm.state_dict())
        moments = learner.generator if search.moment_matching else None
        members = searched(learner.cfg)
        loss = PathwiseLoss(self.restarts, learner.dynamics, horizon, search.gamma, members, moments=moments)
        loss.to(step.fabric.device)
        for _ in range(search.updates):
            batch = learner.imagined_tasks(world.real, step, search.tasks, search.rollouts)
            step(partial(_policy_loss, loss, batch), self.optimizer, search.max_grad_norm, stacked=True)
        step.check()
        return self._select(learner, world.real, step, horizon)

    @torch.no_grad()
    def _select(self, learner: Learner, real: TaskBuffer, step: GradientStep, horizon: int) -> dict[str, float]:
        """Rank the restarts by imagined return under the held-out members and deploy the best."""
        search, members, spec = learner.cfg.search, searched(learner.cfg), learner.spec
        if search.holdout:
            members = slice(members.stop, None)
        loss = PathwiseLoss(self.restarts, learner.dynamics, horizon, 1.0, members).to(step.fabric.device)
        batch = learner.imagined_tasks(real, step, 4 * search.tasks, search.rollouts)
        returns: Tensor = step.mean(loss(batch)["imagined_return"])
        require_imaginable(returns)
        self.ranking.copy_(returns.argsort(descending=True))
        best = int(self.ranking[0])
        for name, value in self.restarts.net.named_parameters():
            self.policy.net.get_parameter(name).copy_(value[best : best + 1])
        returns = returns if spec.unit == "step" else returns * spec.horizon
        return {"imagined/return": float(returns[best]), "imagined/spread": float(returns.std(unbiased=False))}

    def tune(
        self, learner: Learner, belief: TensorDict, real: TaskBuffer, step: GradientStep, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Parameters `[M, ...]` of the deployed policy after updates in each task's own imagined world."""
        search, evaluation, policies = learner.cfg.search, learner.cfg.evaluation, self.policy.repeated(len(belief))
        rows = 4 * len(range(*searched(learner.cfg).indices(learner.cfg.dynamics.members)))
        horizon = search.horizon or learner.spec.horizon
        members, moments = searched(learner.cfg), generator if search.moment_matching else None
        loss = PathwiseLoss(policies, learner.dynamics, horizon, search.gamma, members, paired=True, moments=moments)
        loss.to(step.fabric.device)
        optimizer = torch.optim.Adam(policies.net.parameters(), lr=evaluation.fine_tune_lr, fused=True)
        for _ in range(evaluation.fine_tune_updates):
            batch = starts(learner, belief, real, rows, 1.0, generator)
            step(partial(_policy_loss, loss, batch), optimizer, search.max_grad_norm, stacked=True)
        step.check()
        return {name: value.detach() for name, value in policies.net.named_parameters()}
