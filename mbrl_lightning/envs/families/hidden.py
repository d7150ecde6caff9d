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

from mbrl_lightning.envs.bodies.body import Body, body_spec
from mbrl_lightning.envs.families.switching import Schedule, SwitchingSimulator, hide
from mbrl_lightning.envs.family import Box, TaskFamily
from mbrl_lightning.envs.learned_reward import received, rewarded
from mbrl_lightning.envs.spec import EnvSpec, identity
from mbrl_lightning.errors import ConfigError

PreviousReward = Literal["observation", "history"]
TEST_TASKS, TEST_SEED, CONTEXT_STEPS = 20, 20290, 200


@dataclass(frozen=True)
class HiddenTask:
    """What is hidden, as in TaskFamily.

    Attributes:
        parameters: see there, as draw, rescale, test, shared (_tasks) and distant.
        another: see Schedule; None: tasks are drawn anew.
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


def hidden_spec(
    name: str, body: Body, pay: Pay, horizon: int, previous_reward: PreviousReward, told: tuple[str, ...] = ()
) -> EnvSpec:
    """The visible entries of ``body``, the parameters that are ``told``, and the reward just received."""
    if previous_reward not in ("observation", "history"):
        raise ConfigError(f"previous_reward={previous_reward!r} is no place.", "Choose observation or history.")

    def speed(episodes: TensorDictBase) -> Tensor:
        """In the wanted direction, read off the rewards."""
        return (
            episodes["next", "reward"].squeeze(-1) + pay.effort * episodes["action"].square().sum(-1) - pay.bonus
        ) / pay.weight

    visible = body_spec(name, body, horizon, received, speed, last=told)
    spec = rewarded(visible, shown=previous_reward == "observation")
    return replace(spec, outcome=lambda next_observation: next_observation[..., -1:])


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
        context_steps=context_steps,
        switch_every=schedule.every,
        shared_tasks=task.shared,
        distant=task.distant,
    )
