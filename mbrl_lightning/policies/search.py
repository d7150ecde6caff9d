"""What a policy search asks of the method that it works for."""

from __future__ import annotations

from typing import Protocol

import torch
from tensordict import TensorDict

from mbrl_lightning.config.schema import Config
from mbrl_lightning.data.buffer import TaskBuffer
from mbrl_lightning.data.collect import Agent
from mbrl_lightning.data.control import Control
from mbrl_lightning.data.world import RealWorld
from mbrl_lightning.envs.spec import EnvSpec
from mbrl_lightning.models.base import Dynamics
from mbrl_lightning.networks.statistics import joined, moments
from mbrl_lightning.networks.step import GradientStep
from mbrl_lightning.policies.heads import Policy


class Learner(Agent, Protocol):
    """A method with a model that believes something of a task: the imagined tasks that a policy is improved in are its."""

    spec: EnvSpec
    cfg: Config
    control: Control
    dynamics: Dynamics
    generator: torch.Generator
    iteration: torch.Tensor

    def imagined_tasks(self, real: TaskBuffer, step: GradientStep, tasks: int, rows: int) -> TensorDict:
        """Batch `[M]` of imagined tasks: `belief`, start states `observation` `[M, B, S]`, `noise` `[M, B, Z]` of the code."""

    def believed(self, real: TaskBuffer, index: torch.Tensor) -> TensorDict:
        """Beliefs `[M]` of the real tasks `index` `[M]`, after their contexts."""


def searched(cfg: Config) -> slice:
    """The members of the ensemble that a policy is searched in; the others choose among restarts."""
    return slice(0, cfg.dynamics.members - cfg.search.holdout)


def refit(policy: Policy, spec: EnvSpec, real: TaskBuffer) -> None:
    """Standardise what the policy is shown by the statistics of all real observations."""
    policy.norm.take(real.summary("features", lambda rows: moments(spec.features(rows["observation"])), joined))


def prepare(learner: Learner, policy: Policy, optimizer: torch.optim.Optimizer, world: RealWorld) -> None:
    """Before a search in imagination: the statistics of what is seen, and a rate that falls linearly over the run."""
    refit(policy, learner.spec, world.real)
    done = world.iteration / max(learner.cfg.loop.iterations, 1)
    for group in optimizer.param_groups:
        group["lr"] = learner.cfg.search.lr * max(1 - done, 0.1)


def starts(
    learner: Learner, belief: TensorDict, real: TaskBuffer, rows: int, share: float, generator: torch.Generator
) -> TensorDict:
    """Batch `[M]` of the tasks that `belief` is of, to be imagined from B = `rows` real states each.

    Args:
        learner: whose model it is.
        belief: batch `[M]`.
        real: where states are drawn from.
        rows: B.
        share: of initial states among them.
        generator: draws.
    """
    tasks, width = len(belief), learner.dynamics.noise_dim
    observation = real.start_states(tasks * rows, generator, share).view(tasks, rows, -1)
    noise = torch.randn(tasks, rows, width, generator=generator)
    batch = TensorDict({"belief": belief, "observation": observation, "noise": noise}, batch_size=[tasks])
    return batch.to(belief.device)
