"""What an algorithm is: a model, a policy, a belief, and a way to improve the policy. It knows nothing of the loop."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from mbrl_lightning.config.schema import Config
from mbrl_lightning.data.buffer import TaskBuffer
from mbrl_lightning.data.collect import Act
from mbrl_lightning.dynamics.base import Dynamics
from mbrl_lightning.envs.family import TaskFamily
from mbrl_lightning.policy_search.policies import Policy
from mbrl_lightning.step import GradientStep

Collect = Callable[[Tensor, Act, int], TensorDict]
"""Real interaction for methods that need their own: tasks `[B, P]`, a policy, steps T -> transitions `[B, T]`; counted."""


class Algorithm(nn.Module):
    """Base of all methods: five members, no lifecycle hooks.

    Attributes:
        family: the task family.
        cfg: the run's configuration.
        dynamics: the model, or None for model-free methods.
        policy: the deployed policy.
        optimizers: by name; part of the checkpoint.
        generator: draws all that the policy search draws; part of the checkpoint.
        on_policy: the method collects through `improve`; the loop then collects nothing itself.
    """

    dynamics: Dynamics | None
    policy: Policy
    on_policy = False

    def __init__(self, family: TaskFamily, cfg: Config) -> None:
        super().__init__()
        self.family, self.cfg, self.spec = family, cfg, family.spec
        self.dynamics = None
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.generator = torch.Generator().manual_seed(int(torch.randint(2**31, ())))

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

    def explorers(self, belief: TensorDict) -> TensorDict:
        """The belief with which the loop collects training episodes, one row an episode; by default the deployed policy."""
        return belief

    def fine_tune(self, belief: TensorDict, real: TaskBuffer, step: GradientStep) -> TensorDict | None:
        """Belief with policies adapted by gradient steps in imagination (Algorithm 2); None if the method has none."""
        return None
