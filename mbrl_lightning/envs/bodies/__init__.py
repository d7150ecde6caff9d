"""Bodies: the physics of each, and what is seen of it."""

import ctypes.util
import os
import sys

# MuJoCo chooses how it draws when it is first imported, and by default so that it needs a display.
if sys.platform == "linux" and not os.environ.get("DISPLAY"):
    for backend, library in (("egl", "EGL"), ("osmesa", "OSMesa")):
        if not os.environ.get("MUJOCO_GL") and ctypes.util.find_library(library):
            os.environ["MUJOCO_GL"] = backend
