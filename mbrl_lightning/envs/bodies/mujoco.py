"""B MuJoCo bodies stepped together over bare ``mj_step``, one compiled model per task.

With nominal parameters the states are bit-equal to gymnasium's environments of the same body.
"""

from __future__ import annotations

import copy
import ctypes.util
import functools
import importlib
import logging
import math
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import gymnasium
import mujoco
import numpy as np
import torch
from torch import Tensor

from mbrl_lightning.envs.bodies.shapes import Drawing, drawn
from mbrl_lightning.envs.spec import EnvSpec, chosen_rows, require_finite, require_finite_action
from mbrl_lightning.errors import EnvError

_log = logging.getLogger(__name__)
STATE = mujoco.mjtState.mjSTATE_INTEGRATION.value  # with the solver's warm start

Edit = Callable[[mujoco.MjModel, mujoco.MjModel, np.ndarray], None]
Noise = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class MujocoBody:
    """What distinguishes one body from another; positions nq, velocities nv, P task parameters.

    Attributes:
        xml: file name among gymnasium's assets, a path, or a function that builds the nominal model.
        frame_skip: physics steps per control step.
        control_scale: control = control_scale * action.
        edit: (model, nominal model, task [P]) writes the task into ``model``; derived constants follow by themselves.
        noise: (batch, generator) -> float64 ([batch, nq], [batch, nv]) added to the model's rest pose.
        observe: (qpos [B, nq], qvel [B, nv], qpos before the step [B, nq]) -> [B, S], float64 arrays.
        sense: (model, data) -> [k], functions of a row's positions that ``observe`` needs besides: it then gets them after
            the nq positions, now and before the step.
    """

    xml: str | Callable[[], mujoco.MjModel]
    frame_skip: int
    control_scale: float
    edit: Edit
    noise: Noise
    observe: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
    sense: Callable[[mujoco.MjModel, mujoco.MjData], np.ndarray] | None = None


def _forward_warning(message: str) -> None:
    _tell(message.partition(" Time = ")[0])


@functools.cache  # a body that has gone wrong warns at every step
def _tell(warning: str) -> None:
    _log.warning("MuJoCo: %s (told once)", warning)


def _telling(record: logging.LogRecord) -> bool:
    return "settotalmass" not in record.getMessage()  # a deprecated attribute of everybody's half_cheetah.xml, harmless


def log_warnings() -> None:
    """Send MuJoCo's warnings to ``logging`` from here on, unless the program has its own handler.

    Without one MuJoCo writes a file MUJOCO_LOG.TXT into the current folder. dm_control's goes through absl.
    """
    for logger in (_log, logging.getLogger("absl")):
        logger.addFilter(_telling)
    if mujoco.get_mju_user_warning() is None:
        mujoco.set_mju_user_warning(_forward_warning)


@functools.cache
def nominal_model(xml: str | Callable[[], mujoco.MjModel]) -> mujoco.MjModel:
    """The unchanged model of ``xml`` or of what it builds (shared: copy it before editing)."""
    log_warnings()
    if not isinstance(xml, str):
        return xml()
    try:
        return mujoco.MjModel.from_xml_path(str(asset(xml)))
    except ValueError as error:
        raise EnvError(f"{xml}: {error}", "Install gymnasium[mujoco] or give the path of a valid XML.") from error


def asset(xml: str) -> Path:
    """Path of the file ``xml``, which is one or lies among gymnasium's assets."""
    return Path(xml) if Path(xml).exists() else Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets" / xml


def write_task(body: MujocoBody, model: mujoco.MjModel, scratch: mujoco.MjData, task: np.ndarray) -> None:
    """Write ``task`` [P] into a ``model`` of ``body``; ``scratch`` is data of that body that nobody needs."""
    body.edit(model, nominal_model(body.xml), task)
    # Inverse weights and subtree masses keep their old values after an edit unless told.
    mujoco.mj_setConst(model, scratch)


def task_model(body: MujocoBody, task: np.ndarray) -> mujoco.MjModel:
    """A copy of the body's nominal model with ``task`` [P] written into it."""
    model = copy.copy(nominal_model(body.xml))
    write_task(body, model, mujoco.MjData(model), task)
    # A diverged state must be seen as such; by default MuJoCo puts the body back to its rest pose without a word.
    model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_AUTORESET
    if model.ntree < 2:  # one body is one island: looking for others takes 4 % of a step and changes no bit
        model.opt.disableflags |= getattr(mujoco.mjtDisableBit, "mjDSBL_ISLAND", 0)  # MuJoCo >= 3.3.6 looks unasked
    return model


