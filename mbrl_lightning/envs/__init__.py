"""Task families: ``make_family("cartpole")`` gives spec, training distribution and fixed test tasks."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from mbrl_lightning.envs import (
    acrobot,
    ant,
    arm_reach,
    cartpole,
    half_cheetah,
    half_cheetah_hidden,
    humanoid_direc,
    locomotion,
    point,
    point2d,
    slim_humanoid,
    walker2d,
)
from mbrl_lightning.envs.family import Box, TaskFamily, draw_from, grid_of
from mbrl_lightning.envs.spec import EnvSpec, Simulator
from mbrl_lightning.errors import ConfigError, did_you_mean

FAMILIES: dict[str, Callable[..., TaskFamily]] = {
    "cartpole": cartpole.cartpole,
    "acrobot": acrobot.acrobot,
    "half_cheetah": half_cheetah.half_cheetah,
    "slim_humanoid": slim_humanoid.slim_humanoid,
    "cartpole_wide": cartpole.cartpole_wide,
    "half_cheetah_wide": half_cheetah.half_cheetah_wide,
    "half_cheetah_flip": half_cheetah.half_cheetah_flip,
    "point_switch": point.point_switch,
    "half_cheetah_fwd_bwd": half_cheetah_hidden.half_cheetah_fwd_bwd,
    "half_cheetah_pier": half_cheetah_hidden.half_cheetah_pier,
    "ant_fwd_bwd": ant.ant_fwd_bwd,
    "ant_crippled_leg": ant.ant_crippled_leg,
    "walker2d_random_params": walker2d.walker2d_random_params,
    "humanoid_direc": humanoid_direc.humanoid_direc,
    "swimmer": locomotion.swimmer,
    "hopper": locomotion.hopper,
    "walker2d": locomotion.walker2d,
    "ant": locomotion.ant,
    "half_cheetah_200": locomotion.half_cheetah_200,
    "arm_reach": arm_reach.arm_reach,
    "point2d": point2d.point2d,
    "half_cheetah_disabled": half_cheetah.half_cheetah_disabled,
}

__all__ = [
    "FAMILIES",
    "Box",
    "EnvSpec",
    "Simulator",
    "TaskFamily",
    "draw_from",
    "family_of",
    "grid_of",
    "load_family",
    "make_family",
]


def make_family(name: str, **options: Any) -> TaskFamily:
    """Build the task family ``name`` (a key of FAMILIES) with its own options.

    Raises:
        ConfigError: unknown name or option; the message has the nearest valid one.
    """
    if name not in FAMILIES:
        raise ConfigError(
            f"there is no task family {name!r}{did_you_mean(name, FAMILIES)}.",
            f"Known: {', '.join(FAMILIES)}.",
        )
    _check_options(f"task family {name!r}", FAMILIES[name], options)
    return FAMILIES[name](**options)


class Choice(Protocol):
    """The `env` section of a configuration."""

    name: str
    options: dict[str, Any]
    file: str | None


def family_of(env: Choice) -> TaskFamily:
    """The family a configuration asks for: the user's own file if there is one, else a shipped family by name."""
    return load_family(env.file, **env.options) if env.file else make_family(env.name, **env.options)


def load_family(file: str, **options: Any) -> TaskFamily:
    """The user's own family: the result of calling ``family(**options)`` of the Python file ``file``.

    Raises:
        ConfigError: no such file, it does not run, or it has no function ``family`` that returns a
            TaskFamily.
    """
    path = Path(file)
    if not path.is_file():
        raise ConfigError(f"env.file: there is no file {file}.", "Give the path of a Python file with family().")
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    if module_spec is None or module_spec.loader is None:
        raise ConfigError(f"env.file: {file} is not a Python file.", "Give the path of a .py file with family().")
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(
            f"env.file: {file} does not run: {type(error).__name__}: {error}", "Mend the file."
        ) from error
    if not callable(getattr(module, "family", None)):
        raise ConfigError(f"env.file: {file} has no function family().", "Define family() -> TaskFamily in it.")
    _check_options(f"family() of {file}", module.family, options)
    family = module.family(**options)
    if not isinstance(family, TaskFamily):
        raise ConfigError(
            f"env.file: family() of {file} returned a {type(family).__name__}.",
            "Return gym_family(...) or a TaskFamily.",
        )
    return family


def _check_options(label: str, build: Callable[..., Any], options: dict[str, Any]) -> None:
    known = inspect.signature(build).parameters
    for option in options:
        if option not in known:
            raise ConfigError(
                f"{label} has no option {option!r}{did_you_mean(option, known)}.",
                f"Its options: {', '.join(known) or 'none'}.",
            )
