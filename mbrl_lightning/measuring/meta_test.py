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
from mbrl_lightning.data.collect import Act, collect, episode_returns, random_actions
from mbrl_lightning.data.windows import Histories
from mbrl_lightning.measuring.cloning import divergence_from_data
from mbrl_lightning.measuring.hidden_task import history_errors, rewards_by_task
from mbrl_lightning.models.base import Dynamics
from mbrl_lightning.models.measures import first_valid, linear_probe, multi_step_error, one_step_error, until_fall
from mbrl_lightning.models.mlp import MLPDynamics
from mbrl_lightning.models.recurrent import HistoryDynamics
from mbrl_lightning.networks.step import GradientStep
from mbrl_lightning.policies.sac import SAC

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
        """Test on `tasks` `[M, P]`.

        Args:
            tasks: unseen task parameters.
            split: name for the rows.
            full: everything; otherwise the return after K transitions alone.

        Returns:
            Means over tasks of the main metrics.
        """
        cfg, family = self.algorithm.cfg.evaluation, self.algorithm.family
        size = (cfg.context or family.context_steps) if self.algorithm.adapts else 0
        most, size = (
            size,
            0 if self.algorithm.deploys_prior else size,
        )  # `size`: the shot that curves and controls are for
        shots = sorted({size, *(round(most * shot) for shot in cfg.shots)}) if full else [size]
        context = self.context(tasks, max([*shots, size, 1]))
        summary: dict[str, float] = {}
        for shot in shots:
            belief = self.adapt(context, shot)
            episodes = self.episodes(tasks, self.deterministic(belief))
            summary["return/policy"] = self.report("return/policy", episodes, split, shot)
            self._body_metrics(episodes, split, shot)
            if shot == size:
                reference, at_size = episodes, belief
        summary["return/policy"] = self.report("", reference, split, size)
        if "hidden" in reference.keys():  # noqa: SIM118 - a TensorDict has no `in`
            rewards = rewards_by_task(reference.flatten(0, 1), self.algorithm.family.parameters[0])
            for name, value in rewards.items():
                self.add(name, value, split=split, shot=size)
        if isinstance(self.algorithm.model, HistoryDynamics):
            self._history_errors(self.algorithm.model, reference, split, size)
        for metric, values in self.algorithm.measures(reference).items():
            summary[metric] = self._rows(metric, values, split, size)
        if full:
            self._controls(tasks, at_size, split, size)
            if isinstance(self.algorithm.model, Dynamics):
                summary |= self._model_errors(tasks, at_size, reference, context, split, size)
                if at_size["latent"].shape[1]:
                    self._probe(tasks, context[:, :size], split, size)
        return summary

    # -- interaction

    def context(self, tasks: Tensor, steps: int) -> TensorDict:
        """Transitions `[M, steps]` of the tasks under what the algorithm explores with (random actions, unless it says so)."""
        simulator = self.algorithm.family.simulate(tasks)
        try:
            spec = self.algorithm.spec
            act = self.algorithm.exploration(len(tasks), self.generator)
            return collect(simulator, spec, act, steps, self.generator)
        finally:
            simulator.close()

    def adapt(self, context: TensorDict, shot: int) -> TensorDict:
        """Belief after the first `shot` transitions, on the CPU where the environments are."""
        device = self.step.fabric.device
        return self.algorithm.adapt(context[:, :shot].to(device)).cpu()

    def deterministic(self, belief: TensorDict) -> Callable[[int], Act]:
        """Best actions under `belief` `[M]`."""
        return lambda episodes: self._act(belief, episodes, sampled=False)

    def _act(self, belief: TensorDict, episodes: int, sampled: bool) -> Act:
        rows = torch.arange(len(belief)).repeat_interleave(episodes)
        return self.algorithm.actor(belief[rows], self.generator if sampled else None)

    def episodes(self, tasks: Tensor, actor: Callable[[int], Act]) -> TensorDict:
        """Evaluation episodes `[M, episodes, T]`; T is the horizon or less."""
        count = self.algorithm.cfg.evaluation.episodes
        simulator = self.algorithm.family.simulate(tasks.repeat_interleave(count, 0))
        try:
            spec = self.algorithm.spec
            data = collect(simulator, spec, actor(count), spec.horizon, self.generator, training=False)
        finally:
            simulator.close()
        return data.unflatten(0, (len(tasks), count))

    # -- measures

    def _rows(self, metric: str, values: Tensor, split: str, shot: int) -> float:
        for task, value in enumerate(values.tolist() if metric else []):
            if math.isfinite(value):  # a task may have nothing to measure, such as ten steps before the first fall
                self.add(metric, value, split=split, task=task, shot=shot)
        return float(values.nanmean())

    def report(self, metric: str, episodes: TensorDict, split: str, shot: int) -> float:
        """Add one row a task with its mean return over episodes `[M, episodes, T]`; returns the mean over tasks."""
        returns = episode_returns(episodes.reshape(-1, episodes.shape[-1]), self.algorithm.spec)
        return self._rows(metric, returns.view(episodes.shape[:2]).mean(1), split, shot)

    def _body_metrics(self, episodes: TensorDict, split: str, shot: int) -> None:
        if self.algorithm.spec.metrics is not None:
            for name, value in self.algorithm.spec.metrics(episodes).items():
                self._rows(name, value.mean(1), split, shot)

    def _controls(self, tasks: Tensor, belief: TensorDict, split: str, shot: int) -> None:
        cfg = self.algorithm.cfg.evaluation
        self.report(
            "return/random",
            self.episodes(tasks, lambda count: random_actions(self.algorithm.spec, self.generator)),
            split,
            shot,
        )
        if cfg.sampled:
            episodes = self.episodes(tasks, lambda count: self._act(belief, count, sampled=True))
            self.report("return/sampled", episodes, split, shot)
        for name, other in self.algorithm.controls(belief).items():
            self.report(f"return/{name}", self.episodes(tasks, self.deterministic(other)), split, shot)
        if cfg.wrong_belief and self.algorithm.adapts and shot > 0 and len(tasks) > 1:
            episodes = self.episodes(tasks, self.deterministic(self.another(belief)))
            self.report("return/wrong_belief", episodes, split, shot)
        own = self.algorithm.generator
        self.algorithm.generator = self.generator  # tuning for a test draws nothing from training
        try:
            with torch.random.fork_rng(devices=[]):
                tuned = self.algorithm.fine_tune(belief.to(self.step.fabric.device), self.real, self.step)
        finally:
            self.algorithm.generator = own
        if tuned is not None:
            episodes = self.episodes(tasks, self.deterministic(tuned.cpu()))
            self.report("return/fine_tuned", episodes, split, shot)

    @staticmethod
    def another(belief: TensorDict) -> TensorDict:
        """Each task gets the belief of the task half the list away."""
        return belief[torch.arange(len(belief)).roll(max(len(belief) // 2, 1))]

    def _model_errors(
        self, tasks: Tensor, belief: TensorDict, episodes: TensorDict, context: TensorDict, split: str, shot: int
    ) -> dict[str, float]:
        device, dynamics, family = self.step.fabric.device, self.algorithm.dynamics, self.algorithm.family
        assert isinstance(dynamics, Dynamics)
        fresh = self.context(tasks, context.shape[1])
        episodes = until_fall(episodes, dynamics.spec)
        onpolicy = first_valid(episodes.flatten(1, 2), 1000)
        summary = {}
        for suffix, targets in (("", onpolicy), ("_random", fresh)):
            right = one_step_error(dynamics, targets.to(device), belief.to(device))
            wrong = one_step_error(dynamics, targets.to(device), self.another(belief).to(device))
            for name in ("mse", "nmse", "null_mse", "null_nmse"):
                value = right[name]
                summary[f"model/{name}{suffix}"] = self._rows(f"model/{name}{suffix}", value, split, shot)
            for output, value in zip(dynamics.spec.observation_names, right["outputs"].tolist(), strict=True):
                if not math.isnan(value):  # an output that never changes
                    self.add(f"model/nmse{suffix}/{output}", value, split=split, shot=shot)
            others = {"wrong": wrong} | {
                name: one_step_error(baseline, targets.to(device), baseline.tell(family.scale(tasks).to(device)))
                for name, baseline in self.baselines.items()
            }
            for other, errors in others.items():
                for name in ("mse", "nmse"):
                    self._rows(f"model/{other}_{name}{suffix}", errors[name], split, shot)
        steps = multi_step_error(dynamics, episodes[:, 0].to(device), belief.to(device))
        self._rows("model/multi_step_nmse", steps, split, shot)
        return summary

    def _history_errors(self, dynamics: HistoryDynamics, episodes: TensorDict, split: str, shot: int) -> None:
        """The model on the policy's own episodes, with their histories and with others'; the policy against the data."""
        cfg, device, policy = self.algorithm.cfg, self.step.fabric.device, self.algorithm.policy
        seen = until_fall(episodes.flatten(0, 1), dynamics.spec).to(device)
        for name, value in history_errors(dynamics, seen, cfg.history.length, self.generator).items():
            self.add(f"model/{name}", value, split=split, shot=shot)
        if isinstance(policy, SAC):
            real = Histories(self.real, dynamics.inputs, cfg.history.length, device)
            value = divergence_from_data(policy, real, cfg, self.step, self.generator)
            self.add("policy/kl_cloned", value, split=split, shot=shot)

    def _probe(self, tasks: Tensor, context: TensorDict, split: str, shot: int) -> None:
        """Linear read-out of the task parameters from the latent, fitted on fresh training tasks, scored on `tasks`."""
        family = self.algorithm.family
        training = family.sample(64, self.generator)
        belief, seen = self.adapt(context, shot), self.adapt(self.context(training, shot), shot)
        if "scale" in belief.keys():  # noqa: SIM118 - a TensorDict has no `in`
            scale, spread = (
                float(belief["scale"].mean()),
                float(belief["loc"].std(0).norm() / belief["loc"].shape[1] ** 0.5),
            )
            self.add("latent/scale", scale, split=split, shot=shot)
            self.add("latent/spread", spread, split=split, shot=shot)
            self.add("latent/collapse", float(spread < 0.1 * scale), split=split, shot=shot)
        scores = linear_probe(seen["latent"], family.scale(training), belief["latent"], family.scale(tasks))
        for name, score in zip(family.parameters, scores.tolist(), strict=True):
            self.add(f"probe/r2/{name}", score, split=split, shot=shot)
