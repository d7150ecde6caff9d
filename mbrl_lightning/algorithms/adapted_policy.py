"""What methods share whose belief is a policy: inner gradient steps on a task's own trajectories (MB-MPO, MAML, Reptile)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict import TensorDict, TensorDictBase

from mbrl_lightning.algorithms.base import Algorithm
from mbrl_lightning.beliefs.gradient import GradientAdaptation, Linearised, Losses, Parameters
from mbrl_lightning.config.schema import Config
from mbrl_lightning.data.collect import Agent
from mbrl_lightning.envs.family import TaskFamily
from mbrl_lightning.envs.spec import EnvSpec
from mbrl_lightning.models.base import Dynamics
from mbrl_lightning.policies.heads import Policy
from mbrl_lightning.policies.trust_region import (
    TrustRegion,
    executed_density,
    inner_loss,
    standardised_advantages,
)


class AdaptedPolicyAlgorithm(Algorithm):
    """A policy theta, and inner steps from it; the belief carries adapted parameters under `policy`, and without them is theta.

    Args:
        family: the task family.
        cfg: the run's configuration.
        make: spec -> the model, where there is one.
    """

    policy: Policy

    def __init__(
        self, family: TaskFamily, cfg: Config, make: Callable[[EnvSpec], Dynamics | None] = lambda spec: None
    ) -> None:
        super().__init__(family, cfg)
        meta, self.dynamics = cfg.meta, make(self.spec)
        self.policy = Policy(self.spec, cfg.policy, 0)
        names = list(self.policy.adaptable())
        inner = GradientAdaptation(names, meta.inner_lr, meta.inner_steps)
        self.inner_step = GradientAdaptation(names, 0.0 if inner.idle else meta.inner_lr)
        self.outer = TrustRegion(self.policy, meta, inner)
        self.inner_steps = 0 if inner.idle else meta.inner_steps

    def trajectories(self, sample: Callable[[Parameters], TensorDict], tasks: int) -> tuple[TensorDict, Linearised]:
        """A batch `[M]` for `TrustRegion`, M = `tasks`, and the inner steps, each on rows of the policies that it starts from.

        `sample` takes parameters `[M, ...]` to rows `[M, N]` of what these policies did, see `sampled_rows`.
        """
        linear = Linearised(self.inner_step, self.outer.theta(tasks), [])
        support: list[TensorDict] = []
        for _ in range(self.inner_steps):
            support.append(sample(linear.adapted))
            losses = inner_loss(self.policy, support[-1])
            linear = linear.then(self.inner_step.linearise(losses, linear.adapted))
        batch = TensorDict({"target": sample(linear.adapted)}, batch_size=[tasks])
        if support:
            batch["support"] = torch.stack(support, 1)
        return batch, linear

    def explorer(self, tasks: int) -> tuple[Agent, TensorDict]:
        """The pre-update policy itself: what an inner step on real data needs."""
        return self, self.begin(tasks)

    def adapt(self, belief: TensorDict, transitions: TensorDictBase) -> TensorDict:
        """Inner steps from theta on real transitions `[M, K]`, in order, in place of earlier ones; on none, theta."""
        # a draw from the buffer, which holds no ends, is not in order
        in_order = ("next", "done") in transitions.keys(include_nested=True)
        if not self.inner_steps or transitions.ndim == 1 or not transitions.shape[1] or not in_order:
            return belief
        with torch.no_grad():
            data = transitions.select("action", "age", "next").unsqueeze(1)
            data["inputs"] = self.policy.norm(self.spec.features(transitions["observation"])).unsqueeze(1)
            rows = data.set("advantage", standardised_advantages(self.policy, data, self.cfg.search)).flatten(1, 2)
            return self.stepped(belief, inner_loss(self.policy, rows, executed_density), len(belief))

    @torch.no_grad()
    def stepped(self, belief: TensorDict, losses: Losses, tasks: int) -> TensorDict:
        """The belief with what inner steps on the losses of M or of one task make of theta."""
        own = TensorDict(self.outer.adaptation(losses, self.outer.theta(tasks)), batch_size=[tasks])
        return belief.clone(False).set("policy", own.expand(len(belief)).clone())
