"""Ants with a hidden task: a direction to run in, or a leg that does not work (M3PO).

gymnasium's body and time step (0.05 s), without contact forces in observation or reward: MuJoCo versions of the papers'
time reported none. Observation (27): height, quaternion (w first), 8 joint angles, then the 14 velocities.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import mujoco
import numpy as np
import torch
from torch import Tensor

from mbrl_lightning.envs.family import TaskFamily
from mbrl_lightning.envs.mujoco import MujocoBody, MujocoSimulator, centre_of_mass, paint, paint_direction
from mbrl_lightning.envs.switching_family import (
    TEST_TASKS,
    Body,
    HiddenTask,
    PreviousReward,
    directions,
    switching_family,
    switching_spec,
    travelled,
)
from mbrl_lightning.errors import ConfigError

DT, FRAME_SKIP, UPRIGHT, RESET_SCALE = 0.05, 5, (0.2, 1.0), 0.1
ALIVE_BONUS, CONTROL_COST, CRIPPLED_BONUS = 1.0, 0.5, 0.05
JOINTS = tuple(f"{joint}_{leg}" for leg in (1, 2, 3, 4) for joint in ("hip", "ankle"))
NAMES = (
    "z [m]",
    *(f"quaternion_{part}" for part in "wxyz"),
    *(f"{joint} [rad]" for joint in JOINTS),
    *(f"{axis}_velocity [m/s]" for axis in "xyz"),
    *(f"{axis}_angular_velocity [rad/s]" for axis in "xyz"),
    *(f"{joint}_velocity [rad/s]" for joint in JOINTS),
)
# Of legs 0 to 3 (learning_to_adapt's order): upper and lower geom, and the two motors.
LEGS, MOTORS = ((3, 4), (6, 7), (9, 10), (12, 13)), ((2, 3), (4, 5), (6, 7), (0, 1))
RED = (0.85, 0.1, 0.1)


def observe(qpos: np.ndarray, qvel: np.ndarray, before: np.ndarray, x: int) -> np.ndarray:
    """[B, 28]: mean speed of entry ``x`` of the positions over the step, then what the agent sees."""
    return np.concatenate([(qpos[:, [x]] - before[:, [x]]) / DT, qpos[:, 2:15], qvel], 1)


def reset_noise(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Gymnasium's start: U[-0.1, 0.1] on the 15 positions, normal with deviation 0.1 on the 14 velocities."""
    device = generator.device
    positions = torch.rand(batch, 15, generator=generator, dtype=torch.float64, device=device)
    velocities = torch.randn(batch, 14, generator=generator, dtype=torch.float64, device=device)
    return RESET_SCALE * (2 * positions - 1), RESET_SCALE * velocities


def fallen(observation: Tensor) -> Tensor:
    """Bool [...]: torso height outside [0.2, 1] m."""
    height = observation[..., 0]
    return (height < UPRIGHT[0]) | (height > UPRIGHT[1])


def untarget(observation: Tensor, change: Tensor) -> Tensor:
    """Inverse of the plain difference; the quaternion keeps its length of 1."""
    height, quaternion, rest = (observation + change).split([1, 4, 22], -1)
    return torch.cat([height, torch.nn.functional.normalize(quaternion, dim=-1), rest], -1)


def cripple(model: mujoco.MjModel, nominal: mujoco.MjModel, task: np.ndarray) -> None:
    """Write task = the leg that does not work, as learning_to_adapt has it, and paint it red.

    Its two motors give no torque, both geoms shrink to half their radius and length, and the lower one is drawn in to
    where the upper one is. Masses stay.
    """
    for field in ("geom_size", "geom_pos", "geom_matid", "geom_rgba", "actuator_gear"):
        getattr(model, field)[:] = getattr(nominal, field)
    leg = round(float(task[0]))
    upper, lower = LEGS[leg]
    model.actuator_gear[list(MOTORS[leg])] = 0
    model.geom_size[[upper, lower]] *= 0.5
    model.geom_pos[lower] = nominal.geom_pos[upper]
    paint(model, LEGS[leg], RED)


def _body(edit: Callable[[mujoco.MjModel, mujoco.MjModel, np.ndarray], None], whole: bool) -> Body:
    """The ant; speeds for the reward are the torso's, or those of the centre of mass of the ``whole`` ant."""
    seen = functools.partial(observe, x=15 if whole else 0)  # the sensed entries follow the 15 positions
    physics = MujocoBody("ant.xml", FRAME_SKIP, 1.0, edit, reset_noise, seen, centre_of_mass if whole else None)
    return Body(
        NAMES,
        ("x_speed_mean [m/s]",),
        8,
        lambda spec, tasks: MujocoSimulator(spec, physics, tasks),
        untarget=untarget,
    )


