"""What methods share that search a policy in the imagined tasks of a model of contexts and targets (GSSM Algorithms 1, 2)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from mbrl_lightning.algorithms.base import Algorithm
from mbrl_lightning.config.schema import Config, DynamicsConfig
from mbrl_lightning.data.batches import context_target
from mbrl_lightning.data.buffer import TaskBuffer
from mbrl_lightning.data.control import Control
from mbrl_lightning.data.world import RealWorld
from mbrl_lightning.envs.family import TaskFamily
from mbrl_lightning.envs.spec import EnvSpec
from mbrl_lightning.errors import ConfigError
from mbrl_lightning.models.base import MAX_GRAD_NORM, Dynamics
from mbrl_lightning.networks.step import GradientStep
from mbrl_lightning.policies.imagined_ppo import PPOSearch
from mbrl_lightning.policies.pathwise import PathwiseSearch


class ImaginingAlgorithm(Algorithm):
    """One policy for all tasks, improved in imagined ones.

    A method says what it believes of a task after a context (`_believe`) and what an imagined task is (`imagined`).

    Args:
        family: the task family.
        cfg: the run's configuration.
        make: the model.
        latent: width of what the policy is told of the task.
    """

    dynamics: Dynamics
    search: Any
    searches: ClassVar[dict[str, Any]] = {"pathwise": PathwiseSearch, "ppo": PPOSearch}

    def __init__(
        self, family: TaskFamily, cfg: Config, make: Callable[[EnvSpec, DynamicsConfig], Dynamics], latent: int
    ) -> None:
        super().__init__(family, cfg)
        self.control = Control(self.spec, cfg.policy.feedback, cfg.policy.hold)
        self.dynamics = make(self.spec, cfg.dynamics)
        self.search = self.make_search(latent)
        self.optimizers = {"dynamics": self.dynamics.configure_optimizers(), "policy": self.search.optimizer}

    def make_search(self, latent: int) -> Any:
        """What improves a policy that is told a latent of that width: as `search.method` says, or a ConfigError."""
        cfg = self.cfg
        if cfg.search.method not in self.searches:
            raise ConfigError(
                f"search.method={cfg.search.method}: algorithm={cfg.algorithm} has no such search",
                f"choose search.method={' or '.join(self.searches)}",
            )
        return self.searches[cfg.search.method](self.spec, cfg, latent)

    @property
    def policy(self) -> Any:
        """What is deployed."""
        return self.search.policy

    # -- belief

    def begin(self, tasks: int) -> TensorDict:
        """What is believed after an empty context."""
        widths = self.dynamics.input_norm.mean.numel(), self.spec.target_dim
        nothing = (torch.zeros(tasks, 0, width, device=self.device) for width in widths)
        return self.control.begin(self._believe(*nothing))

    def adapt(self, belief: TensorDict, transitions: TensorDictBase) -> TensorDict:
        """Belief `[M]` after what it was made of and `transitions` `[M, K]`; the one step just made is not taken into it."""
        if transitions.ndim == 1:
            return belief
        news = self._standardised(transitions)
        whole = (torch.cat([belief[key], new], 1) for key, new in zip(("x", "y"), news, strict=True))
        return self.control.begin(self._believe(*whole))

    def _standardised(self, context: TensorDictBase) -> tuple[Tensor, Tensor]:
        return self.dynamics.inputs(context["observation"], context["action"]), self.dynamics.targets(context)

    def _believe(self, x: Tensor, y: Tensor) -> TensorDict:
        """Belief `[M]` after standardised transitions, kept as `x` `[M, K, X]` and `y` `[M, K, Y]`, with `latent` `[M, Z]`."""
        raise NotImplementedError

    def shots(self, full: bool) -> list[int]:
        """See Algorithm.contexts."""
        return self.contexts(full)

    def collectors(self, belief: TensorDict) -> TensorDict:
        """As the search explores."""
        return self.search.collectors(belief)

    # -- model

    def fit(self, real: TaskBuffer, step: GradientStep, steps: int, generator: torch.Generator) -> dict[str, float]:
        """Fit the model by `steps` optimizer steps on contexts and targets; returns the mean of its losses."""
        self.dynamics.see(real, self.cfg.search.bounds)
        width = self.dynamics.noise_dim
        draw = partial(context_target, real, self.cfg.dynamics, generator, self.family.scale, noise_dim=width)
        found = step.fit(self.dynamics.training_step, draw, self.optimizers["dynamics"], steps, MAX_GRAD_NORM)
        return {f"train/model_{name}": value for name, value in found.items()}

    # -- improvement

    def improve(self, world: RealWorld, step: GradientStep) -> dict[str, float]:
        """Policy part of Algorithm 1, as `search.method` says."""
        with self.dynamics.constant():
            return self.search.improve(self, world, step)

    def believed(self, real: TaskBuffer, index: Tensor) -> TensorDict:
        """See `policies.search.Learner`."""
        context = real.draw_context(index, self.family.context_steps, self.generator)
        return self.adapt(self.begin(len(index)), context.to(self.device))

    def imagined_tasks(self, real: TaskBuffer, step: GradientStep, tasks: int, rows: int) -> TensorDict:
        """See `policies.search.Learner`."""
        drawn = real.draw_tasks(tasks, self.generator)
        # a quarter of the batches has a shorter context, or none, so that the policy knows those beliefs too
        draws = torch.rand(2, generator=self.generator).tolist()
        most = round((draws[1] if draws[0] < 0.25 else 1.0) * min(self.cfg.dynamics.context, self.family.context_steps))
        context = real.draw_context(drawn, most, self.generator)
        width = self.dynamics.noise_dim
        share = self.cfg.search.initial_starts
        starts = torch.stack([real.start_states(rows, self.generator, share) for _ in range(tasks)])
        noise = torch.randn(tasks, rows, width, generator=self.generator)
        sample = torch.randn(tasks, width, generator=self.generator)
        batch = step.share(
            TensorDict(
                {"context": context, "observation": starts, "noise": noise, "sample": sample}, batch_size=[tasks]
            )
        )
        return batch.set("belief", self.imagined(batch))

    def imagined(self, batch: TensorDict) -> TensorDict:
        """Beliefs of imagined tasks `[M]` that have `context` `[M, K]` and normal draws `sample` `[M, Z]`."""
        raise NotImplementedError

    def fine_tune(
        self, belief: TensorDict, real: TaskBuffer, step: GradientStep, generator: torch.Generator
    ) -> TensorDict | None:
        """K policy-gradient updates in each task's imagined world; belief `[M]` with `policy` parameters `[M, ...]`."""
        with self.dynamics.constant():
            own = self.search.tune(self, belief, real, step, generator)
        return belief.clone(False).set("policy", TensorDict(own, batch_size=[len(belief)]))
