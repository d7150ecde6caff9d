"""Task families: a spec, what varies from task to task, and fixed unseen tasks to test on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mbrl_lightning.envs.spec import EnvSpec, Simulator
from mbrl_lightning.envs.task_env import TaskEnv
from mbrl_lightning.errors import ConfigError

ONE_TASK_TESTS, MOST_ROUNDS, SAME = 20, 200, 1e-9


@dataclass(frozen=True)
class Box:
    """Independent ranges low .. high for P task parameters, uniform or log-uniform, or values to choose from.

    Attributes:
        low: P lower ends.
        high: P upper ends.
        log: draw and scale in logarithms (both ends must be positive).
        choices: values of those parameters (by number) that take no others; their ends are the smallest and the largest.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    log: bool = False
    choices: Mapping[int, tuple[float, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ends = [*self.low, *self.high]
        if not all(map(math.isfinite, ends)) or not all(a < b for a, b in zip(self.low, self.high, strict=True)):
            cause = f"task ranges {self.low} .. {self.high} are not low < high."
            raise ConfigError(cause, "Give finite (low, high) pairs.")
        if self.log and min(self.low) <= 0:
            raise ConfigError(f"log-uniform task ranges need positive ends, got {self.low}.", "Use log=False.")

    def _ends(self) -> tuple[Tensor, Tensor]:
        low, high = (torch.tensor(end, dtype=torch.float64) for end in (self.low, self.high))
        return (low.log(), high.log()) if self.log else (low, high)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """N draws, float64 [n, P]."""
        low, high = self._ends()
        unit = torch.rand(n, len(self.low), generator=generator, dtype=torch.float64, device=generator.device).cpu()
        value = low + unit * (high - low)
        value = value.exp() if self.log else value
        for number, choices in self.choices.items():
            pick = (unit[:, number] * len(choices)).long()
            value[:, number] = torch.tensor(choices, dtype=torch.float64)[pick]
        return value

    def scale(self, tasks: Tensor) -> Tensor:
        """The parameters mapped so that the box is [-1, 1], same shape and dtype as ``tasks``."""
        low, high = (end.to(tasks) for end in self._ends())
        return (2 * (tasks.log() if self.log else tasks) - low - high) / (high - low)

    def contains(self, tasks: Tensor) -> Tensor:
        """Bool [...]: all parameters inside the box (ends included) and among its choices."""
        inside = self.scale(tasks).abs() <= 1
        for number, choices in self.choices.items():
            inside[..., number] = torch.isin(tasks[..., number], torch.tensor(choices, dtype=tasks.dtype))
        return inside.all(-1)

    def draws(self, n: int, seed: int, outside: Box | None = None) -> Tensor:
        """N fixed draws from ``seed``, float64 [n, P], all outside the box ``outside`` if one is given."""
        generator = torch.Generator().manual_seed(seed)
        if outside is None:
            return self.sample(n, generator)
        kept = torch.empty(0, len(self.low), dtype=torch.float64)
        for _ in range(MOST_ROUNDS):
            fresh = self.sample(4 * n, generator)
            kept = torch.cat([kept, fresh[~outside.contains(fresh)]])
            if len(kept) >= n:
                return kept[:n]
        raise ConfigError(
            f"extreme ranges {self.low} .. {self.high} lie inside the training ranges {outside.low} .. {outside.high}.",
            "Give extreme ranges that reach beyond those of training.",
        )


def grid_of(*values: Sequence[float]) -> Tensor:
    """Every combination of the given values, float64 [product of lengths, number of arguments]."""
    axes = [torch.tensor(list(axis), dtype=torch.float64) for axis in values]
    return torch.cartesian_prod(*axes).reshape(-1, len(axes))


def same_tasks(first: Tensor, second: Tensor) -> Tensor:
    """Bool [n, m]: rows of ``first`` [n, P] and ``second`` [m, P] that are equal, but for rounding at their scale."""
    size = torch.cat([first, second]).abs().amax(0)
    return ((first[:, None] - second[None]).abs() <= SAME * size).all(-1)


@dataclass(frozen=True)
class TaskFamily:
    """One body or problem, a distribution of training tasks, and fixed unseen tasks.

    Attributes:
        spec: what all tasks share.
        parameters: names of the P numbers that make a task.
        draw: (n, generator) -> n training tasks, float64 [n, P].
        build: tasks [B, P] float64 -> Simulator with one row each.
        rescale: parameters [..., P] about [-1, 1] over the training range (in logarithms where drawn so): the told truth.
        test: float64 [n, P], unseen tasks inside the training range, the same in every run.
        extreme: float64 [n, P], tasks outside the training range (may have 0 rows).
        context_steps: K, random-policy transitions a meta-test gives before the policy acts.
        grid: float64 [n, P] if training tasks are a finite set, else None.
        switch_every: mean steps between switches of a hidden task inside an episode; None: it never switches there.
        shared_tasks: the test tasks are training tasks by design: there are no others (two directions, four legs).
        paid: (obs [..., S], action [..., A], next obs [..., S], task [..., P]) -> [...], what a task pays, where tasks differ in
            that alone, it follows from what is seen, and it stands last in the next observation; None: they differ otherwise.
        distant: parameters that act in one place only, or nowhere, so that a short random episode need not meet them.
    """

    spec: EnvSpec
    parameters: tuple[str, ...]
    draw: Callable[[int, torch.Generator], Tensor]
    build: Callable[[Tensor], Simulator]
    rescale: Callable[[Tensor], Tensor]
    test: Tensor
    extreme: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.float64))
    context_steps: int = 50
    grid: Tensor | None = None
    switch_every: int | None = None
    shared_tasks: bool = False
    distant: tuple[str, ...] = ()
    paid: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        if self.grid is not None and not len(self.grid):
            raise ConfigError(f"{self.spec.name}: the list of training tasks is empty.", "Give one task or more.")

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """See ``draw``."""
        return self.draw(n, generator)

    def simulate(self, tasks: Tensor) -> Simulator:
        """A simulator with one row per row of ``tasks`` [B, P]."""
        if tasks.ndim != 2 or tasks.shape[1] != len(self.parameters):
            raise ConfigError(
                f"{self.spec.name}: tasks {tuple(tasks.shape)} do not fit parameters {self.parameters}.",
                f"Give a tensor [number of environments, {len(self.parameters)}].",
            )
        return self.build(tasks.double())

    def make(self, task: Sequence[float] | Mapping[str, float] | Tensor, render_mode: str | None = None) -> TaskEnv:
        """A plain ``gymnasium.Env`` of one task: P values, such as a row of ``test``, or a value by name; see ``TaskEnv``."""
        return TaskEnv(self.spec, self.simulate, self.parameters, task, render_mode)

    def described(self) -> dict[str, Any]:
        """What policies and models are made for, as plain values; kept with their weights."""
        spec = self.spec
        facts: dict[str, Any] = {"horizon": spec.horizon, "unit": spec.unit}
        facts |= {"actions": spec.action_dim, "discrete": spec.discrete}
        facts |= {f"observation {number}": name for number, name in enumerate(spec.observation_names)}
        return facts | {f"parameter {number}": name for number, name in enumerate(self.parameters)}

    def scale(self, tasks: Tensor) -> Tensor:
        """See ``rescale``."""
        return self.rescale(tasks)

    def require_several(self) -> None:
        """Raise ConfigError where one task is all there is: nothing is to be learned about adapting then."""
        drawn = self.sample(100, torch.Generator().manual_seed(0))
        if bool(same_tasks(drawn, drawn[:1]).all()):
            raise ConfigError(
                f"{self.spec.name}: there is one task in the whole family, and so nothing to adapt to.",
                "Choose another family, or a method that does not adapt (algorithm=trpo or ppo).",
            )

    def check_disjoint(self) -> None:
        """Raise ConfigError if a test or extreme task is also a training task of the grid."""
        for split, tasks in (("test", self.test), ("extreme", self.extreme)):
            if self.grid is not None and len(tasks) and (same := same_tasks(tasks, self.grid).any(1)).any():
                raise ConfigError(
                    f"{self.spec.name}: {split} task {tasks[same][0].tolist()} is also a training task.",
                    "Move the test values off the training grid.",
                )


