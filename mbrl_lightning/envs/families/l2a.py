"""Families of learning to adapt (GrBAL, ReBAL): a dead motor, slopes, an arm. Its pier and its ant are M3PO's too."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import torch

from mbrl_lightning.envs.bodies import arm, slopes
from mbrl_lightning.envs.bodies import half_cheetah as cheetahs
from mbrl_lightning.envs.bodies.body import runner_spec
from mbrl_lightning.envs.bodies.mujoco import MujocoBody, MujocoSimulator
from mbrl_lightning.envs.family import Box, TaskFamily, box_family, draw_from
from mbrl_lightning.envs.spec import EnvSpec
from mbrl_lightning.errors import ConfigError

CONTEXT_STEPS, TEST_TASKS, CONTROL_COST, RESET_SCALE = 500, 20, 0.05, 0.1
ARM_CONTEXT, ARM_START, SEED = 200, 0.005, 20280


def half_cheetah_disabled(horizon: int = 1000, held_out: int | None = None) -> TaskFamily:
    """One of six motors gives no torque (L2A): joints 0 to 4 in training, the front foot, joint 5, in the test.

    Forward speed - 0.05 |a|^2, summed over ``horizon`` steps of 0.05 s; nothing ends an episode early. ``held_out``, one of the
    joints 0 to 4, takes the place of the test's: for choices, which must not be made on joint 5.
    """
    if held_out is not None and held_out not in range(5):
        raise ConfigError(f"held_out={held_out}", "choose one of the training joints, 0 to 4")
    body = cheetahs.half_cheetah_body(cheetahs.disable_joint, cheetahs.around_rest(RESET_SCALE))
    spec = runner_spec("half_cheetah_disabled", body, horizon, CONTROL_COST)
    tested, trained = 5 if held_out is None else held_out, [joint for joint in range(5) if joint != held_out]
    train = torch.tensor(trained, dtype=torch.float64).unsqueeze(1)
    return TaskFamily(
        spec=spec,
        parameters=("disabled_joint",),
        draw=draw_from(train),
        build=functools.partial(body.build, spec),
        rescale=Box((0.0,), (5.0,)).scale,
        test=torch.full((TEST_TASKS, 1), float(tested), dtype=torch.float64),
        context_steps=CONTEXT_STEPS,
        grid=train,
    )


def half_cheetah_slopes(horizon: int = 1000, steepest: float = 0.2, extreme: float = 0.25) -> TaskFamily:
    """Ground that rises or falls by up to ``steepest`` a metre from 1 m on, and by another slope from 6 m on; it is not seen.

    Forward speed - 0.05 |a|^2, summed over ``horizon`` steps of 0.05 s. Hills and basins are among the tasks; extreme ones are
    steeper, up to ``extreme``. ConfigError where a slope would leave the range of the height field.
    """
    for slope in (steepest, extreme):
        slopes.ground_of(np.array([slope, slope]))
    body = slopes.sloping_body(RESET_SCALE)
    spec = runner_spec("half_cheetah_slopes", body, horizon, CONTROL_COST)
    train, beyond = (Box((-slope, -slope), (slope, slope)) for slope in (steepest, extreme))
    names, build = ("near_slope", "far_slope"), functools.partial(body.build, spec)
    return replace(box_family(spec, names, build, train, beyond, CONTEXT_STEPS, TEST_TASKS, SEED), distant=names)


def _arm(name: str, body: MujocoBody, parameters: tuple[str, ...], train: Box, beyond: Box, horizon: int) -> TaskFamily:
    spec = EnvSpec(name, arm.NAMES, arm.COUNT, horizon, "episode", arm.reward, metrics=arm.metrics)
    build = functools.partial(MujocoSimulator, spec, body=body)
    return box_family(spec, parameters, build, train, beyond, ARM_CONTEXT, TEST_TASKS, SEED)


def arm_damping(horizon: int = 200) -> TaskFamily:
    """As `arm_reach`, each of the seven joints with a damping of its own, U[0, 2] N m s/rad; U[0, 3] in extreme tasks."""
    names = tuple(f"damping_{joint}" for joint in arm.JOINTS)
    train, beyond = (Box((0.0,) * arm.COUNT, (most,) * arm.COUNT) for most in (2.0, 3.0))
    return _arm("arm_damping", arm.arm_body(ARM_START, arm.write_damping), names, train, beyond, horizon)


def arm_force(horizon: int = 200) -> TaskFamily:
    """As `arm_reach`, with a constant force of U[0.1, 2] N that pulls the hand down; up to 3 N in extreme tasks."""
    train, beyond = Box((0.1,), (2.0,)), Box((0.1,), (3.0,))
    body = arm.arm_body(ARM_START, arm.write_force, arm.weighed_model)
    return _arm("arm_force", body, ("force",), train, beyond, horizon)
