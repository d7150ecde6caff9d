"""Task families with a hidden task: a body, what is hidden, and a learned reward, put together (M3PO appendix A.5).

M3PO's history holds no reward, but in its direction tasks nothing else tells the task. So the previous reward is the
last entry of every observation; networks see it there, or only in the history of (observation, action, reward).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from tensordict import TensorDictBase
from torch import Tensor

from mbrl_lightning.envs.family import Box, TaskFamily
from mbrl_lightning.envs.spec import EnvSpec, add_difference, difference, identity, never
from mbrl_lightning.envs.switching import Retaskable, Reward, Schedule, SwitchingSimulator
from mbrl_lightning.errors import ConfigError

PreviousReward = Literal["observation", "history"]
Metrics = Callable[[TensorDictBase], dict[str, Tensor]]
TEST_TASKS, TEST_SEED, CONTEXT_STEPS = 20, 20290, 200


@dataclass(frozen=True)
class HiddenTask:
    """What is hidden, as in TaskFamily.

    Attributes:
        parameters: names of the P numbers.
        draw: (n, generator) -> float64 [n, P].
        rescale: tasks [..., P] -> about [-1, 1].
        test: float64 [n, P].
        shared: the test tasks are training tasks, because there are no others.
        another: see Schedule; None: tasks are drawn anew.
        distant: parameters that act in one place only, so that a short random episode need not meet them.
    """

    parameters: tuple[str, ...]
    draw: Callable[[int, torch.Generator], Tensor]
    rescale: Callable[[Tensor], Tensor]
    test: Tensor
    shared: bool = False
    another: Callable[[Tensor, torch.Generator], Tensor] | None = None
    distant: tuple[str, ...] = ()


@dataclass(frozen=True)
class Body:
    """The visible part of an observation, without the previous reward, and the entries behind it that only rewards see.

    Attributes:
        names: visible entries.
        unseen: further entries, which come *before* the visible ones in what ``build`` observes.
        action_dim: A.
        build: (spec with all of these entries, tasks [B, P]) -> simulator.
        features: visible entries -> what networks see.
        target: (visible, next visible) -> what a model predicts.
        untarget: its inverse.
    """

    names: tuple[str, ...]
    unseen: tuple[str, ...]
    action_dim: int
    build: Callable[[EnvSpec, Tensor], Retaskable]
    features: Callable[[Tensor], Tensor] = identity
    target: Callable[[Tensor, Tensor], Tensor] = difference
    untarget: Callable[[Tensor, Tensor], Tensor] = add_difference


def directions(flip: bool = False) -> HiddenTask:
    """Forwards (+1) or backwards (-1), equally likely.

    Args:
        flip: a switch always turns round; otherwise the direction is drawn anew and may stay.
    """
    test = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(TEST_TASKS // 2).unsqueeze(1)

    def draw(n: int, generator: torch.Generator) -> Tensor:
        sign = torch.randint(2, (n, 1), generator=generator, device=generator.device).cpu()
        return 2.0 * sign.double() - 1

    def turned(tasks: Tensor, generator: torch.Generator) -> Tensor:
        return -tasks

    return HiddenTask(("direction",), draw, identity, test, shared=True, another=turned if flip else None)


def boxed(parameters: tuple[str, ...], box: Box, distant: tuple[str, ...] = ()) -> HiddenTask:
    """Parameters drawn from ``box``, with fixed test draws."""
    return HiddenTask(parameters, box.sample, box.scale, box.draws(TEST_TASKS, TEST_SEED), distant=distant)


def received(observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
    """The reward of every family of this kind: the last entry of the next observation."""
    return next_observation[..., -1]


def outcome(next_observation: Tensor) -> Tensor:
    """The reward as a history holds it, [..., 1]."""
    return next_observation[..., -1:]


def switching_spec(
    name: str,
    body: Body,
    horizon: int,
    previous_reward: PreviousReward,
    termination: Callable[[Tensor], Tensor] = never,
    metrics: Metrics | None = None,
) -> EnvSpec:
    """The spec of a family with a hidden task.

    Args:
        name: family name.
        body: its visible entries come first, so functions of them hold for the observation as well.
        horizon: steps per episode.
        previous_reward: where networks see it: in the current "observation" (and the history), or in the "history" only.
        termination: of the next observation.
        metrics: see EnvSpec.

    Raises:
        ConfigError: ``previous_reward`` is neither.
    """
    if previous_reward not in ("observation", "history"):
        raise ConfigError(f"previous_reward={previous_reward!r} is no place.", "Choose observation or history.")
    width, seen = len(body.names), previous_reward == "observation"

    def features(observation: Tensor) -> Tensor:
        shown = body.features(observation[..., :width])
        return torch.cat([shown, observation[..., width:]], -1) if seen else shown

    def target(observation: Tensor, next_observation: Tensor) -> Tensor:
        change = body.target(observation[..., :width], next_observation[..., :width])
        return torch.cat([change, next_observation[..., width:]], -1)

    def untarget(observation: Tensor, change: Tensor) -> Tensor:
        following = body.untarget(observation[..., :width], change[..., :-1])
        return torch.cat([following, change[..., -1:]], -1)

    return EnvSpec(
        name,
        (*body.names, "previous_reward"),
        action_dim=body.action_dim,
        horizon=horizon,
        unit="episode",
        reward=received,
        termination=termination,
        features=features,
        target=target,
        untarget=untarget,
        outcome=outcome,
        metrics=metrics,
    )


def switching_family(
    spec: EnvSpec,
    body: Body,
    task: HiddenTask,
    reward: Reward,
    switch_every_steps: int | None,
    jitter: float,
    context_steps: int = CONTEXT_STEPS,
) -> TaskFamily:
    """The family: ``body`` under ``spec``, with ``task`` hidden behind ``reward`` or in the dynamics.

    Args:
        spec: see :func:`switching_spec`.
        body: the same that ``spec`` was made of.
        task: what is hidden.
        reward: of the unseen and visible entries, and of the task.
        switch_every_steps: mean steps between switches; None: only at the start of an episode.
        jitter: see Schedule.
        context_steps: random-policy transitions a meta-test may give.
    """
    schedule = Schedule(task.draw, spec.horizon, switch_every_steps, jitter, task.another)
    everything = replace(spec, observation_names=(*body.unseen, *body.names))
    visible = slice(len(body.unseen), None)

    def build(tasks: Tensor) -> SwitchingSimulator:
        return SwitchingSimulator(body.build(everything, tasks), spec, tasks, reward, schedule, visible)

    return TaskFamily(
        spec=spec,
        parameters=task.parameters,
        draw=task.draw,
        build=build,
        rescale=task.rescale,
        test=task.test,
        extreme=torch.empty(0, len(task.parameters), dtype=torch.float64),
        context_steps=context_steps,
        switch_every=switch_every_steps,
        shared_tasks=task.shared,
        distant=task.distant,
    )


def travelled(dt: float, effort: float, bonus: float = 0.0, weight: float = 1.0, falls: bool = False) -> Metrics:
    """Metric "distance": metres in the wanted direction, read off rewards weight * speed - effort * |a|^2 + bonus.

    Args:
        dt: seconds per step.
        effort: see above.
        bonus: see above.
        weight: see above.
        falls: episodes may end early; also tell "upright/first_fall", the number of steps they lasted.
    """

    def metrics(episodes: TensorDictBase) -> dict[str, Tensor]:
        reward, valid = episodes["next", "observation"][..., -1], episodes["valid"]
        speed = (reward + effort * episodes["action"].square().sum(-1) - bonus) / weight
        lasted = {"upright/first_fall": valid.to(speed).sum(-1)} if falls else {}
        return {"distance": dt * (speed * valid).sum(-1)} | lasted

    return metrics
