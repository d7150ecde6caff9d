"""Families of learning to adapt (GrBAL, ReBAL): a half-cheetah with a dead motor. Its pier and its ant are M3PO's too."""

from __future__ import annotations

import functools

import torch

from mbrl_lightning.envs.bodies import half_cheetah as cheetahs
from mbrl_lightning.envs.bodies.body import runner_spec
from mbrl_lightning.envs.family import Box, TaskFamily, draw_from
from mbrl_lightning.errors import ConfigError

CONTEXT_STEPS, TEST_TASKS, CONTROL_COST, RESET_SCALE = 500, 20, 0.05, 0.1


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
