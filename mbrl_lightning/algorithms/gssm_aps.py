"""GSSM with amortized policy search (Wang & van Hoof, ICML 2022), and GSSM with a policy fine-tuned at meta-test.

    Algorithm 1  collect -> fit {phi, theta} on Eq. 7 -> improve the policy in imagined tasks   MetaLoop, GSSMAPS.improve
    Algorithm 2  memory by pi_e -> z_c -> act; or fine-tune in imagination, then act        GSSMAPS.adapt, GSSM.fine_tune
    Eq. 9-10     J by back-propagation through imagined rollouts                            policies.pathwise
    Eq. 11, 16   J by PPO on [s, z_c]                                                       policies.imagined_ppo
    not theirs   SAC on real steps and on branches of imagined ones                         policies.soft
Departures: several policy restarts are searched at once and chosen by their imagined return under ensemble members that no
policy was trained on; imagined data never enters the model's buffer (Algorithm 1 says so, section E does not).
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from mbrl_lightning.algorithms.base import Algorithm
from mbrl_lightning.beliefs.encoders import GraphEncoder
from mbrl_lightning.config.schema import Config
from mbrl_lightning.data.batches import context_target
from mbrl_lightning.data.buffer import TaskBuffer
from mbrl_lightning.data.control import Control
from mbrl_lightning.data.world import RealWorld
from mbrl_lightning.envs.family import TaskFamily
from mbrl_lightning.errors import ConfigError
from mbrl_lightning.models.base import MAX_GRAD_NORM
from mbrl_lightning.models.latent import LatentDynamics
from mbrl_lightning.networks.step import GradientStep
from mbrl_lightning.policies.imagined_ppo import PPOSearch
from mbrl_lightning.policies.pathwise import PathwiseSearch
from mbrl_lightning.policies.soft import SoftSearch


class GSSMAPS(Algorithm):
    """One policy pi(a | s, z_c) for all tasks, improved in imagined tasks.

    Args:
        family: the task family.
        cfg: the run's configuration.
        conditioned: the policy sees z_c (APS).
        encoder: of contexts; that of a neural process makes it MLSM (sections 3.2 and 5.1).
    """

    dynamics: LatentDynamics
    search: Any
    searches: ClassVar[dict[str, Any]] = {"pathwise": PathwiseSearch, "ppo": PPOSearch, "sac": SoftSearch}

    def __init__(
        self, family: TaskFamily, cfg: Config, conditioned: bool = True, encoder: type[Any] = GraphEncoder
    ) -> None:
        super().__init__(family, cfg)
        self.control = Control(self.spec, cfg.policy.feedback, cfg.policy.hold)
        self.dynamics = LatentDynamics(self.spec, cfg.dynamics, encoder)
        if cfg.search.method not in self.searches:
            raise ConfigError(
                f"search.method={cfg.search.method}: algorithm={cfg.algorithm} has no such search",
                f"choose search.method={' or '.join(self.searches)}",
            )
        latent = cfg.dynamics.latent_dim if conditioned else 0
        self.search = self.searches[cfg.search.method](self.spec, cfg, latent)
        self.optimizers = {"dynamics": self.dynamics.configure_optimizers(), "policy": self.search.optimizer}

    @property
    def policy(self) -> Any:
        """What is deployed."""
        return self.search.policy

    # -- belief

    def begin(self, tasks: int) -> TensorDict:
        """The learned prior, which is q(z_c) of an empty context."""
        widths = self.dynamics.input_norm.mean.numel(), self.spec.target_dim
        nothing = (torch.zeros(tasks, 0, width, device=self.device) for width in widths)
        return self.control.begin(self._believe(*nothing))

    def adapt(self, belief: TensorDict, transitions: TensorDictBase) -> TensorDict:
        """Belief q(z_c | context) `[M]`; its `latent` is the mean. No gradient step (Algorithm 2).

        The context is what the belief was made of and `transitions` `[M, K]`; the one step just made is not taken into it.
        """
        if transitions.ndim == 1:
            return belief
        news = self._standardised(transitions)
        whole = (torch.cat([belief[key], new], 1) for key, new in zip(("x", "y"), news, strict=True))
        return self.control.begin(self._believe(*whole))

    def _standardised(self, context: TensorDictBase) -> tuple[Tensor, Tensor]:
        return self.dynamics.inputs(context["observation"], context["action"]), self.dynamics.targets(context)

    @torch.no_grad()
    def _believe(self, x: Tensor, y: Tensor) -> TensorDict:
        belief = self.dynamics.encoder.context(x, y)
        return belief.update({"latent": belief["loc"], "x": x, "y": y})

    def shots(self, full: bool) -> list[int]:
        """See Algorithm.contexts."""
        return self.contexts(full)

    def collectors(self, belief: TensorDict) -> TensorDict:
        """As the search explores."""
        return self.search.collectors(belief)

    # -- model

    def fit(self, real: TaskBuffer, step: GradientStep, steps: int, generator: torch.Generator) -> dict[str, float]:
        """Fit the model by `steps` optimizer steps on Eq. 7; returns the mean of its losses."""
        self.dynamics.observe(real.transitions().to(self.device), self.cfg.search.bounds)
        draw = partial(context_target, real, self.cfg.dynamics, generator, self.family.scale)
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
        """See `policies.search.Learner`; z_c is drawn once for each task and call."""
        drawn = real.draw_tasks(tasks, self.generator)
        # a quarter of the batches has a shorter context, or none, so that the policy knows those beliefs too
        draws = torch.rand(2, generator=self.generator).tolist()
        most = round((draws[1] if draws[0] < 0.25 else 1.0) * min(self.cfg.dynamics.context, self.family.context_steps))
        context = real.draw_context(drawn, most, self.generator)
        latent = self.cfg.dynamics.latent_dim
        share = self.cfg.search.initial_starts
        starts = torch.stack([real.start_states(rows, self.generator, share) for _ in range(tasks)])
        noise = torch.randn(tasks, rows, latent, generator=self.generator)
        sample = torch.randn(tasks, latent, generator=self.generator)
        batch = step.share(
            TensorDict(
                {"context": context, "observation": starts, "noise": noise, "sample": sample}, batch_size=[tasks]
            )
        )
        belief = self._believe(*self._standardised(batch["context"]))
        belief["latent"] = belief["loc"] + belief["scale"] * batch["sample"]
        return batch.set("belief", belief)


class GSSM(GSSMAPS):
    """GSSM without APS: pi(a | s) trained across the imagined tasks, fine-tuned in each test task's own (Algorithm 2)."""

    searches: ClassVar[dict[str, Any]] = {"pathwise": PathwiseSearch, "ppo": PPOSearch}

    def __init__(self, family: TaskFamily, cfg: Config, encoder: type[Any] = GraphEncoder) -> None:
        super().__init__(family, cfg, conditioned=False, encoder=encoder)

    def fine_tune(
        self, belief: TensorDict, real: TaskBuffer, step: GradientStep, generator: torch.Generator
    ) -> TensorDict:
        """K policy-gradient updates in each task's imagined world; belief `[M]` with `policy` parameters `[M, ...]`."""
        with self.dynamics.constant():
            own = self.search.tune(self, belief, real, step, generator)
        return belief.clone(False).set("policy", TensorDict(own, batch_size=[len(belief)]))
