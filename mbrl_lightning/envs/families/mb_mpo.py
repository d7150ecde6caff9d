"""Families of MB-MPO, in which nothing varies: five runners, an arm and a point (appendix A.1).

gymnasium's bodies and time steps, 200 steps an episode. Rewards and ends are those of the paper's code:
speed - cost |a|^2 (+ 1 for every step not fallen before, the step of the fall included).
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from mbrl_lightning.envs.bodies import ant as ants
from mbrl_lightning.envs.bodies import arm, planar
from mbrl_lightning.envs.bodies import half_cheetah as cheetahs
from mbrl_lightning.envs.bodies import point2d as points
from mbrl_lightning.envs.bodies.body import Body, half_uniform, runner_spec
from mbrl_lightning.envs.bodies.edits import leave
from mbrl_lightning.envs.bodies.mujoco import MujocoSimulator
from mbrl_lightning.envs.family import TaskFamily, one_task
from mbrl_lightning.envs.spec import EnvSpec

HORIZON = 200


def _runner(name: str, body: Body, cost: float, bonus: float = 0.0) -> Callable[..., TaskFamily]:
    """The function of a family; its option is the number of steps of an episode (1000 in Fig. 5, 100 with noisy models)."""

    def family(horizon: int = HORIZON) -> TaskFamily:
        spec = runner_spec(name, body, horizon, cost, bonus)
        return one_task(spec, functools.partial(body.build, spec), horizon)

    return family


# What is observed: the mean speed, then gymnasium's entries (of the ant 27, without contact forces, as in the paper's code).
# Where an episode ends is said by each body's `fallen`.
swimmer = _runner("swimmer", planar.swimmer_body(scale=0.1), cost=1e-4)
half_cheetah_200 = _runner(
    "half_cheetah_200",
    cheetahs.half_cheetah_body(leave, functools.partial(half_uniform, nq=9, nv=9, scale=0.1)),
    cost=0.1,
)
hopper = _runner("hopper", planar.hopper_body(scale=0.005), cost=1e-3, bonus=1.0)
walker2d = _runner("walker2d", planar.walker2d_body(leave), cost=1e-3, bonus=1.0)
ant = _runner("ant", ants.ant_body(leave), cost=0.005, bonus=1.0)


def arm_reach(horizon: int = HORIZON) -> TaskFamily:
    """Bring the tip to a goal that is drawn anew for each episode: ``horizon`` steps of 0.05 s, sums of rewards."""
    spec = EnvSpec("arm_reach", arm.NAMES, arm.COUNT, horizon, "episode", arm.reward, metrics=arm.metrics)
    return one_task(spec, functools.partial(MujocoSimulator, spec, body=arm.arm_body(scale=0.005)), horizon)


def point2d() -> TaskFamily:
    """Go to the origin from U[-2, 2]^2 by at most 0.1 per axis and step; -|s|^2 summed over 30 steps. Optimum -14.7."""
    return one_task(points.SPEC, functools.partial(points.build, points.SPEC), points.HORIZON)
