"""Families of GSSM: masses of a cart-pole, an acrobot, a half-cheetah, a humanoid; and wider ones, where knowing them pays."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from mbrl_lightning.envs.bodies import acrobot as acrobots
from mbrl_lightning.envs.bodies import cartpole as carts
from mbrl_lightning.envs.bodies import half_cheetah as cheetahs
from mbrl_lightning.envs.bodies import humanoid
from mbrl_lightning.envs.bodies.body import runner_spec
from mbrl_lightning.envs.bodies.edits import scale_mass_and_damping
from mbrl_lightning.envs.bodies.mujoco import Edit, MujocoSimulator
from mbrl_lightning.envs.family import Box, TaskFamily, box_family, draw_from, grid_of
from mbrl_lightning.envs.spec import EnvSpec, Simulator

HORIZON, CONTROL_COST, RESET_SCALE = 1000, 0.1, 0.001  # of the cheetahs; gymnasium starts from deviations of 0.1
CHEETAH_CONTEXT, CHEETAH_TESTS, CHEETAH_SEED = 500, 20, 20260
SCALES = ("mass_scale", "damping_scale")


def _carts(name: str, train: Box, beyond: Box, half: bool, tip_sign: float) -> TaskFamily:
    spec = carts.cartpole_spec(name, half, tip_sign)
    build = functools.partial(carts.build, spec)
    return box_family(spec, ("cart_mass", "pole_mass"), build, train, beyond, context_steps=50, tests=50, seed=20250)


def cartpole(half: bool = True, tip_sign: float = 1.0) -> TaskFamily:
    """The paper's masses, kg. Mean per step over 25 steps; uniform random forces: -0.976.

    Args:
        half: True is deep PILCO's exponent d^2 / (2 sigma^2); False is GSSM's table, d^2 / sigma^2.
        tip_sign: +1 is deep PILCO's tip x + l sin(theta); -1 is the side on which the equations conserve energy.
    """
    return _carts("cartpole", Box((1.0, 0.7), (2.0, 1.0)), Box((0.5, 0.35), (3.0, 1.5)), half, tip_sign)


def cartpole_wide(half: bool = True, tip_sign: float = 1.0) -> TaskFamily:
    """As :func:`cartpole`, wider ranges: here knowing the masses pays."""
    return _carts("cartpole_wide", Box((0.3, 0.2), (4.0, 1.5)), Box((0.2, 0.15), (6.0, 2.2)), half, tip_sign)


def acrobot() -> TaskFamily:
    """Link masses, kg. Return / 200 with nothing lost after success: -0.45 is success after 90 steps."""
    train, beyond = Box((0.8, 0.8), (1.2, 1.2)), Box((0.5, 0.5), (1.6, 1.6))
    build, names = functools.partial(acrobots.build, acrobots.SPEC), ("mass_1", "mass_2")
    return box_family(acrobots.SPEC, names, build, train, beyond, context_steps=50, tests=33, seed=20270)


def _on_grid(spec: EnvSpec, build: Callable[[Tensor], Simulator]) -> TaskFamily:
    """Mass and damping scale on a grid in training, the four values between in the test."""
    train = grid_of(*[(0.8, 0.9, 1.0, 1.1, 1.2)] * 2)
    return TaskFamily(
        spec=spec,
        parameters=SCALES,
        draw=draw_from(train),
        build=build,
        rescale=Box((0.8, 0.8), (1.2, 1.2)).scale,
        test=grid_of(*[(0.85, 0.95, 1.05, 1.15)] * 2),
        extreme=grid_of(*[(0.5, 0.7, 1.3, 1.5)] * 2),
        context_steps=CHEETAH_CONTEXT,
        grid=train,
    )


def _cheetah(name: str, edit: Edit, horizon: int) -> tuple[EnvSpec, Callable[[Tensor], Simulator]]:
    body = cheetahs.half_cheetah_body(edit, cheetahs.around_rest(RESET_SCALE))
    spec = runner_spec(name, body, horizon, CONTROL_COST)
    return spec, functools.partial(body.build, spec)


def half_cheetah(scale_inertia: bool = False, horizon: int = HORIZON) -> TaskFamily:
    """Forward speed minus 0.1 |action|^2, steps of 0.05 s, summed over ``horizon`` steps; random policy about -290.

    ``scale_inertia`` scales rotational inertias with the masses (CaDM and GSSM: no).
    """
    edit = functools.partial(scale_mass_and_damping, scale_inertia=scale_inertia)
    return _on_grid(*_cheetah("half_cheetah", edit, horizon))


def half_cheetah_wide(horizon: int = HORIZON) -> TaskFamily:
    """Mass and damping scale log-uniform: knowing them is worth 20 to 40 % of the return. Inertias follow the masses."""
    edit = functools.partial(scale_mass_and_damping, scale_inertia=True)
    spec, build = _cheetah("half_cheetah_wide", edit, horizon)
    train, beyond = Box((1 / 3, 1 / 3), (3.0, 3.0), log=True), Box((0.2, 0.2), (5.0, 5.0), log=True)
    return box_family(spec, SCALES, build, train, beyond, CHEETAH_CONTEXT, CHEETAH_TESTS, CHEETAH_SEED)


def draw_gears(n: int, generator: torch.Generator, turned: int | None = None) -> Tensor:
    """N signed gear scales, float64 [n, 6]: none or one joint reversed, all 7 cases equally likely, or exactly ``turned``."""
    device = generator.device
    size = 0.7 + 0.6 * torch.rand(n, 6, generator=generator, dtype=torch.float64, device=device)
    order = torch.rand(n, 6, generator=generator, device=device).argsort(-1).argsort(-1)
    count = turned or (torch.randint(7, (n, 1), generator=generator, device=device) > 0).long()
    return torch.where(order < count, -size, size).cpu()


def half_cheetah_flip() -> TaskFamily:
    """One of six motors works backwards, or none; in the extreme tasks two do, which never happens in training.

    Loud on purpose: a policy that believes the wrong task loses half its return.
    """
    spec, build = _cheetah("half_cheetah_flip", cheetahs.set_gears, HORIZON)
    return TaskFamily(
        spec=spec,
        parameters=tuple(f"gear_{joint}" for joint in cheetahs.JOINTS),
        draw=draw_gears,
        build=build,
        rescale=lambda tasks: tasks / 1.3,
        test=draw_gears(CHEETAH_TESTS, torch.Generator().manual_seed(CHEETAH_SEED)),
        extreme=draw_gears(CHEETAH_TESTS, torch.Generator().manual_seed(CHEETAH_SEED + 1), turned=2),
        context_steps=CHEETAH_CONTEXT,
    )


def slim_humanoid(scale_inertia: bool = False, threads: int = 1, cut_at_fall: bool = True) -> TaskFamily:
    """Mass and damping scale on the grid of :func:`half_cheetah`; sums over 1000 steps, uniform random policy about -1170.

    No episode ends early, but training episodes at the fall unless ``cut_at_fall`` is false (the paper lets them run on).
    ``threads`` are MuJoCo's, and change no result.
    """
    spec = humanoid.humanoid_spec(humanoid.fallen if cut_at_fall else None)
    physics = humanoid.humanoid_physics(functools.partial(scale_mass_and_damping, scale_inertia=scale_inertia))
    return _on_grid(spec, functools.partial(MujocoSimulator, spec, body=physics, threads=threads))
