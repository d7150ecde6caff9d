"""What an algorithm is: a model, a policy, a belief that is carried, and a way to improve the policy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from mbrl_lightning.config.schema import Config
from mbrl_lightning.data.buffer import TaskBuffer
from mbrl_lightning.data.collect import Agent, Uniform
from mbrl_lightning.data.control import Control
from mbrl_lightning.data.world import RealWorld
from mbrl_lightning.envs.family import TaskFamily
from mbrl_lightning.models.base import Model
from mbrl_lightning.models.imagination import mean_return, trajectories
from mbrl_lightning.models.measures import model_errors
from mbrl_lightning.networks.step import GradientStep


class Algorithm(nn.Module):
    """Base of all methods. A belief is a TensorDict with batch `[M]`, handed in and handed back; nothing else remembers.

    What a method does differently is a method of this class with another body: a new one gives `adapt` and `improve`, and
    `fit` where it has a model.

    Attributes:
        family: the task family.
        cfg: the run's configuration.
        dynamics: the model, or None for model-free methods.
        policy: the deployed policy: a `Policy`, a `SoftPolicy`, or a `SAC` of methods on histories.
        control: what becomes of the policy's choices, and of the explorer's.
        optimizers: by name; part of the checkpoint.
        generator: draws all that the policy search draws; part of the checkpoint.
        iteration: outer iterations that this algorithm has been improved in.
    """

    dynamics: Model | None
    policy: Any
    iteration: Tensor

    def __init__(self, family: TaskFamily, cfg: Config) -> None:
        super().__init__()
        self.family, self.cfg, self.spec = family, cfg, family.spec
        self.control = Control(self.spec)
        self.dynamics = None
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.generator = torch.Generator().manual_seed(int(torch.randint(2**31, ())))
        self.register_buffer("iteration", torch.zeros((), dtype=torch.long))

    @property
    def device(self) -> torch.device:
        """Where the networks are, and so are beliefs."""
        return self.iteration.device

    @property
    def model(self) -> Model | None:
        """The model if it is ever fitted: what there is to measure and to draw."""
        return self.dynamics

    # -- the belief

    def begin(self, tasks: int) -> TensorDict:
        """What is believed of M = `tasks` tasks before any transition; by default an empty `latent` `[M, 0]`."""
        nothing = TensorDict({"latent": torch.zeros(tasks, 0, device=self.device)}, batch_size=[tasks])
        return self.control.begin(nothing)

    def adapt(self, belief: TensorDict, transitions: TensorDictBase) -> TensorDict:
        """The belief `[M]` after a context of K further transitions `[M, K]`, or after the one step just made, `[M]`.

        By default nothing is learned from either.
        """
        return belief

    @torch.no_grad()
    def act(
        self, belief: TensorDict, observation: Tensor, noise: torch.Generator | None = None
    ) -> tuple[Tensor, TensorDict]:
        """Actions `[M, A]` for observations `[M, S]`, on the CPU, and the belief after the choice.

        Args:
            belief: batch `[M]`, one row an environment.
            observation: `[M, S]`.
            noise: draws a sampled action; None gives the best one.
        """

        def choose(belief: TensorDict) -> tuple[Tensor, TensorDict]:
            seen = observation.to(self.device)
            if noise is None:
                return self.policy.act(seen, belief).cpu(), belief
            taken = self.sample(seen, belief, noise)
            if len(taken) > 1:
                belief = belief.clone(False).set("taken", TensorDict(taken, batch_size=[len(seen)]))
            return taken["action"].cpu(), belief

        return self.control.act(choose, belief, observation)

    def sample(self, observation: Tensor, belief: TensorDict, noise: torch.Generator) -> dict[str, Tensor]:
        """A sampled `action` `[M, A]`, and what on-policy learning has to know of it: `act` leaves that as `taken`."""
        drawn = self.policy.noise((len(observation),), noise).to(self.device)
        return {"action": self.policy.act(observation, belief, drawn)}

    def imagine(self, belief: TensorDict, observation: Tensor, action: Tensor) -> Tensor:
        """Where each member of the `model` expects actions `[M, H, A]` to lead from observations `[M, S]`: `[E, M, H, S]`.

        It is asked under the belief with which it is acted there, which stays as it is meanwhile.
        """
        assert self.model is not None
        return trajectories(self.model, self.act(belief, observation)[1], observation, action)

    # -- training

    def collect(self, world: RealWorld) -> dict[str, float]:
        """Real data of one iteration: exploration of new tasks, then the policy's own episodes; returns metrics.

        In the first iteration, when there is no policy to speak of, all of it is exploration. Where no model is fitted after
        it there is nothing to do: `improve` collects on policy.
        """
        if self.dynamics is None:
            return {}
        loop, first = self.cfg.loop, world.iteration == 0
        steps = loop.episode_steps or self.spec.horizon
        if world.iteration % loop.redraw_every == 0:
            world.draw(self.drawn(world, loop.tasks_per_iteration))
            random_steps = loop.exploration_steps + first * loop.episodes_per_task * steps
            if random_steps:
                uniform = Uniform(self.control)
                start, index = uniform.begin(len(world.tasks)), world.index
                list(world.interact(world.tasks, uniform, start, random_steps, exploratory=True, index=index))
        if first or loop.episodes_per_task == 0:
            return {}
        context = world.real.draw_context(world.index, self.family.context_steps, world.streams["envs"])
        belief = self.adapt(self.begin(len(context)), context.to(self.device))
        rows = torch.arange(len(world.tasks)).repeat_interleave(loop.episodes_per_task)
        start = self.collectors(belief[rows.to(self.device)])
        (data,) = world.interact(world.tasks[rows], self, start, steps, index=world.index[rows])
        return {"real/return": float(mean_return(data, self.spec))}

    def drawn(self, world: RealWorld, count: int) -> Tensor:
        """The `count` tasks in which real data are collected, `[count, P]`."""
        return self.family.sample(count, world.streams["tasks"])

    def warm_up(self, world: RealWorld, steps: int, control: Control) -> dict[str, float]:
        """`collect` of off-policy methods: random actions in one task, in the first iteration; `improve` collects the rest.

        Args:
            world: where.
            steps: real steps.
            control: what becomes of what is drawn.
        """
        if world.iteration == 0 and steps:
            uniform = Uniform(control)
            list(world.interact(world.family.sample(1, world.streams["tasks"]), uniform, uniform.begin(1), steps))
        return {}

    def collectors(self, belief: TensorDict) -> TensorDict:
        """The belief that training episodes begin with, one row an episode; by default what is deployed."""
        return belief

    def fit(self, real: TaskBuffer, step: GradientStep, steps: int, generator: torch.Generator) -> dict[str, float]:
        """Fit the model to real data by at most `steps` optimizer steps; returns its losses. By default there is none."""
        return {}

    def improve(self, world: RealWorld, step: GradientStep) -> dict[str, float]:
        """Improve the policy; returns metrics (`imagined/return` where there is imagination)."""
        raise NotImplementedError(f"{type(self).__name__} has no improve()")

    # -- meta-testing

    def explorer(self, tasks: int) -> tuple[Agent, TensorDict]:
        """Who gathers contexts of M = `tasks` unseen tasks, and with what belief; by default random actions."""
        uniform = Uniform(self.control)
        return uniform, uniform.begin(tasks)

    def shots(self, full: bool) -> list[int]:
        """Numbers of context transitions after which a meta-test lets the method act.

        The first is the one that curves and controls are for. A method that learns nothing from a context is given none.

        Args:
            full: of the whole meta-test, with all of `evaluation.shots`; otherwise the first alone.
        """
        return [0]

    def contexts(self, full: bool) -> list[int]:
        """`shots` of a method that learns from contexts: the family's context, then its other multiples."""
        size = self.cfg.evaluation.context or self.family.context_steps
        others = {round(size * shot) for shot in self.cfg.evaluation.shots} - {size}
        return [size, *sorted(others)] if full else [size]

    def controls(self, belief: TensorDict) -> dict[str, TensorDict]:
        """Further beliefs `[M]` to act under in a meta-test, by name: rows `return/<name>`."""
        return {}

    def fine_tune(
        self, belief: TensorDict, real: TaskBuffer, step: GradientStep, generator: torch.Generator
    ) -> TensorDict | None:
        """Belief with policies adapted by gradient steps in imagination (Algorithm 2); None if the method has none."""
        return None

    def measures(
        self, episodes: TensorDict, real: TaskBuffer, step: GradientStep, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """What only this method has to measure in its evaluation episodes, by metric: one number, or one a task `[M]`.

        Args:
            episodes: `[M, episodes, T]`.
            real: training data.
            step: whose devices to use.
            generator: the evaluation stream.
        """
        return {}

    def output_errors(self, play: Callable[[], TensorDict]) -> Tensor | None:
        """Errors of each output before and after adapting inside episodes: `[2, S]`, in squared units.

        Args:
            play: gives evaluation episodes `[M, episodes, T]`; not asked where nothing adapts there, which is said by None.
        """
        return None

    def model_errors(
        self,
        episodes: TensorDict,
        fresh: Callable[[], TensorDict],
        beliefs: dict[str, tuple[Model, TensorDict]],
    ) -> dict[str, Tensor]:
        """Errors of the model on transitions of unseen tasks; see `models.measures.model_errors`. By default of any model."""
        return {} if self.model is None else model_errors(episodes, fresh(), beliefs)
