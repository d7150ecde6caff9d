"""How a task is written into a gymnasium environment: attributes, nested ones, and fields of a MuJoCo model by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium
import mujoco
import numpy as np

from mbrl_lightning.errors import ConfigError

SetTask = Callable[[gymnasium.Env, dict[str, float]], None]
Write = Callable[[gymnasium.Env, float], None]
KINDS = {"body": "body", "geom": "geom", "jnt": "joint", "dof": "joint", "actuator": "actuator", "site": "site"}
KINDS |= {"tendon": "tendon", "light": "light"}
POSITIVE = ("mass", "inertia", "friction", "damping", "frictionloss", "armature", "size")  # or 0


def physics_of(env: gymnasium.Env) -> tuple[mujoco.MjModel, mujoco.MjData] | None:
    """Model and data of a MuJoCo environment, dm_control's behind shimmy too; None of any other."""
    inner: Any = env.unwrapped
    physics = getattr(getattr(inner, "_env", None), "physics", None)
    held = inner if physics is None else physics
    model, data = (getattr(held, name, None) for name in ("model", "data"))
    model, data = getattr(model, "ptr", model), getattr(data, "ptr", data)
    return (model, data) if isinstance(model, mujoco.MjModel) and isinstance(data, mujoco.MjData) else None


def setter(
    label: str,
    probe: gymnasium.Env,
    names: tuple[str, ...],
    set_task: SetTask | Mapping[str, str] | None,
    lowest: Sequence[float],
) -> Callable[[gymnasium.Env, Sequence[float]], None]:
    """(env, values in the order of ``names``) from the forms of ``set_task``; see `gym_family`.

    Raises:
        ConfigError: no parameter of that name, no such attribute, no such thing in the MuJoCo model, or not so low (``lowest``).
    """
    if callable(set_task):
        return lambda env, values: set_task(env, dict(zip(names, values, strict=True)))
    unknown = set(set_task or {}) - set(names)
    if unknown:
        cause = f"{label}: set_task writes {sorted(unknown)}, which no parameter is called."
        raise ConfigError(cause, f"Use {', '.join(names)}.")
    places = [(set_task or {}).get(name, name) for name in names]
    writers = [_of_model(label, probe, place) if ":" in place else _attribute(label, probe, place) for place in places]

    def apply(env: gymnasium.Env, values: Sequence[float]) -> None:
        for write, value in zip(writers, values, strict=True):
            write(env, value)

    apply(probe, lowest)
    return apply


def _attribute(label: str, probe: gymnasium.Env, place: str) -> Write:
    """An attribute of ``env.unwrapped``, or ``a.b.c`` of what it holds."""
    *path, last = place.split(".")

    def holder(env: gymnasium.Env) -> Any:
        held: Any = env.unwrapped
        for part in path:
            held = getattr(held, part)
        return held

    try:
        getattr(holder(probe), last)
    except AttributeError as error:
        cause = f"{label}: the environment has no attribute {place!r} to set ({error})."
        raise ConfigError(cause, "Give set_task={parameter: attribute} or a function (env, values).") from None
    return lambda env, value: setattr(holder(env), last, value)


def _of_model(label: str, probe: gymnasium.Env, place: str) -> Write:
    """``body_mass:torso``: a field of what has that name in the MuJoCo model, as a multiple of what it was."""
    field, _, name = place.partition(":")
    prefix, _, own = field.partition("_")
    found = physics_of(probe)
    if found is None or prefix not in KINDS or not hasattr(found[0], field):
        cause = f"{label}: {place!r}: no MuJoCo model with a field {field!r}."
        raise ConfigError(cause, "Write FIELD:NAME as in body_mass:torso, geom_friction:floor, dof_damping:hip.")

    def values(model: mujoco.MjModel) -> Any:
        return getattr(getattr(model, KINDS[prefix])(name), own)

    try:
        nominal = np.array(values(found[0]))
    except KeyError as error:
        known = " ".join(str(error.args[0]).split("Valid names: ")[-1].split())
        raise ConfigError(f"{label}: {place!r}: the model has no such {KINDS[prefix]}.", f"It has {known}.") from None

    def write(env: gymnasium.Env, value: float) -> None:
        held = physics_of(env)
        assert held is not None
        if value < 0 and own in POSITIVE:
            raise ConfigError(f"{label}: {place!r}: {value:g} times what the model has.", "Give a range from 0 up.")
        values(held[0])[:] = nominal * value

    return write
