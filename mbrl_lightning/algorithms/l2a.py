"""L2A, learning to adapt (Nagabandi et al., ICLR 2019): GrBAL, ReBAL, and MB-MPC, which is the same without adaptation.

    Eq. 3                    theta moves so that inner steps on M transitions predict the next K        L2A.fit
    Algorithm 1, lines 4-6   segments of M + K steps, cut at random out of all episodes                 data.windows.Segments
    Algorithm 2, line 5      at every control step theta'_t from the last M transitions                 AdaptiveActor
    line 6                   the first action of a plan in the model of theta'_t                        policy_search.planners
Variants are values of `l2a.adaptation`: `gradient` is GrBAL, `recurrent` ReBAL, `none` MB-MPC (so is `l2a.inner_lr=0` without
learned sizes). The loop is the library's own: random actions first, then episodes of the adapting planner; nothing is
left to `improve`. Departures: gains of the inputs adapt too (`l2a.adapts`);
step sizes are learned, one for each layer and one for all gains; the inner loss is a sum over the transitions there
are, divided by M, so that an episode adapts from its second step on and what is learned knows of short pasts; no early
stopping; ReBAL's state reads observed changes too, and only the last M of them, and does not roll on inside a plan.
"""

from __future__ import annotations

from functools import partial

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from mbrl_lightning.algorithms.base import Algorithm, Collect
from mbrl_lightning.config.schema import Config
from mbrl_lightning.data.buffer import TaskBuffer
from mbrl_lightning.data.collect import Act
from mbrl_lightning.data.windows import Segments
from mbrl_lightning.envs.family import TaskFamily
from mbrl_lightning.models.adaptive import AdaptiveDynamics, make_adaptive
from mbrl_lightning.models.base import MAX_GRAD_NORM
from mbrl_lightning.models.measures import adaptation_errors, until_fall
from mbrl_lightning.networks.step import GradientStep
from mbrl_lightning.policies.adaptive_actor import AdaptiveActor


class L2A(Algorithm):
    """A model that adapts within M steps, and a planner in it; meta-testing is acting on.

    Args:
        family: the task family; its tasks may switch inside an episode.
        cfg: `l2a`, `planner`, `dynamics`.
    """

    dynamics: AdaptiveDynamics
    adapts = False

    def __init__(self, family: TaskFamily, cfg: Config) -> None:
        super().__init__(family, cfg)
        self.dynamics = make_adaptive(self.spec, cfg.dynamics, cfg.l2a)
        self.optimizers = {"dynamics": self.dynamics.configure_optimizers()}
        self.actor(self.prior(1))  # refuses an impossible planner before anything is collected

    def adapt(self, context: TensorDictBase) -> TensorDict:
        """Nothing yet: a belief is of the last M steps, and the actor makes it as it acts."""
        rows = len(context)
        belief = {"latent": torch.zeros(rows, 0), "frozen": torch.zeros(rows, dtype=torch.bool)}
        return TensorDict(belief, batch_size=[rows])

    def actor(self, belief: TensorDict, generator: torch.Generator | None = None) -> Act:
        """The planner, in a model that it adapts at every step; rows that are `frozen` keep theta."""
        return AdaptiveActor(self.dynamics, self.cfg.planner, self.cfg.l2a.past, belief["frozen"], generator)

    def controls(self, belief: TensorDict) -> dict[str, TensorDict]:
        """The same planner in the model as it is before it adapts."""
        if self.dynamics.idle:
            return {}
        return {"unadapted": belief.clone(False).set("frozen", torch.ones_like(belief["frozen"]))}

    def measures(self, episodes: TensorDict) -> dict[str, Tensor]:
        """Errors on the next K transitions before and after adapting to the last M; see `adaptation_errors`."""
        l2a, seen = self.cfg.l2a, until_fall(episodes, self.spec).to(self.dynamics.device)
        found = adaptation_errors(self.dynamics, seen, l2a.past, l2a.future)
        return {f"model/{name}": value.cpu() for name, value in found.items()}

    def fit(self, real: TaskBuffer, step: GradientStep, steps: int, generator: torch.Generator) -> dict[str, float]:
        """Meta-train the model by `steps` steps on segments of all data so far; returns the mean of its losses."""
        dynamics, cfg, data = self.dynamics, self.cfg.l2a, real.transitions().to(step.fabric.device)
        dynamics.observe(data, self.cfg.search.bounds)
        inputs, target = dynamics.inputs(data["observation"], data["action"]), dynamics.targets(data)
        segments = Segments(data, inputs, target, cfg.past, cfg.future)
        total = dict[str, float]()
        for _ in range(steps):
            batch = step.share(segments.draw(cfg.segments, generator))
            losses = partial(dynamics.training_step, batch)
            found = step(losses, self.optimizers["dynamics"], MAX_GRAD_NORM)
            total = {name: total.get(name, 0.0) + value / steps for name, value in found.items()}
        sizes = dynamics.inner_sizes()
        return {f"train/model_{name}": value for name, value in (total | sizes).items()}

    def improve(self, real: TaskBuffer, step: GradientStep, collect: Collect) -> dict[str, float]:
        """Nothing: the planner is as good as its model."""
        return {}
