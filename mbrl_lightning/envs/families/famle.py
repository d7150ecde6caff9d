"""Families of FAMLE: an arm and an ant, undamaged or with one part broken in training, with two in the test."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mbrl_lightning.envs.bodies import ant as ants
from mbrl_lightning.envs.bodies import reacher
from mbrl_lightning.envs.bodies.body import runner_spec
from mbrl_lightning.envs.bodies.mujoco import MujocoSimulator
from mbrl_lightning.envs.family import TaskFamily, draw_from
from mbrl_lightning.envs.spec import EnvSpec, Simulator, identity
from mbrl_lightning.errors import ConfigError

CONTEXT_STEPS, RESET_SCALE, YAWS = 50, 0.1, 12


def changed(width: int, *changes: tuple[int, float]) -> Tensor:
    """Factors [width], float64: 1 but for the entries changed, (which, to what)."""
    factors = torch.ones(width, dtype=torch.float64)
    for index, value in changes:
        factors[index] = value
    return factors


def _listed(
    spec: EnvSpec,
    parameters: tuple[str, ...],
    build: Callable[[Tensor], Simulator],
    all_situations: Tensor,
    test: Tensor,
    chosen: Sequence[int] | None,
) -> TaskFamily:
    """Training tasks are the situations of a list, or those ``chosen`` of it, by number."""
    numbers = range(len(all_situations)) if chosen is None else chosen
    if set(numbers) - set(range(len(all_situations))):
        cause = f"{spec.name}: situations={chosen} are not all of the list"
        raise ConfigError(cause, f"choose among 0 to {len(all_situations) - 1}")
    train = all_situations[list(numbers)]
    return TaskFamily(
        spec, parameters, draw_from(train), build, identity, test, context_steps=CONTEXT_STEPS, grid=train
    )


def famle_reacher(
    horizon: int = 50, situations: list[int] | None = None, test: list[list[float]] | None = None
) -> TaskFamily:
    """Bring the tip to (-1, 1) m by commanding the speeds of five joints, of which some do not obey or turn backwards.

    exp(-distance) summed over ``horizon`` steps of 0.1 s. Training: undamaged (0), a dead joint (1 to 5), one turning backwards
    (6 to 10), or the ``situations`` of these, by number; ``test``: factors on the five speeds, by default every pair of a dead
    joint and another that turns backwards, the paper's (-1, 1, 1, 0, 1) among them.
    """
    spec, joints = reacher.reacher_spec("famle_reacher", horizon), range(reacher.COUNT)
    train = torch.stack([changed(5), *(changed(5, (j, 0.0)) for j in joints), *(changed(5, (j, -1.0)) for j in joints)])
    pairs = torch.stack([changed(5, (back, -1.0), (dead, 0.0)) for back in joints for dead in joints if dead != back])
    unseen = pairs if test is None else torch.tensor(test, dtype=torch.float64).reshape(len(test), -1)
    build = functools.partial(MujocoSimulator, spec, body=reacher.reacher_body(RESET_SCALE))
    return _listed(spec, tuple(f"factor_{j + 1}" for j in joints), build, train, unseen, situations)


def famle_ant(horizon: int = 1000, situations: list[int] | None = None) -> TaskFamily:
    """Run forwards, of eight motors one dead, or with a compass that sticks: mean speed, summed over ``horizon`` steps of 0.05 s.

    Training: undamaged (0), motor 0 to 7 dead (1 to 8), yaw stuck at 30 degrees times 1 to 11 (9 to 19), or the ``situations`` of
    these; test: every pair of dead motors of which both are of one leg or of neighbours. Nothing ends an episode early.
    """
    body = ants.broken_body()
    spec = runner_spec("famle_ant", body, horizon, cost=0.0)
    motors, stuck = range(8), [changed(9, (8, turns / YAWS)) for turns in range(1, YAWS)]
    train = torch.stack([changed(9, (8, 0.0)), *(changed(9, (m, 0.0), (8, 0.0)) for m in motors), *stuck])
    pairs = [(m, (m + ahead) % 8) for m in motors for ahead in (1, 2)]
    test = torch.stack([changed(9, (a, 0.0), (b, 0.0), (8, 0.0)) for a, b in pairs])
    names = (*(f"torque_{m}" for m in motors), "stuck_yaw")
    return _listed(spec, names, functools.partial(body.build, spec), train, test, situations)
