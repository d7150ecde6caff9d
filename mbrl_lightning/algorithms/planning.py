"""What methods share that plan in a model which adapts to the last transitions: the window, the warm plan, the control."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from mbrl_lightning.algorithms.base import Algorithm
from mbrl_lightning.config.methods import WindowConfig
from mbrl_lightning.config.schema import Config
from mbrl_lightning.data.buffer import TaskBuffer
from mbrl_lightning.data.windows import Segments
from mbrl_lightning.data.world import RealWorld
from mbrl_lightning.envs.family import TaskFamily
from mbrl_lightning.errors import ConfigError
from mbrl_lightning.models.adaptive import AdaptiveDynamics, adaptation_errors, output_errors
from mbrl_lightning.models.base import MAX_GRAD_NORM, Dynamics
from mbrl_lightning.models.measures import until_fall
from mbrl_lightning.networks.step import GradientStep
from mbrl_lightning.policies.planners import make_planner


class PlanningAlgorithm(Algorithm):
    """A planner in `dynamics`, under a belief that carries the last M = `past` transitions; rows that are `frozen` never adapt.

    Args:
        family: the task family.
        cfg: the run's configuration.
        make: spec -> the model.
        past: M.
    """

    dynamics: Dynamics

    def __init__(self, family: TaskFamily, cfg: Config, make: Callable[..., Dynamics], past: int) -> None:
        super().__init__(family, cfg)
        self.past, self.dynamics = past, make(self.spec)
        self.optimizers = {"dynamics": self.dynamics.configure_optimizers()}
        self.planner = make_planner(self.spec, cfg.planner, cfg.dynamics.members)

    def begin(self, tasks: int) -> TensorDict:
        """A cold plan, no transition among the last M, and nothing `frozen`."""
        spec = self.spec
        widths = {"inputs": spec.feature_dim + spec.action_feature_dim, "target": spec.target_dim}
        last = {name: torch.zeros(tasks, self.past, width, device=self.device) for name, width in widths.items()}
        flags = torch.zeros(tasks, self.past + 1, dtype=torch.bool, device=self.device)
        window = last | {"mask": flags[:, 1:], "frozen": flags[:, 0], "age": flags[:, 0].long()}
        return super().begin(tasks).update(window | {"plan": self.planner.cold(tasks).to(self.device)})

    def adapt(self, belief: TensorDict, transitions: TensorDictBase) -> TensorDict:
        """The last M transitions, standardised, after the one just made `[B]`, or after K of them in order `[B, K]`."""
        rows = (transitions if transitions.ndim > 1 else transitions.unsqueeze(1)).to(self.device)
        inputs = self.dynamics.inputs(rows["observation"], rows["action"])
        present = torch.ones(rows.shape, dtype=torch.bool, device=self.device)
        news = {"inputs": inputs, "target": self.dynamics.targets(rows), "mask": present}
        last = {name: torch.cat([belief[name], new], 1)[:, rows.shape[1] :] for name, new in news.items()}
        return belief.clone(False).update(last | {"age": belief["age"] + rows.shape[1]})

    @torch.no_grad()
    def act(
        self, belief: TensorDict, observation: Tensor, noise: torch.Generator | None = None
    ) -> tuple[Tensor, TensorDict]:
        """The first action of a plan in the model; without a generator its candidates follow from the age.

        So they are the same at that age of every episode, and those of the oldest row where ages differ.
        """
        draws = torch.Generator().manual_seed(int(belief["age"].max())) if noise is None else noise
        advance = partial(self.dynamics.imagine, belief=belief)
        action, plan = self.planner.plan(advance, observation.to(self.device), draws, belief["plan"])
        return action.cpu(), belief.clone(False).set("plan", plan)

    def controls(self, belief: TensorDict) -> dict[str, TensorDict]:
        """The same planner in the model as it is before it adapts."""
        begun = self.begin(len(belief))
        return {"unadapted": begun.set("frozen", torch.ones_like(begun["frozen"]))}

    def improve(self, world: RealWorld, step: GradientStep) -> dict[str, float]:
        """Nothing: the planner is as good as its model."""
        return {}


class AdaptivePlanning(PlanningAlgorithm):
    """A planner in a model that is adapted anew, from the same start, to the last M transitions before every action.

    Args:
        windows: M = `past`, K = `future`, and how many segments of both make a batch; the others: see PlanningAlgorithm.

    Raises:
        ConfigError: M transitions are more than an episode has.
    """

    dynamics: AdaptiveDynamics

    def __init__(
        self, family: TaskFamily, cfg: Config, make: Callable[..., AdaptiveDynamics], windows: WindowConfig
    ) -> None:
        super().__init__(family, cfg, make, windows.past)
        self.windows = windows
        if windows.past > self.spec.horizon:
            cause = f"a context of {windows.past} transitions is longer than the episode of {self.spec.horizon} steps"
            raise ConfigError(cause, f"choose {cfg.algorithm}'s `past` of at most {self.spec.horizon}")

    @torch.no_grad()
    def act(
        self, belief: TensorDict, observation: Tensor, noise: torch.Generator | None = None
    ) -> tuple[Tensor, TensorDict]:
        """See PlanningAlgorithm.act; the model is the adapted one, and as it was before where rows are `frozen`."""
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
        seen = until_fall(episodes, self.spec).to(self.device)
        found = adaptation_errors(self.dynamics, seen, self.windows.past, self.windows.future)
        return {f"model/{name}": value.cpu() for name, value in found.items()}

    def output_errors(self, play: Callable[[], TensorDict]) -> Tensor | None:
        """See Algorithm.output_errors."""
        if self.dynamics.idle:
            return None
        past, future = self.windows.past, self.windows.future
        return output_errors(self.dynamics, play().to(self.device), past, future)[0].cpu().nanmean(1)

    def fit(self, real: TaskBuffer, step: GradientStep, steps: int, generator: torch.Generator) -> dict[str, float]:
        """Train the model by `steps` steps on segments of all data so far; returns the mean of its losses."""
        dynamics, windows, data = self.dynamics, self.windows, real.transitions().to(step.fabric.device)
        dynamics.see(real, self.cfg.search.bounds)
        segments = Segments(data, dynamics.columns, windows.past, windows.future)
        batches = segments.batches(steps, windows.segments, generator)
        found = step.fit(
            dynamics.training_step, partial(next, batches), self.optimizers["dynamics"], steps, MAX_GRAD_NORM
        )
        return {f"train/model_{name}": value for name, value in (found | dynamics.inner_sizes()).items()}
