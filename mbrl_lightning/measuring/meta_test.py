"""The meta-test (GSSM Algorithm 2), written once for all algorithms.

On unseen tasks the exploration policy gives a context; after 0, K/2, K, 2K of its transitions the algorithm adapts and acts.
Beside the return stand the controls that tell adapting from ignoring: another task's belief, the sampled policy, random
actions; and, where there is a model, its one-step and multi-step error with the right and with a wrong task's context.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from tensordict import TensorDict
from torch import Tensor

from mbrl_lightning.algorithms.base import Algorithm
from mbrl_lightning.data.buffer import TaskBuffer
from mbrl_lightning.data.collect import Agent, Uniform, collect_in, episode_returns
from mbrl_lightning.data.control import Control
from mbrl_lightning.data.shared import shared
from mbrl_lightning.measuring.hidden_task import rewards_by_task
from mbrl_lightning.models.base import Model
from mbrl_lightning.models.measures import linear_probe
from mbrl_lightning.models.mlp import MLPDynamics
from mbrl_lightning.networks.step import GradientStep

Add = Callable[..., None]
"""`Results.add` with iteration and real steps already given: `add(metric, value, split=, task=, shot=)`."""


@dataclass
class MetaTest:
    """One meta-test.

    Attributes:
        algorithm: what is tested; never changed by it.
        real: training data (start states of imagined fine-tuning).
        step: takes the gradient steps of methods that fine-tune.
        generator: the evaluation stream.
        add: receives the rows.
        baselines: further models to measure on the same transitions, told the task as far as they may be.
    """

    algorithm: Algorithm
    real: TaskBuffer
    step: GradientStep
    generator: torch.Generator
    add: Add
    baselines: dict[str, MLPDynamics] = field(default_factory=dict)

    def run(self, tasks: Tensor, split: str, full: bool) -> dict[str, float]:
        """Test on unseen `tasks` `[M, P]`, in everything or in the return after K transitions alone; means over tasks."""
        algorithm, shots = self.algorithm, self.algorithm.shots(full)
        size = shots[0]
        context = self.context(tasks, max(*shots, 1))
        summary: dict[str, float] = {}
        for shot in sorted(shots):
            belief = self.adapt(context, shot)
            episodes = self.episodes(tasks, belief)
            returned = self.report("return/policy", episodes, split, shot)
            if shot == size:
                reference, at_size, summary["return/policy"] = episodes, belief, returned
        if "hidden" in reference.keys():  # noqa: SIM118 - a TensorDict has no `in`
            for name, value in rewards_by_task(reference.flatten(0, 1), algorithm.family.parameters[0]).items():
                self.add(name, value, split=split, shot=size)
        measured = algorithm.measures(reference, self.real, self.step, self.generator)
        summary |= self._all_rows(measured, split, size)
        if full:
            self._controls(tasks, at_size, split, size)
            if algorithm.model is not None:
                errors = self._model_errors(tasks, at_size, reference, context.shape[1])
                summary |= self._all_rows(errors, split, size)
                if at_size["latent"].shape[1]:
                    self._probe(tasks, context[:, :size], split, size)
        return summary

    # -- interaction

    def context(self, tasks: Tensor, steps: int) -> TensorDict:
        """Transitions `[M, steps]` of the tasks, as the algorithm's `explorer` gathers them."""
        agent, belief = self.algorithm.explorer(len(tasks))
        return self._collect(tasks, agent, belief, steps, self.generator, training=True)

    def adapt(self, context: TensorDict, shot: int) -> TensorDict:
        """Belief after the first `shot` transitions."""
        algorithm = self.algorithm
        return algorithm.adapt(algorithm.begin(len(context)), context[:, :shot].to(algorithm.device))

    def episodes(
        self, tasks: Tensor, belief: TensorDict, sampled: bool = False, agent: Agent | None = None
    ) -> TensorDict:
        """Evaluation episodes `[M, episodes, T]` of `tasks` `[M, P]`; T is the horizon or less.

        Each begins with its task's `belief` `[M]`; the algorithm acts, or another `agent`: the best actions, or `sampled` ones.
        """
        count, horizon = self.algorithm.cfg.evaluation.episodes, self.algorithm.spec.horizon
        rows = torch.arange(len(tasks), device=belief.device).repeat_interleave(count)
        noise = self.generator if sampled else None
        copies = tasks.repeat_interleave(count, 0)
        data = self._collect(copies, agent or self.algorithm, belief[rows], horizon, noise, training=False)
        return data.unflatten(0, (len(tasks), count))

    def _collect(
        self, tasks: Tensor, agent: Agent, belief: TensorDict, steps: int, noise: torch.Generator | None, training: bool
    ) -> TensorDict:
        family = shared(self.algorithm.family, self.step)
        return collect_in(family, tasks, agent, belief, steps, self.generator, noise, training)

    # -- measures

    def _rows(self, metric: str, values: Tensor, split: str, shot: int) -> float:
        for task, value in enumerate(values.tolist()) if values.ndim else [(-1, values.item())]:
            if math.isfinite(value):  # a task may have nothing to measure, such as ten steps before the first fall
                self.add(metric, value, split=split, task=task, shot=shot)
        return float(values.nanmean())

    def _all_rows(self, measured: dict[str, Tensor], split: str, shot: int) -> dict[str, float]:
        return {name: self._rows(name, values, split, shot) for name, values in measured.items()}

    def report(self, metric: str, episodes: TensorDict, split: str, shot: int) -> float:
        """Add one row a task with its mean return over episodes `[M, episodes, T]`; returns the mean over tasks.

        The family's own metrics follow, of others than the policy by `@` and who acted.
        """
        if self.algorithm.spec.metrics is not None:
            who, found = metric.removeprefix("return/"), self.algorithm.spec.metrics(episodes)
            who = "" if who == "policy" else f"@{who}"
            self._all_rows({f"{name}{who}": value.mean(1) for name, value in found.items()}, split, shot)
        returns = episode_returns(episodes.reshape(-1, episodes.shape[-1]), self.algorithm.spec)
        return self._rows(metric, returns.view(episodes.shape[:2]).mean(1), split, shot)

    def _controls(self, tasks: Tensor, belief: TensorDict, split: str, shot: int) -> None:
        algorithm, cfg, uniform = self.algorithm, self.algorithm.cfg.evaluation, Uniform(Control(self.algorithm.spec))
        self.report("return/random", self.episodes(tasks, uniform.begin(len(tasks)), True, uniform), split, shot)
        if cfg.sampled:
            self.report("return/sampled", self.episodes(tasks, belief, sampled=True), split, shot)
        for name, other in algorithm.controls(belief).items():
            self.report(f"return/{name}", self.episodes(tasks, other), split, shot)
        if cfg.wrong_belief and shot > 0 and len(tasks) > 1:
            self.report("return/wrong_belief", self.episodes(tasks, self.another(belief)), split, shot)
        with torch.random.fork_rng(devices=[]):
            tuned = algorithm.fine_tune(belief, self.real, self.step, self.generator)
        if tuned is not None:
            self.report("return/fine_tuned", self.episodes(tasks, tuned), split, shot)

    @staticmethod
    def another(belief: TensorDict) -> TensorDict:
        """Each task gets the belief of the task half the list away."""
        return belief[torch.arange(len(belief)).roll(max(len(belief) // 2, 1))]

    def _model_errors(self, tasks: Tensor, belief: TensorDict, episodes: TensorDict, steps: int) -> dict[str, Tensor]:
        """Of the model under its own and under another task's belief, and of the baselines under what they are told."""
        device, model, told = self.algorithm.device, self.algorithm.model, self.algorithm.family.scale(tasks)
        assert model is not None
        beliefs: dict[str, tuple[Model, TensorDict]] = {"": (model, belief), "wrong": (model, self.another(belief))}
        beliefs |= {name: (model, model.tell(told.to(device))) for name, model in self.baselines.items()}

        def fresh() -> TensorDict:
            return self.context(tasks, steps).to(device)

        return self.algorithm.model_errors(episodes.to(device), fresh, beliefs)

    def _probe(self, tasks: Tensor, context: TensorDict, split: str, shot: int) -> None:
        """Linear read-out of the task parameters from the latent, fitted on fresh training tasks, scored on `tasks`."""
        family = self.algorithm.family
        training = family.sample(64, self.generator)
        belief, seen = self.adapt(context, shot), self.adapt(self.context(training, shot), shot)
        if "scale" in belief.keys():  # noqa: SIM118 - a TensorDict has no `in`
            scale, loc = float(belief["scale"].mean()), belief["loc"]
            spread = float(loc.std(0).norm() / loc.shape[1] ** 0.5)
            for name, value in (("scale", scale), ("spread", spread), ("collapse", float(spread < 0.1 * scale))):
                self.add(f"latent/{name}", value, split=split, shot=shot)
        seen_latent, latent = seen["latent"].cpu(), belief["latent"].cpu()
        scores = linear_probe(seen_latent, family.scale(training), latent, family.scale(tasks))
        for name, score in zip(family.parameters, scores.tolist(), strict=True):
            self.add(f"probe/r2/{name}", score, split=split, shot=shot)
