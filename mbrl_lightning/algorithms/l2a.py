"""L2A, learning to adapt (Nagabandi et al., ICLR 2019): GrBAL, ReBAL, and MB-MPC, which is the same without adaptation.

    Eq. 3                    theta moves so that inner steps on M transitions predict the next K        L2A.fit
    Algorithm 1, lines 4-6   segments of M + K steps, cut at random out of all episodes                 data.windows.Segments
    Algorithm 2, line 5      at every control step theta'_t from the last M transitions                 L2A.act
    line 6                   the first action of a plan in the model of theta'_t                        policies.planners
Variants are values of `l2a.adaptation`: `gradient` is GrBAL, `recurrent` ReBAL, `none` MB-MPC. Departures: gains of the inputs
adapt too (`l2a.adapts`); step sizes are learned, one for each layer and one for all gains; the inner loss is a sum over the
transitions there are, divided by M, so that an episode adapts from its second step on and what is learned knows of short
pasts; no early stopping; ReBAL's state reads observed changes too, and only the last M of them, and does not roll on in a plan.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from tensordict import TensorDict
from torch import Tensor

from mbrl_lightning.algorithms.planning import PlanningAlgorithm
from mbrl_lightning.config.schema import Config
from mbrl_lightning.data.buffer import TaskBuffer
from mbrl_lightning.data.windows import Segments
from mbrl_lightning.envs.family import TaskFamily
from mbrl_lightning.models.adaptive import AdaptiveDynamics, adaptation_errors, make_adaptive, output_errors
from mbrl_lightning.models.base import MAX_GRAD_NORM
from mbrl_lightning.models.measures import until_fall
from mbrl_lightning.networks.step import GradientStep


class L2A(PlanningAlgorithm):
    """A model that adapts within M steps, and a planner in it; meta-testing is acting on. Tasks may switch inside an episode."""

    dynamics: AdaptiveDynamics

    def __init__(self, family: TaskFamily, cfg: Config) -> None:
        super().__init__(family, cfg, partial(make_adaptive, cfg=cfg.dynamics, l2a=cfg.l2a), cfg.l2a.past)

    @torch.no_grad()
    def act(
        self, belief: TensorDict, observation: Tensor, noise: torch.Generator | None = None
    ) -> tuple[Tensor, TensorDict]:
        """See PlanningAlgorithm.act; the model is that of theta'_t, and of theta where rows are `frozen`."""
        model = self.dynamics
        if not model.idle:
            mask = belief["mask"] & ~belief["frozen"].unsqueeze(1)
            adapted = model.settle(model.believe(belief["inputs"], belief["target"], mask))
            belief = belief.clone(False).update(adapted)
        return super().act(belief, observation, noise)

    def collectors(self, belief: TensorDict) -> TensorDict:
        """Training episodes begin with nothing seen: a context drawn from the data is no row of steps."""
        return self.begin(len(belief))

    def controls(self, belief: TensorDict) -> dict[str, TensorDict]:
        """See PlanningAlgorithm.controls; none where nothing adapts."""
        return {} if self.dynamics.idle else super().controls(belief)

    def measures(self, episodes: TensorDict, *_: object) -> dict[str, Tensor]:
        """Errors on the next K transitions before and after adapting to the last M; see `adaptation_errors`."""
        l2a, seen = self.cfg.l2a, until_fall(episodes, self.spec).to(self.dynamics.device)
        found = adaptation_errors(self.dynamics, seen, l2a.past, l2a.future)
        return {f"model/{name}": value.cpu() for name, value in found.items()}

    def output_errors(self, play: Callable[[], TensorDict]) -> Tensor | None:
        """See Algorithm.output_errors."""
        if self.dynamics.idle:
            return None
        past, future = self.cfg.l2a.past, self.cfg.l2a.future
        return output_errors(self.dynamics, play().to(self.device), past, future)[0].cpu().nanmean(1)

    def fit(self, real: TaskBuffer, step: GradientStep, steps: int, generator: torch.Generator) -> dict[str, float]:
        """Meta-train the model by `steps` steps on segments of all data so far; returns the mean of its losses."""
        dynamics, cfg, data = self.dynamics, self.cfg.l2a, real.transitions().to(step.fabric.device)
        dynamics.observe(data, self.cfg.search.bounds)
        inputs, target = dynamics.inputs(data["observation"], data["action"]), dynamics.targets(data)
        segments = Segments(data, inputs, target, cfg.past, cfg.future)
        draw = partial(segments.draw, cfg.segments, generator)
        found = step.fit(dynamics.training_step, draw, self.optimizers["dynamics"], steps, MAX_GRAD_NORM)
        return {f"train/model_{name}": value for name, value in (found | dynamics.inner_sizes()).items()}
