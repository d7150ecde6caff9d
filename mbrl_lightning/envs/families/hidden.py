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

from mbrl_lightning.envs.bodies.body import Body
from mbrl_lightning.envs.families.switching import Schedule, SwitchingSimulator, hide
from mbrl_lightning.envs.family import Box, TaskFamily
from mbrl_lightning.envs.spec import EnvSpec, identity, never
from mbrl_lightning.errors import ConfigError

PreviousReward = Literal["observation", "history"]
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
        directed: the first parameter is +1 or -1, the direction in which speed is paid.
    """

    parameters: tuple[str, ...]
    draw: Callable[[int, torch.Generator], Tensor]
    rescale: Callable[[Tensor], Tensor]
    test: Tensor
    shared: bool = False
    another: Callable[[Tensor, torch.Generator], Tensor] | None = None
    distant: tuple[str, ...] = ()
    directed: bool = False

    def schedule(self, horizon: int, every: int | None, jitter: float) -> Schedule:
        """When this task changes; see Schedule."""
        return Schedule(self.draw, horizon, every, jitter, self.another)


@dataclass(frozen=True)
class Pay:
    """What is paid: weight * speed - effort |a|^2 + bonus, the speed in the hidden direction if there is one."""

    effort: float
    bonus: float = 0.0
    weight: float = 1.0


def directions(flip: bool = False) -> HiddenTask:
    """Forwards (+1) or backwards (-1), equally likely; with ``flip`` a switch always turns round, else it may stay."""
    test = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(TEST_TASKS // 2).unsqueeze(1)

    def draw(n: int, generator: torch.Generator) -> Tensor:
        sign = torch.randint(2, (n, 1), generator=generator, device=generator.device).cpu()
        return 2.0 * sign.double() - 1

    def turned(tasks: Tensor, generator: torch.Generator) -> Tensor:
        return -tasks

    another = turned if flip else None
    return HiddenTask(("direction",), draw, identity, test, shared=True, another=another, directed=True)


def boxed(parameters: tuple[str, ...], box: Box, distant: tuple[str, ...] = ()) -> HiddenTask:
    """Parameters drawn from ``box``, with fixed test draws."""
    return HiddenTask(parameters, box.sample, box.scale, box.draws(TEST_TASKS, TEST_SEED), distant=distant)


def received(observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
    """The reward of every family of this kind: the last entry of the next observation."""
    return next_observation[..., -1]


def outcome(next_observation: Tensor) -> Tensor:
    """The reward as a history holds it, [..., 1]."""
    return next_observation[..., -1:]


def hidden_spec(
    name: str, body: Body, pay: Pay, horizon: int, previous_reward: PreviousReward, told: tuple[str, ...] = ()
) -> EnvSpec:
    """The visible entries of ``body``, so that functions of them hold for the observation as well, and the last reward.

    The names ``told`` of parameters that are shown come between them.

    Raises:
        ConfigError: ``previous_reward`` is no place.
    """
    if previous_reward not in ("observation", "history"):
        raise ConfigError(f"previous_reward={previous_reward!r} is no place.", "Choose observation or history.")
    width, count = len(body.names), len(told) + 1
    shown = None if previous_reward == "observation" else -1

    def features(observation: Tensor) -> Tensor:
        return torch.cat([body.features(observation[..., :width]), observation[..., width:shown]], -1)

    def target(observation: Tensor, next_observation: Tensor) -> Tensor:
        change = body.target(observation[..., :width], next_observation[..., :width])
        return torch.cat([change, next_observation[..., width:]], -1)

    def untarget(observation: Tensor, change: Tensor) -> Tensor:
        following = body.untarget(observation[..., :width], change[..., :-count])
        return torch.cat([following, change[..., -count:]], -1)

    def metrics(episodes: TensorDictBase) -> dict[str, Tensor]:
        """Metres in the wanted direction, read off the rewards, and the steps that an episode lasted if it may end early."""
        reward, valid = episodes["next", "observation"][..., -1], episodes["valid"]
        speed = (reward + pay.effort * episodes["action"].square().sum(-1) - pay.bonus) / pay.weight
        lasted = {} if body.fallen is never else {"upright/first_fall": valid.to(speed).sum(-1)}
        return {"distance": body.dt * (speed * valid).sum(-1)} | lasted

    return EnvSpec(
        name,
        (*body.names, *told, "previous_reward"),
        action_dim=body.action_dim,
        horizon=horizon,
        unit="episode",
        reward=received,
        termination=body.fallen,
        features=features,
        target=target,
        untarget=untarget,
        outcome=outcome,
        metrics=metrics,
    )


def hidden_family(
    name: str,
    body: Body,
    task: HiddenTask,
    pay: Pay,
    schedule: Schedule,
    previous_reward: PreviousReward,
    context_steps: int = CONTEXT_STEPS,
    told: bool = False,
) -> TaskFamily:
    """The family: ``body`` with ``task`` hidden behind what is paid, or in the dynamics.

    Networks see the ``previous_reward`` in the current "observation" (and the history), or in the "history" only. With ``told``
    observations hold the task in force, scaled: the ceiling of what a history can be worth.
    """
    spec = hidden_spec(name, body, pay, schedule.horizon, previous_reward, task.parameters if told else ())
    show = task.rescale if told else hide
    everything = replace(spec, observation_names=(*body.unseen, *body.names))
    visible = slice(len(body.unseen), None)

    def reward(before: Tensor, action: Tensor, after: Tensor, tasks: Tensor) -> Tensor:
        speed = after[..., body.speed]
        if task.directed:
            speed = tasks[..., 0] * speed
        return pay.weight * speed - pay.effort * action.square().sum(-1) + pay.bonus

    def build(tasks: Tensor) -> SwitchingSimulator:
        return SwitchingSimulator(body.build(everything, tasks), spec, tasks, reward, schedule, visible, show)

    return TaskFamily(
        spec=spec,
        parameters=task.parameters,
        draw=task.draw,
        build=build,
        rescale=task.rescale,
        test=task.test,
        extreme=torch.empty(0, len(task.parameters), dtype=torch.float64),
        context_steps=context_steps,
        switch_every=schedule.every,
        shared_tasks=task.shared,
        distant=task.distant,
    )
