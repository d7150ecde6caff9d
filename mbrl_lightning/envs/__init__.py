"""Task families: ``make_family("cartpole")`` gives spec, training distribution and fixed test tasks."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mbrl_lightning.envs.families import famle, gssm, l2a, m3po, maml, mb_mpo, survey
from mbrl_lightning.envs.family import TaskFamily
from mbrl_lightning.envs.guard import Guard, guarded_family
from mbrl_lightning.envs.learned_reward import learned_reward
from mbrl_lightning.errors import ConfigError, did_you_mean

LOADING_SECONDS, CALL_SECONDS = 300.0, 60.0  # for a user's file to load, and for a row of his own simulator to step

FAMILIES: dict[str, Callable[..., TaskFamily]] = {
    "cartpole": gssm.cartpole,
    "acrobot": gssm.acrobot,
    "half_cheetah": gssm.half_cheetah,
    "slim_humanoid": gssm.slim_humanoid,
    "cartpole_wide": gssm.cartpole_wide,
    "half_cheetah_wide": gssm.half_cheetah_wide,
    "half_cheetah_flip": gssm.half_cheetah_flip,
    "point_switch": m3po.point_switch,
    "half_cheetah_fwd_bwd": m3po.half_cheetah_fwd_bwd,
    "half_cheetah_pier": m3po.half_cheetah_pier,
    "ant_fwd_bwd": m3po.ant_fwd_bwd,
    "ant_crippled_leg": m3po.ant_crippled_leg,
    "walker2d_random_params": m3po.walker2d_random_params,
    "humanoid_direc": m3po.humanoid_direc,
    "swimmer": mb_mpo.swimmer,
    "hopper": mb_mpo.hopper,
    "walker2d": mb_mpo.walker2d,
    "ant": mb_mpo.ant,
    "half_cheetah_200": mb_mpo.half_cheetah_200,
    "arm_reach": mb_mpo.arm_reach,
    "point2d": mb_mpo.point2d,
    "half_cheetah_disabled": l2a.half_cheetah_disabled,
    "half_cheetah_slopes": l2a.half_cheetah_slopes,
    "arm_damping": l2a.arm_damping,
    "arm_force": l2a.arm_force,
    "point_goal": maml.point_goal,
    "payload_quadcopter": survey.payload_quadcopter,
    "famle_reacher": famle.famle_reacher,
    "famle_ant": famle.famle_ant,
}


def make_family(name: str, **options: Any) -> TaskFamily:
    """Build the task family ``name`` (a key of FAMILIES) with its own options."""
    if name not in FAMILIES:
        cause = f"there is no task family {name!r}{did_you_mean(name, FAMILIES)}."
        raise ConfigError(cause, f"Known: {', '.join(FAMILIES)}.")
    return FAMILIES[name](**options)


def family_of(env: Any) -> TaskFamily:
    """The family that the `env` section of a configuration asks for: the user's own file if there is one, else by name."""
    family = load_family(env.file, **env.options) if env.file else make_family(env.name, **env.options)
    return learned_reward(family) if env.learned_reward else family


def load_family(file: str, **options: Any) -> TaskFamily:
    """The user's own family: the result of calling ``family(**options)`` of the Python file ``file``.

    Raises:
        ConfigError: no such file, or it has no function ``family`` that returns a TaskFamily; see `users_function`.
        EnvError: it does not run, or its functions do not do what EnvSpec says.
    """
    guard = Guard(file, LOADING_SECONDS)
    make = users_function(file, "family", "env.file", guard)
    family = guard.call("family()", make, **options)
    if not isinstance(family, TaskFamily):
        cause = f"env.file: family() of {file} returned a {type(family).__name__}."
        raise ConfigError(cause, "Return gym_family(...) or a TaskFamily.")
    return guarded_family(family, Guard(family.spec.name, CALL_SECONDS))


def users_function(file: str, function: str, key: str, guard: Guard) -> Callable[..., Any]:
    """A `function` of the user's Python `file`, which is given as `key`.

    The file is a module named like it, and its folder stays on the path, so that it may import what lies beside it.

    Raises:
        ConfigError: no such file, or no such function in it.
        EnvError: it does not run.
    """
    path = Path(file).absolute()
    taken = path.stem in sys.stdlib_module_names or path.stem in sys.modules
    own = getattr(sys.modules.get(path.stem), "__file__", None) == str(path)
    name = f"{path.stem}_{function}" if taken and not own else path.stem
    module_spec = importlib.util.spec_from_file_location(name, path)
    if not path.is_file() or module_spec is None or module_spec.loader is None:
        raise ConfigError(f"{key}: there is no Python file {file}.", f"Give the path of a .py file with {function}().")
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    module = sys.modules[name] = importlib.util.module_from_spec(module_spec)
    guard.call("importing it", module_spec.loader.exec_module, module)
    found = getattr(module, function, None)
    if not callable(found):
        raise ConfigError(f"{key}: {file} has no function {function}().", f"Define {function}() in it.")
    return found