def read_physics(model: mujoco.MjModel, data: mujoco.MjData) -> np.ndarray:
    """MuJoCo's integration state, float64 [X], from which it continues bit for bit."""
    values = np.empty(mujoco.mj_stateSize(model, STATE))
    mujoco.mj_getState(model, data, values, STATE)
    return values


def write_physics(model: mujoco.MjModel, data: mujoco.MjData, values: np.ndarray) -> None:
    """Restore what :func:`read_physics` gave."""
    mujoco.mj_setState(model, data, np.ascontiguousarray(values), STATE)


class MujocoSimulator:
    """A :class:`~mbrl_lightning.envs.spec.Simulator` over MuJoCo.

    Args:
        spec: the family's spec.
        tasks: [B, P] float64.
        body: the body.
        threads: MuJoCo steps of different rows run in this many threads; results do not depend on it. Pays for bodies whose
            step takes 0.3 ms or more (humanoids).
    """

    one_by_one = True

    def __init__(self, spec: EnvSpec, tasks: Tensor, body: MujocoBody, threads: int = 1) -> None:
        self.batch_size = len(tasks)
        self._spec, self._body, self._threads = spec, body, threads
        self._models = [task_model(body, task) for task in tasks.cpu().numpy()]
        self._datas = [mujoco.MjData(model) for model in self._models]
        self._cells = [(m, d, d.ctrl) for m, d in zip(self._models, self._datas, strict=True)]
        nominal = nominal_model(body.xml)
        self._rest = nominal.qpos0.copy()
        self._scratch = mujoco.MjData(nominal)
        none = np.zeros(0) if body.sense is None else np.zeros_like(body.sense(nominal, self._scratch))
        self._sensed = [none.copy() for _ in self._datas]
        rows = zip(self._datas, self._sensed, strict=True)
        self._views = [part for d, sensed in rows for part in (d.qpos, sensed) if part.size]
        self._views += [d.qvel for d in self._datas]
        self._values = np.concatenate(self._views)  # all positions, then all velocities
        parts = np.split(self._values, [-self.batch_size * nominal.nv])
        self._qpos, self._qvel = (part.reshape(self.batch_size, -1) for part in parts)
        self._observation = torch.zeros(self.batch_size, spec.observation_dim)
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None
        self._camera: tuple[int, mujoco.Renderer] | None = None

    def reset(self, generator: torch.Generator, mask: Tensor | None = None) -> Tensor:
        """See Simulator.reset."""
        positions, velocities = (part.cpu().numpy() for part in self._body.noise(self.batch_size, generator))
        for row in chosen_rows(self.batch_size, mask):
            model, data, _ = self._cells[row]
            mujoco.mj_resetData(model, data)
            data.qpos[:] = self._rest + positions[row]
            data.qvel[:] = velocities[row]
            mujoco.mj_forward(model, data)
        self._read()
        return self._observe(self._qpos, mask)

    def step(self, action: Tensor, mask: Tensor | None = None) -> Tensor:
        """See Simulator.step."""
        require_finite_action(self._spec, action, mask)  # MuJoCo would take such a control for zero
        control = np.array(action.numpy(force=True), dtype=np.float64)
        np.minimum(np.maximum(control, -1.0, out=control), 1.0, out=control)  # np.clip takes twice as long
        control *= self._body.control_scale
        rows, before = chosen_rows(self.batch_size, mask), self._qpos.copy()
        if self._pool is None:
            self._advance(rows, control)
        else:
            parts = [rows[part :: self._threads] for part in range(self._threads)]
            list(self._pool.map(self._advance, parts, [control] * self._threads))
        self._read()
        return self._observe(before, mask)

    def _advance(self, rows: range | list[int], control: np.ndarray) -> None:
        step, skip, cells = mujoco.mj_step, self._body.frame_skip, self._cells
        for row in rows:
            model, data, ctrl = cells[row]
            ctrl[:] = control[row]
            try:
                step(model, data, skip)
            except Exception as error:
                cause = f"{self._spec.name}: MuJoCo failed in task {row}: {error}"
                raise EnvError(cause, "Narrow the family's parameter ranges.") from error

    def set_tasks(self, rows: Tensor, tasks: Tensor) -> None:
        """Give ``rows`` (indices [n]) the tasks [n, P] from the next step on; the state stays as it is."""
        for row, task in zip(rows.tolist(), tasks.cpu().numpy(), strict=True):
            write_task(self._body, self._models[row], self._scratch, task)

    def _read(self) -> None:
        if self._body.sense is not None:
            for (model, data, _), sensed in zip(self._cells, self._sensed, strict=True):
                sensed[:] = self._body.sense(model, data)
        np.concatenate(self._views, out=self._values)

    def _observe(self, before: np.ndarray, mask: Tensor | None) -> Tensor:
        with np.errstate(over="ignore", invalid="ignore"):  # a diverged state is reported below
            values = self._body.observe(self._qpos, self._qvel, before).astype(np.float32)
            finite = math.isfinite(values.sum())
        fresh = torch.from_numpy(values)
        if mask is not None:
            fresh = torch.where(mask.cpu()[:, None], fresh, self._observation)
        self._observation = fresh
        if not finite:
            require_finite(self._spec, fresh)
        # The caller may write into its own; a copy by numpy, still at hand, is quicker than a clone.
        return torch.from_numpy(values.copy()) if mask is None else fresh.clone()

    def state(self) -> Tensor:
        """See Simulator.state: MuJoCo's integration state, then the last observation."""
        physics = np.stack([read_physics(model, data) for model, data, _ in self._cells])
        return torch.cat([torch.from_numpy(physics), self._observation.double()], -1)

    def set_state(self, state: Tensor) -> None:
        """See Simulator.set_state; the continuation is bit-exact."""
        size = state.shape[1] - self._spec.observation_dim
        physics, observation = state[:, :size].cpu().double(), state[:, size:].cpu()
        for (model, data, _), values in zip(self._cells, physics.numpy(), strict=True):
            write_physics(model, data, values)
        self._observation = observation.float()
        self._read()

    def render(self, index: int = 0) -> np.ndarray:
        """See Simulator.render; from the camera that follows the body."""
        model = self._models[index]
        if self._camera is None or self._camera[0] != index:
            self._close_camera()
            self._camera = index, camera(model)
        # Drawn from a copy: computing body positions in place would touch the solver's warm start.
        data = copy.copy(self._datas[index])
        mujoco.mj_forward(model, data)
        self._camera[1].update_scene(data, 0 if model.ncam else -1)
        return self._camera[1].render()

    def drawing(self, index: int = 0) -> Drawing:
        """See Simulator.drawing."""
        self._scratch.qpos[:] = self._datas[index].qpos
        mujoco.mj_kinematics(self._models[index], self._scratch)
        return drawn(self._models[index], self._scratch)

    def close(self) -> None:
        """See Simulator.close."""
        self._close_camera()
        if self._pool is not None:
            self._pool.shutdown()

    def _close_camera(self) -> None:
        if self._camera is not None:
            self._camera[1].close()
            self._camera = None


