"""What a body looks like as shapes in space, for whoever shows it; where pictures are drawn by MuJoCo or on a canvas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import mujoco
import numpy as np

Point = tuple[float, float]
PALE, HIDDEN_FROM = 0.9, 3  # MuJoCo's viewers leave geoms of group 3 and above out
KINDS = ("plane", "sphere", "capsule", "ellipsoid", "cylinder", "box", "mesh")
NUMBERS = {int(getattr(mujoco.mjtGeom, f"mjGEOM_{kind.upper()}")): kind for kind in KINDS}


@dataclass(frozen=True)
class Shape:
    """A solid with a place.

    Attributes:
        kind: plane, sphere, capsule, ellipsoid, cylinder, box or mesh.
        size: three numbers as MuJoCo has them, m: radius; radius and half length along z without round ends; half widths.
        colour: red, green, blue in 0 .. 255.
        place: of its middle [3], m.
        turn: quaternion [4], w first.
        mesh: vertices [V, 3] and triangles [F, 3] of a mesh.
    """

    kind: str
    size: tuple[float, ...]
    colour: tuple[int, int, int]
    place: np.ndarray
    turn: np.ndarray
    mesh: tuple[np.ndarray, np.ndarray] | None = None


class Drawing(NamedTuple):
    """Shapes, where one looks [3], and how much is to be seen around it, m; what is `flat` is looked at along y."""

    shapes: list[Shape]
    focus: np.ndarray
    extent: float
    flat: bool


def drawn(model: mujoco.MjModel, data: mujoco.MjData) -> Drawing:
    """A MuJoCo body at the positions for which `data` has been computed; one looks at its first body."""
    first = min(1, model.nbody - 1)
    shapes, focus, own = [], data.xpos[first].copy(), model.body_rootid[model.geom_bodyid] == model.body_rootid[first]
    reach = np.linalg.norm(data.geom_xpos - focus, axis=1) + model.geom_rbound
    for geom in range(model.ngeom):
        kind, rgba, turn = NUMBERS.get(int(model.geom_type[geom])), model.geom_rgba[geom], np.empty(4)
        if kind is None or model.geom_group[geom] >= HIDDEN_FROM or rgba[3] == 0:
            continue
        if model.geom_matid[geom] >= 0 and np.all(rgba[:3] == 0.5):  # a material counts where no colour was chosen
            rgba = model.mat_rgba[model.geom_matid[geom]]
        colour = (PALE,) * 3 if kind == "plane" else np.clip(rgba[:3], 0, 1)
        mujoco.mju_mat2Quat(turn, data.geom_xmat[geom])
        size, place = tuple(model.geom_size[geom].tolist()), data.geom_xpos[geom].copy()
        red, green, blue = (round(255 * float(part)) for part in colour)
        mesh = _mesh(model, model.geom_dataid[geom]) if kind == "mesh" else None
        shapes.append(Shape(kind, size, (red, green, blue), place, turn, mesh))
    return Drawing(shapes, focus, float(reach.max(where=own, initial=0.1)), flat=False)


def _mesh(model: mujoco.MjModel, number: int) -> tuple[np.ndarray, np.ndarray]:
    first, count = model.mesh_vertadr[number], model.mesh_vertnum[number]
    start, faces = model.mesh_faceadr[number], model.mesh_facenum[number]
    return model.mesh_vert[first : first + count].copy(), model.mesh_face[start : start + faces].copy()


class Canvas:
    """Lines in a plane of [-half_width, half_width] in both directions, m, later ones in front: a stick figure."""

    def __init__(self, half_width: float, pixels: int = 256) -> None:
        self.half_width, self.pixels = half_width, pixels
        self._lines: list[tuple[Point, Point, float, tuple[int, int, int]]] = []

    def segment(self, start: Point, end: Point, width: float, colour: tuple[int, int, int]) -> None:
        """Draw a line with round ends; a dot if both ends are equal. ``width`` in metres."""
        self._lines.append((start, end, width, colour))

    @property
    def picture(self) -> np.ndarray:
        """White where nothing is, uint8 [pixels, pixels, 3]."""
        line = (np.arange(self.pixels) + 0.5) / self.pixels * 2 * self.half_width - self.half_width
        x, y = np.meshgrid(line, -line)
        picture = np.full((self.pixels, self.pixels, 3), 255, dtype=np.uint8)
        for (x0, y0), (x1, y1), width, colour in self._lines:
            dx, dy = x1 - x0, y1 - y0
            along = np.clip(((x - x0) * dx + (y - y0) * dy) / max(dx * dx + dy * dy, 1e-12), 0, 1)
            picture[np.hypot(x - x0 - along * dx, y - y0 - along * dy) <= width / 2] = colour
        return picture

    @property
    def drawing(self) -> Drawing:
        """Lines as boxes and dots as spheres in the plane of x and z, each a little before the one below it."""
        shapes = []
        for order, ((x0, y0), (x1, y1), width, colour) in enumerate(self._lines):
            length, half = float(np.hypot(x1 - x0, y1 - y0)), -np.arctan2(y1 - y0, x1 - x0) / 2  # about y, z is up
            place = np.array([(x0 + x1) / 2, -0.005 * self.half_width * order, (y0 + y1) / 2])
            kind, sizes = ("box", ((length + width) / 2, width / 2, width / 2)) if length else ("sphere", (width / 2,))
            size = tuple(
                round(part, 4) for part in sizes
            )  # the same from frame to frame, for who draws anew what differs
            shapes.append(Shape(kind, size, colour, place, np.array([np.cos(half), 0.0, np.sin(half), 0.0])))
        return Drawing(shapes, np.zeros(3), self.half_width, flat=True)
