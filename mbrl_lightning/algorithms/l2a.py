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
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from mbrl_lightning.algorithms.base import Algorithm
from mbrl_lightning.config.schema import Config
from mbrl_lightning.data.buffer import TaskBuffer
from mbrl_lightning.data.windows import Segments
from mbrl_lightning.data.world import RealWorld
from mbrl_lightning.envs.family import TaskFamily
from mbrl_lightning.models.adaptive import AdaptiveDynamics, adaptation_errors, make_adaptive, output_errors
from mbrl_lightning.models.base import MAX_GRAD_NORM
from mbrl_lightning.models.measures import until_fall
from mbrl_lightning.networks.step import GradientStep
from mbrl_lightning.policies.planners import make_planner


class L2A(Algorithm):
    """A model that adapts within M steps, and a planner in it; meta-testing is acting on. Tasks may switch inside an episode."""

    dynamics: AdaptiveDynamics

    def __init__(self, family: TaskFamily, cfg: Config) -> None:
        super().__init__(family, cfg)
        self.dynamics = make_adaptive(self.spec, cfg.dynamics, cfg.l2a)
        self.optimizers = {"dynamics": self.dynamics.configure_optimizers()}
        self.planner = make_planner(self.spec, cfg.planner, cfg.dynamics.members)

    def begin(self, tasks: int) -> TensorDict:
        """A cold plan, no transition among the last M, and nothing `frozen`: rows that are keep theta."""
        past, spec = self.cfg.l2a.past, self.spec
        widths = {"inputs": spec.feature_dim + spec.action_feature_dim, "target": spec.target_dim}
        last = {name: torch.zeros(tasks, past, width, device=self.device) for name, width in widths.items()}
        flags = torch.zeros(tasks, past + 1, dtype=torch.bool, device=self.device)
        window = last | {"mask": flags[:, 1:], "frozen": flags[:, 0], "age": flags[:, 0].long()}
        return super().begin(tasks).update(window | {"plan": self.planner.cold(tasks).to(self.device)})

    def adapt(self, belief: TensorDict, transitions: TensorDictBase) -> TensorDict:
        """The last M transitions after the one just made `[B]`, or after K of them in order `[B, K]`."""
        rows = (transitions if transitions.ndim > 1 else transitions.unsqueeze(1)).to(self.device)
        belief = belief.clone(False).set("age", belief["age"] + rows.shape[1])
        if self.dynamics.idle:
            return belief
        inputs = self.dynamics.inputs(rows["observation"], rows["action"])
        present = torch.ones(rows.shape, dtype=torch.bool, device=self.device)
        news = {"inputs": inputs, "target": self.dynamics.targets(rows), "mask": present}
        last = {name: torch.cat([belief[name], new], 1)[:, rows.shape[1] :] for name, new in news.items()}
        return belief.update(last)

    @torch.no_grad()
    def act(
        self, belief: TensorDict, observation: Tensor, noise: torch.Generator | None = None
    ) -> tuple[Tensor, TensorDict]:
        """The first action of a plan in the model of theta'_t; without a generator its candidates follow from the age.

        So they are the same at that age of every episode, and those of the oldest row where ages differ.
        """
        model, belief = self.dynamics, belief.clone(False)
        if not model.idle:
            mask = belief["mask"] & ~belief["frozen"].unsqueeze(1)
            belief.update(model.settle(model.believe(belief["inputs"], belief["target"], mask)))
        draws = torch.Generator().manual_seed(int(belief["age"].max())) if noise is None else noise
        advance = partial(model.imagine, belief=belief)
        action, plan = self.planner.plan(advance, observation.to(self.device), draws, belief["plan"])
        return action.cpu(), belief.set("plan", plan)

    def collectors(self, belief: TensorDict) -> TensorDict:
        """Training episodes begin with nothing seen: a context drawn from the data is no row of steps."""
        return self.begin(len(belief))

    def controls(self, belief: TensorDict) -> dict[str, TensorDict]:
        """The same planner in the model as it is before it adapts."""
        if self.dynamics.idle:
            return {}
        return {"unadapted": belief.clone(False).set("frozen", torch.ones_like(belief["frozen"]))}

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

    def improve(self, world: RealWorld, step: GradientStep) -> dict[str, float]:
        """Nothing: the planner is as good as its model."""
        return {}
