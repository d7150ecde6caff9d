"""What tasks write into a MuJoCo model: ``MujocoBody.edit`` functions that suit any body, and colours that show the task."""

from __future__ import annotations

from collections.abc import Iterable

import mujoco
import numpy as np

RED = (0.85, 0.1, 0.1)


def leave(model: mujoco.MjModel, nominal: mujoco.MjModel, task: np.ndarray) -> None:
    """Change nothing."""


def scale_mass_and_damping(
    model: mujoco.MjModel, nominal: mujoco.MjModel, task: np.ndarray, scale_inertia: bool
) -> None:
    """Write task = (mass scale, damping scale): all body masses and joint dampings, from nominal values.

    ``scale_inertia`` scales the rotational inertias with the masses (what a denser body has); CaDM and GSSM leave them.
    """
    model.body_mass[:] = nominal.body_mass * task[0]
    model.dof_damping[:] = nominal.dof_damping * task[1]
    if scale_inertia:
        model.body_inertia[:] = nominal.body_inertia * task[0]


def paint(model: mujoco.MjModel, geoms: Iterable[int], colour: Iterable[float]) -> None:
    """Give ``geoms`` (indices) a plain ``colour`` (red, green, blue in [0, 1])."""
    geoms = list(geoms)
    model.geom_matid[geoms] = -1  # a material's texture would show through
    model.geom_rgba[geoms] = (*colour, 1.0)


def paint_moved(model: mujoco.MjModel, motors: Iterable[int], colour: Iterable[float]) -> None:
    """Give what ``motors`` (indices of actuators) would move a plain ``colour``."""
    moved = model.jnt_bodyid[model.actuator_trnid[list(motors), 0]]
    paint(model, np.flatnonzero(np.isin(model.geom_bodyid, moved)), colour)


def paint_direction(model: mujoco.MjModel, nominal: mujoco.MjModel, task: np.ndarray) -> None:
    """Task = (direction,): the body turns blue for forwards, orange for backwards."""
    paint(model, np.flatnonzero(model.geom_bodyid > 0), (0.2, 0.4, 0.85) if task[0] > 0 else (0.95, 0.5, 0.1))