def camera(model: mujoco.MjModel) -> mujoco.Renderer:
    """Draws states of ``model`` off screen.

    MuJoCo chooses its OpenGL when it is first imported, perhaps by another library; without a display it chooses wrongly.
    """
    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        mesa = ctypes.util.find_library("OSMesa") and not ctypes.util.find_library("EGL")
        os.environ.setdefault("MUJOCO_GL", "osmesa" if mesa else "egl")
    try:
        importlib.reload(sys.modules[mujoco.Renderer.__module__].gl_context)  # reads MUJOCO_GL
        return mujoco.Renderer(model)
    except Exception as error:  # each backend fails in its own way
        raise EnvError(
            f"cannot draw off screen with MUJOCO_GL={os.environ.get('MUJOCO_GL', '')}: {error}",
            "Install libegl1 (MUJOCO_GL=egl) or libosmesa6 (MUJOCO_GL=osmesa), or leave videos off.",
        ) from error


def centre_of_mass(model: mujoco.MjModel, data: mujoco.MjData) -> np.ndarray:
    """Centre of mass [3] of the first body and what hangs on it, at the present positions; a ``MujocoBody.sense``."""
    mujoco.mj_kinematics(model, data)
    mujoco.mj_comPos(model, data)
    return data.subtree_com[1]
