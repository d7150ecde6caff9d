"""Families of M3PO: what is hidden switches in flight. Directions, a crippled leg, mass and friction, a pier of blocks.

Sums of rewards. Options of all of them:

* ``switch_every_steps``: mean steps between switches; None: only at the start of an episode.
* ``jitter``: relative half-width of those steps.
* ``horizon``: steps per episode.
* ``flip``: a switch always takes another task; otherwise the task is drawn anew and may stay.
* ``previous_reward``: where networks see it, in the "observation" or in the "history" only.
* ``told``: show the task: the ceiling of what a history can be worth.
* ``lasting``: a simulator's row keeps its first task over its episodes (all but ``ant_crippled_leg``).

Where there are only a few tasks, the test tasks are those with which an episode starts, each equally often.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import torch
from torch import Tensor

from mbrl_lightning.envs.bodies import ant as ants
from mbrl_lightning.envs.bodies import half_cheetah as cheetahs
from mbrl_lightning.envs.bodies import humanoid, pier, planar, point
from mbrl_lightning.envs.bodies.body import Body
from mbrl_lightning.envs.bodies.edits import paint_direction
from mbrl_lightning.envs.families.hidden import (
    CONTEXT_STEPS,
    TEST_TASKS,
    HiddenTask,
    Pay,
    PreviousReward,
    boxed,
    directions,
    hidden_family,
)
from mbrl_lightning.envs.families.switching import Schedule
from mbrl_lightning.envs.family import Box, TaskFamily
from mbrl_lightning.envs.spec import never
from mbrl_lightning.errors import ConfigError

CHEETAH_COST, CHEETAH_RESET = 0.05, 0.1


def _switching(
    name: str,
    body: Callable[[], Body],
    pay: Pay,
    task: Callable[[bool], HiddenTask] = directions,
    every: int | None = 300,
    steps: int = 1000,
    turns: bool = False,
    place: PreviousReward = "observation",
    context_steps: int = CONTEXT_STEPS,
) -> Callable[..., TaskFamily]:
    """The function of a family; arguments after ``task`` are the defaults of its options, which are listed above."""

    def family(
        switch_every_steps: int | None = every,
        jitter: float = 0.1,
        horizon: int = steps,
        flip: bool = turns,
        previous_reward: PreviousReward = place,
        told: bool = False,
        lasting: bool = False,
    ) -> TaskFamily:
        hidden = task(flip)
        schedule = Schedule(hidden.draw, horizon, switch_every_steps, jitter, hidden.another, lasting)
        return hidden_family(name, body(), hidden, pay, schedule, previous_reward, context_steps, told)

    return family


# M3PO in a minute. Reward d v'_x - 0.1 |a|^2. Blind, the best return is 0; with the direction known about 340 in 200 steps.
point_switch = _switching(
    "point_switch", point.point_body, Pay(0.1), every=50, steps=200, turns=True, place="history", context_steps=50
)
# Reward d (x' - x) / dt - 0.05 |a|^2; nothing ends an episode early.
half_cheetah_fwd_bwd = _switching(
    "half_cheetah_fwd_bwd",
    lambda: cheetahs.half_cheetah_body(paint_direction, cheetahs.around_rest(CHEETAH_RESET)),
    Pay(CHEETAH_COST),
)
# ProMP's. Reward d (x' - x) / dt - 0.5 |a|^2 + 1. The episode ends at the fall, as in the next two.
ant_fwd_bwd = _switching("ant_fwd_bwd", lambda: ants.ant_body(paint_direction), Pay(0.5, bonus=1.0))
# ProMP's. Reward 1.25 d v - 0.1 |0.4 a|^2 + 5, v the speed of the centre of mass, which a model has to learn with the rest of the
# reward; contact forces cost nothing.
humanoid_direc = _switching(
    "humanoid_direc",
    lambda: humanoid.humanoid_body(paint_direction),
    Pay(humanoid.CONTROL_COST * humanoid.CONTROL_SCALE**2, humanoid.ALIVE_BONUS, weight=1.25),
)


def _random_parameters(flip: bool) -> HiddenTask:
    ends = planar.BASE**-planar.LIMIT, planar.BASE**planar.LIMIT
    return boxed(("torso_mass_scale", "friction_scale"), Box(ends[:1] * 2, ends[1:] * 2, log=True))


# Torso mass (with its inertia) and ground friction are nominal values times 1.5^u, u ~ U[-3, 3] (after rand_param_envs); nominal
# friction is the floor's 0.7. Reward (x' - x) / dt + 1 - 0.001 |a|^2.
walker2d_random_params = _switching(
    "walker2d_random_params",
    lambda: planar.walker2d_body(planar.write_parameters),
    Pay(1e-3, bonus=1.0),
    _random_parameters,
)


def _blocks(flip: bool) -> HiddenTask:
    count, (low, high) = len(pier.BLOCKS), zip(pier.DAMPING, pier.FRICTION, strict=True)
    names = tuple(f"{what}_{number}" for what in ("damping", "friction") for number in range(count))
    box = Box((low[0],) * count + (low[1],) * count, (high[0],) * count + (high[1],) * count)
    return boxed(names, box, tuple(name for name in names if not name.endswith("_1")))  # an episode begins on block 1


# Reward: forward speed of the centre of mass - 0.05 |a|^2, steps of 0.01 s; nothing ends an episode early.
half_cheetah_pier = _switching(
    "half_cheetah_pier", lambda: pier.pier_body(CHEETAH_RESET), Pay(CHEETAH_COST), _blocks, every=None
)


def legs(flip: bool, unseen: int | None = None) -> HiddenTask:
    """Which leg, 0 to 3, equally likely; a ``flip`` always takes another; all tests and no training have the ``unseen`` one."""
    test = torch.arange(TEST_TASKS, dtype=torch.float64).unsqueeze(1) % 4
    seen = torch.tensor([leg for leg in range(4) if leg != unseen], dtype=torch.float64)

    def draw(n: int, generator: torch.Generator) -> Tensor:
        return seen[torch.randint(len(seen), (n, 1), generator=generator, device=generator.device).cpu()]

    def another(tasks: Tensor, generator: torch.Generator) -> Tensor:
        onward = torch.randint(1, 4, tasks.shape, generator=generator, device=generator.device)
        return (tasks + onward.to(tasks)) % 4

    task = HiddenTask(("leg",), draw, lambda t: (t - 1.5) / 1.5, test, shared=True, another=another if flip else None)
    if unseen is None:
        return task
    return dataclasses.replace(task, test=torch.full_like(test, unseen), shared=False, another=None)


def ant_crippled_leg(
    switch_every_steps: int | None = 300,
    jitter: float = 0.1,
    horizon: int = 1000,
    flip: bool = False,
    previous_reward: PreviousReward = "observation",
    told: bool = False,
    unseen_leg: int | None = None,
) -> TaskFamily:
    """Run forwards with one leg crippled, drawn anew every 270 to 330 steps.

    Reward: forward speed of the centre of mass + 0.05; nothing ends an episode early (learning_to_adapt, there with steps
    of 0.02 s and 41 observation entries). ``unseen_leg`` is crippled in every test task and in no training task (L2A);
    episodes must not switch then.
    """
    if unseen_leg is not None and (switch_every_steps is not None or unseen_leg not in range(4)):
        raise ConfigError(
            f"unseen_leg={unseen_leg} with switch_every_steps={switch_every_steps}: legs are 0 to 3, and a test episode "
            "keeps its leg",
            "set env.options.switch_every_steps=null and one of four legs",
        )
    family = _switching(
        "ant_crippled_leg",
        lambda: dataclasses.replace(ants.ant_body(ants.cripple, whole=True), fallen=never),
        Pay(effort=0.0, bonus=0.05),
        functools.partial(legs, unseen=unseen_leg),
    )
    return family(switch_every_steps, jitter, horizon, flip, previous_reward, told)
