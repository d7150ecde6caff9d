"""Pictures of MuJoCo states without a display."""

from __future__ import annotations

import ctypes.util
import importlib
import os

import mujoco
import numpy as np

from mbrl_lightning.errors import EnvError


def _backend() -> str:
    """MUJOCO_GL if it names a backend; else what this machine has a library for."""
    asked = os.environ.get("MUJOCO_GL", "").lower()
    if asked in ("egl", "osmesa", "glfw", "cgl"):
        return asked
    if os.environ.get("DISPLAY") or os.name == "nt":
        return "glfw"
    return "osmesa" if ctypes.util.find_library("OSMesa") and not ctypes.util.find_library("EGL") else "egl"


class Camera:
    """Draws states of ``model`` as seen by its first camera (the one that follows the body), or a free one.

    ``mujoco.Renderer`` is not used because it takes the backend chosen when mujoco was first imported, which
    without a display is the wrong one.

    Raises:
        EnvError: no OpenGL for drawing off screen.
    """

    def __init__(self, model: mujoco.MjModel, height: int, width: int) -> None:
        backend = _backend()
        try:
            self._gl = importlib.import_module(f"mujoco.{backend}").GLContext(width, height)
            self._gl.make_current()
            self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
        except Exception as error:  # each backend fails in its own way
            raise EnvError(
                f"cannot draw off screen with OpenGL backend {backend!r}: {error}",
                "Install libegl1 (MUJOCO_GL=egl) or libosmesa6 (MUJOCO_GL=osmesa), or leave videos off.",
            ) from error
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._context)
        self._model, self._shape = model, (height, width, 3)
        self._scene, self._option = mujoco.MjvScene(model, maxgeom=1000), mujoco.MjvOption()
        self._view = mujoco.MjvCamera()
        if model.ncam:
            self._view.type, self._view.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, 0
        else:
            mujoco.mjv_defaultFreeCamera(model, self._view)

    def picture(self, data: mujoco.MjData) -> np.ndarray:
        """uint8 [height, width, 3] of ``data``, whose body positions must be up to date (mj_forward)."""
        self._gl.make_current()
        everything = mujoco.mjtCatBit.mjCAT_ALL.value
        mujoco.mjv_updateScene(self._model, data, self._option, None, self._view, everything, self._scene)
        frame, area = (
            np.empty(self._shape, dtype=np.uint8),
            mujoco.MjrRect(0, 0, self._shape[1], self._shape[0]),
        )
        mujoco.mjr_render(area, self._scene, self._context)
        mujoco.mjr_readPixels(frame, None, area, self._context)
        return frame[::-1].copy()  # OpenGL's first row is the bottom one

    def close(self) -> None:
        """Free the OpenGL context."""
        self._gl.make_current()
        self._context.free()
        self._gl.free()