def ant_fwd_bwd(
    switch_every_steps: int | None = 300,
    jitter: float = 0.1,
    horizon: int = 1000,
    flip: bool = False,
    previous_reward: PreviousReward = "observation",
) -> TaskFamily:
    """Run forwards or backwards, which is hidden and drawn anew every 270 to 330 steps; sums of rewards.

    Reward d (x' - x) / dt - 0.5 |a|^2 + 1. The episode ends where the torso's height leaves [0.2, 1] m. Test tasks: each
    direction ten times, the direction in which an episode starts.

    Args:
        switch_every_steps: mean steps between switches; None: only at the start of an episode.
        jitter: relative half-width of those steps.
        horizon: steps per episode.
        flip: a switch always turns round; otherwise the direction is drawn anew and may stay.
        previous_reward: where networks see it, "observation" or "history" only.
    """

    def reward(before: Tensor, action: Tensor, after: Tensor, tasks: Tensor) -> Tensor:
        return tasks[..., 0] * after[..., 0] - CONTROL_COST * action.square().sum(-1) + ALIVE_BONUS

    body, metrics = _body(paint_direction, whole=False), travelled(DT, CONTROL_COST, ALIVE_BONUS, falls=True)
    spec = switching_spec("ant_fwd_bwd", body, horizon, previous_reward, fallen, metrics)
    return switching_family(spec, body, directions(flip), reward, switch_every_steps, jitter)


def legs(flip: bool, unseen: int | None = None) -> HiddenTask:
    """Which leg, 0 to 3, all equally likely; with ``flip`` a switch always takes another one.

    Args:
        flip: see above.
        unseen: a leg that training tasks never have and test tasks always.
    """
    test = torch.arange(TEST_TASKS, dtype=torch.float64).unsqueeze(1) % 4
    if unseen is not None:
        seen, test = [leg for leg in range(4) if leg != unseen], torch.full_like(test, unseen)

        def draw_seen(n: int, generator: torch.Generator) -> Tensor:
            pick = torch.randint(3, (n, 1), generator=generator, device=generator.device).cpu()
            return torch.tensor(seen, dtype=torch.float64)[pick]

        return HiddenTask(("leg",), draw_seen, lambda t: (t - 1.5) / 1.5, test)

    def draw(n: int, generator: torch.Generator) -> Tensor:
        return torch.randint(4, (n, 1), generator=generator, device=generator.device).cpu().double()

    def another(tasks: Tensor, generator: torch.Generator) -> Tensor:
        onward = torch.randint(1, 4, tasks.shape, generator=generator, device=generator.device)
        return (tasks + onward.to(tasks)) % 4

    return HiddenTask(("leg",), draw, lambda t: (t - 1.5) / 1.5, test, shared=True, another=another if flip else None)


def ant_crippled_leg(
    switch_every_steps: int | None = 300,
    jitter: float = 0.1,
    horizon: int = 1000,
    flip: bool = False,
    previous_reward: PreviousReward = "observation",
    unseen_leg: int | None = None,
) -> TaskFamily:
    """Run forwards with one leg crippled, which is hidden and drawn anew every 270 to 330 steps; sums of rewards.

    Reward: forward speed of the centre of mass + 0.05; nothing ends an episode early (learning_to_adapt, there with steps
    of 0.02 s and 41 observation entries). Test tasks: each leg five times, the one with which an episode starts.

    Args:
        switch_every_steps: mean steps between switches; None: only at the start of an episode.
        jitter: relative half-width of those steps.
        horizon: steps per episode.
        flip: a switch always takes another leg; otherwise the leg is drawn anew and may stay.
        previous_reward: where networks see it, "observation" or "history" only.
        unseen_leg: this one is crippled in every test task and in no training task (L2A); episodes must not switch then.

    Raises:
        ConfigError: there is no such leg, or episodes would switch to one that is not unseen.
    """
    if unseen_leg is not None and (switch_every_steps is not None or unseen_leg not in range(4)):
        raise ConfigError(
            f"unseen_leg={unseen_leg} with switch_every_steps={switch_every_steps}: legs are 0 to 3, and a test episode "
            "keeps its leg",
            "set env.options.switch_every_steps=null and one of four legs",
        )

    def reward(before: Tensor, action: Tensor, after: Tensor, tasks: Tensor) -> Tensor:
        return after[..., 0] + CRIPPLED_BONUS

    body, metrics = _body(cripple, whole=True), travelled(DT, 0.0, CRIPPLED_BONUS)
    spec = switching_spec("ant_crippled_leg", body, horizon, previous_reward, metrics=metrics)
    return switching_family(spec, body, legs(flip, unseen_leg), reward, switch_every_steps, jitter)
