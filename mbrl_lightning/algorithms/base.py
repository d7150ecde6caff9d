"""What an algorithm is: a model, a policy, a belief, and a way to improve the policy. It knows nothing of the loop."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Protocol, cast

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from mbrl_lightning.config.schema import Config
from mbrl_lightning.data.batches import context_target
from mbrl_lightning.data.buffer import TaskBuffer
from mbrl_lightning.data.collect import Act, random_actions
from mbrl_lightning.envs.family import TaskFamily
from mbrl_lightning.models.base import MAX_GRAD_NORM, Dynamics
from mbrl_lightning.models.recurrent import HistoryDynamics
from mbrl_lightning.networks.step import GradientStep
from mbrl_lightning.policies.heads import Policy
from mbrl_lightning.policies.sac import SAC


class Collect(Protocol):
    """Real interaction for methods that need their own; what they see is stored and counted."""

    def __call__(
        self, tasks: Tensor, act: Act, steps: int, every: int | None = None, exploratory: bool = False
    ) -> Iterator[TensorDict]:
        """Transitions `[B, T]` of tasks `[B, P]`, in parts of T = `every` of the `steps` steps, or all at once.

        Contexts are made of the `exploratory` ones.
        """


class Algorithm(nn.Module):
    """Base of all methods: five members, no lifecycle hooks.

    Attributes:
        family: the task family.
        cfg: the run's configuration.
        dynamics: the model, or None for model-free methods.
        policy: the deployed policy.
        optimizers: by name; part of the checkpoint.
        generator: draws all that the policy search draws; part of the checkpoint.
        collects: the method collects through `improve`; the loop then collects no more than its `warm_up`.
        adapts: `adapt` learns from a context; the meta-test gives none to a method whose belief grows only as it acts.
        deploys_prior: what learns, and what curves show, is the policy before it adapts (MAML's pre-update policy).
        warm_up: real steps of random actions before all else, for a method that collects.
    """

    dynamics: Dynamics | HistoryDynamics | None
    policy: Policy | SAC
    collects = False
    warm_up = 0
    adapts = True
    deploys_prior = False

    def __init__(self, family: TaskFamily, cfg: Config) -> None:
        super().__init__()
        self.family, self.cfg, self.spec = family, cfg, family.spec
        self.dynamics = None
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.generator = torch.Generator().manual_seed(int(torch.randint(2**31, ())))

    @property
    def model(self) -> Dynamics | HistoryDynamics | None:
        """The model if it is ever fitted: what there is to measure and to draw."""
        return self.dynamics

    def prior(self, num_tasks: int) -> TensorDict:
        """What is believed of M tasks before any transition: a belief with batch `[M]`."""
        spec = self.spec
        empty = {
            "observation": torch.zeros(num_tasks, 0, spec.observation_dim),
            "action": torch.zeros(num_tasks, 0, spec.action_dim),
            ("next", "observation"): torch.zeros(num_tasks, 0, spec.observation_dim),
        }
        return self.adapt(TensorDict(empty, batch_size=[num_tasks, 0]))

    def adapt(self, context: TensorDictBase) -> TensorDict:
        """What is believed after `context` `[M, K]`: a belief with batch `[M]` and `latent` `[M, Z]`."""
        return TensorDict({"latent": torch.zeros(len(context), 0)}, batch_size=[len(context)])

    def improve(self, real: TaskBuffer, step: GradientStep, collect: Collect) -> dict[str, float]:
        """Improve the policy; returns metrics (`imagined/return` where there is imagination)."""
        raise NotImplementedError

    def actor(self, belief: TensorDict, generator: torch.Generator | None = None) -> Act:
        """The deployed policy under `belief` `[B]`, one row an environment; sampled if there is a generator, else its mean."""
        policy = cast(Policy, self.policy)
        device = next(policy.parameters()).device
        belief = belief.to(device)

        def act(observation: Tensor) -> Tensor:
            noise = None if generator is None else policy.noise((len(observation),), generator).to(device)
            return policy.act(observation.to(device), belief, noise).cpu()

        return act

    def exploration(self, rows: int, generator: torch.Generator) -> Act:
        """What gathers a context of unseen tasks in B = `rows` environments; by default random actions."""
        return random_actions(self.spec, generator)

    def fit(self, real: TaskBuffer, step: GradientStep, steps: int, generator: torch.Generator) -> dict[str, float]:
        """Fit the dynamics to real data by at most `steps` optimizer steps; returns the mean of its losses."""
        dynamics, total = self.dynamics, dict[str, float]()
        if not isinstance(dynamics, Dynamics):
            return total
        dynamics.observe(real.transitions().to(step.fabric.device), self.cfg.search.bounds)
        for _ in range(steps):
            batch = step.share(context_target(real, self.cfg.dynamics, generator, self.family.scale))
            losses = step(partial(dynamics.training_step, batch), self.optimizers["dynamics"], MAX_GRAD_NORM)
            total = {name: total.get(name, 0.0) + value / steps for name, value in losses.items()}
        return {f"train/model_{name}": value for name, value in total.items()}

    def controls(self, belief: TensorDict) -> dict[str, TensorDict]:
        """Further beliefs `[M]` to act under in a meta-test, by name: rows `return/<name>`."""
        return {}

    def measures(self, episodes: TensorDict) -> dict[str, Tensor]:
        """What only this method has to measure in its evaluation episodes `[M, episodes, T]`: `[M]` each, by metric."""
        return {}

    def explorers(self, belief: TensorDict) -> TensorDict:
        """The belief with which the loop collects training episodes, one row an episode; by default the deployed policy."""
        return belief

    def fine_tune(self, belief: TensorDict, real: TaskBuffer, step: GradientStep) -> TensorDict | None:
        """Belief with policies adapted by gradient steps in imagination (Algorithm 2); None if the method has none."""
        return None
