"""Families of MB-MPO, in which nothing varies: five runners, an arm and a point (appendix A.1).

gymnasium's bodies and time steps, 200 steps an episode. Rewards and ends are those of the paper's code:
speed - cost |a|^2 (+ 1 for every step not fallen before, the step of the fall included).
"""

from __future__ import annotations

import functools

from mbrl_lightning.envs.bodies import ant as ants
from mbrl_lightning.envs.bodies import arm
from mbrl_lightning.envs.bodies import half_cheetah as cheetahs
from mbrl_lightning.envs.bodies import hopper as hoppers
from mbrl_lightning.envs.bodies import point2d as points
from mbrl_lightning.envs.bodies import swimmer as swimmers
from mbrl_lightning.envs.bodies import walker2d as walkers
from mbrl_lightning.envs.bodies.body import Body, half_uniform, runner_spec
from mbrl_lightning.envs.bodies.edits import leave
from mbrl_lightning.envs.bodies.mujoco import MujocoSimulator
from mbrl_lightning.envs.family import TaskFamily, one_task
from mbrl_lightning.envs.spec import EnvSpec

HORIZON = 200


def _runner(name: str, body: Body, horizon: int, cost: float, bonus: float = 0.0) -> TaskFamily:
    spec = runner_spec(name, body, horizon, cost, bonus)
    return one_task(spec, functools.partial(body.build, spec), horizon)


def swimmer(horizon: int = HORIZON, reset_scale: float = 0.1) -> TaskFamily:
    """Swim forwards: speed - 0.0001 |a|^2, 200 steps of 0.04 s. Observation 9: mean speed, then gymnasium's 8.

    Args:
        horizon: steps per episode.
        reset_scale: half-width of the start, uniform on positions and velocities.
    """
    return _runner("swimmer", swimmers.swimmer_body(reset_scale), horizon, 1e-4)


def half_cheetah_200(horizon: int = HORIZON, reset_scale: float = 0.1) -> TaskFamily:
    """Run forwards: speed - 0.1 |a|^2, 200 steps of 0.05 s. Observation 18: mean speed, then gymnasium's 17.

    Args:
        horizon: steps per episode (MB-MPO: 200; 100 with noisy models, 1000 in its Fig. 5).
        reset_scale: half-width (positions) and deviation (velocities) of the start.
    """
    noise = functools.partial(half_uniform, positions=9, velocities=9, scale=reset_scale)
    return _runner("half_cheetah_200", cheetahs.half_cheetah_body(leave, noise), horizon, 0.1)


def hopper(horizon: int = HORIZON, reset_scale: float = 0.005) -> TaskFamily:
    """Hop forwards: speed + 1 - 0.001 |a|^2, at most 200 steps of 0.008 s. Observation 12: mean speed, then gymnasium's 11.

    The episode ends when the torso's height is not above 0.7 m or its pitch leaves (-0.2, 0.2) rad. Arguments as for
    :func:`swimmer`.
    """
    return _runner("hopper", hoppers.hopper_body(reset_scale), horizon, 1e-3, bonus=1.0)


def walker2d(horizon: int = HORIZON, reset_scale: float = 0.005) -> TaskFamily:
    """Walk forwards: speed + 1 - 0.001 |a|^2, at most 200 steps of 0.008 s. Observation 18: mean speed, gymnasium's 17.

    The episode ends when the torso's height leaves (0.8, 2) m or its pitch (-1, 1) rad. Arguments as for :func:`swimmer`.
    """
    return _runner("walker2d", walkers.walker2d_body(leave, reset_scale), horizon, 1e-3, bonus=1.0)


def ant(horizon: int = HORIZON, reset_scale: float = 0.1) -> TaskFamily:
    """Run forwards: speed + 1 - 0.005 |a|^2, at most 200 steps of 0.05 s. Observation 28: mean speed, gymnasium's first 27.

    No contact forces, as in the paper's code. The episode ends when the torso's height leaves [0.2, 1] m. Arguments as for
    :func:`half_cheetah_200`.
    """
    return _runner("ant", ants.ant_body(leave, reset_scale), horizon, 0.005, bonus=1.0)


def arm_reach(horizon: int = HORIZON, reset_scale: float = 0.005) -> TaskFamily:
    """Bring the tip to a goal that is drawn anew for each episode: 200 steps of 0.05 s, sums of rewards.

    Args:
        horizon: steps per episode.
        reset_scale: half-width of the joints' velocities at the start, rad/s.
    """
    spec = EnvSpec("arm_reach", arm.NAMES, arm.COUNT, horizon, "episode", arm.reward, metrics=arm.metrics)
    return one_task(spec, functools.partial(MujocoSimulator, spec, body=arm.arm_body(reset_scale)), horizon)


def point2d() -> TaskFamily:
    """Go to the origin from U[-2, 2]^2 by at most 0.1 per axis and step; -|s|^2 summed over 30 steps. Optimum -14.7."""
    spec = points.point2d_spec()
    return one_task(spec, functools.partial(points.build, spec), points.HORIZON)