def one_task(spec: EnvSpec, build: Callable[[Tensor], Simulator], context_steps: int) -> TaskFamily:
    """A family in which nothing varies (MB-MPO, whose tasks are its models): one task under one idle parameter, 1.

    Its 20 test tasks are that task, so they differ in their initial states alone. ``build`` may ignore the parameter.
    """
    return TaskFamily(
        spec=spec,
        parameters=("nominal",),
        draw=lambda n, generator: torch.ones(n, 1, dtype=torch.float64),
        build=build,
        rescale=lambda tasks: tasks - 1,
        test=torch.ones(ONE_TASK_TESTS, 1, dtype=torch.float64),
        context_steps=context_steps,
        shared_tasks=True,
        distant=("nominal",),
    )


def box_family(
    spec: EnvSpec,
    parameters: tuple[str, ...],
    build: Callable[[Tensor], Simulator],
    train: Box,
    beyond: Box | None,
    context_steps: int,
    tests: int,
    seed: int,
) -> TaskFamily:
    """A family whose ``tests`` test tasks are drawn from the box ``train``, too, with ``seed``; other arguments as in TaskFamily.

    As many extreme tasks are drawn from the wider ranges ``beyond``, with at least one parameter outside ``train``.
    """
    return TaskFamily(
        spec=spec,
        parameters=parameters,
        draw=train.sample,
        build=build,
        rescale=train.scale,
        test=train.draws(tests, seed),
        extreme=beyond.draws(tests, seed + 1, outside=train) if beyond else train.draws(0, 0),
        context_steps=context_steps,
        shared_tasks=len(train.choices) == len(parameters),
    )


def draw_from(grid: Tensor) -> Callable[[int, torch.Generator], Tensor]:
    """A ``TaskFamily.draw`` that picks rows of ``grid`` [G, P] uniformly, with replacement."""

    def draw(n: int, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(grid), (n,), generator=generator, device=generator.device)
        return grid[rows.to(grid.device)]

    return draw
