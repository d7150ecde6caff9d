"""Shapes of a body in a viser scene: made once, moved from frame to frame."""

from __future__ import annotations

from typing import Any

import numpy as np

from mbrl_lightning.envs.bodies.shapes import Drawing, Shape

CELL = 1.0  # m, of the floor


class Scene:
    """The body in the middle, the floor passing under it.

    Args:
        scene: of a `viser.ViserServer`.
    """

    def __init__(self, scene: Any) -> None:
        self._scene, self._made, self._handles = scene, list[Any](), list[Any]()

    def show(self, drawing: Drawing) -> None:
        """The shapes of this moment in place of the last ones."""
        aside = np.array([drawing.focus[0], drawing.focus[1], 0.0])
        under = np.round(aside / CELL) * CELL - aside  # the floor looks the same a cell further
        for number, shape in enumerate(drawing.shapes):
            place = shape.place + (under if shape.kind == "plane" else -aside)
            known = (shape.kind, shape.size, shape.colour)
            if number == len(self._made) or self._made[number] != known:
                self._made[number:] = [known, *self._made[number + 1 :]]
                self._handles[number:] = [self._add(f"/body/{number}", shape), *self._handles[number + 1 :]]
            self._handles[number].position, self._handles[number].wxyz = place, shape.turn
        for handle in self._handles[len(drawing.shapes) :]:
            handle.remove()
        del self._made[len(drawing.shapes) :], self._handles[len(drawing.shapes) :]

    def _add(self, name: str, shape: Shape) -> Any:
        scene, size, colour = self._scene, shape.size, shape.colour
        match shape.kind:
            case "plane":
                return scene.add_grid(name, infinite_grid=True, cell_size=CELL / 2, section_size=CELL, fade_distance=15)
            case "box":
                return scene.add_box(name, color=colour, dimensions=tuple(2 * half for half in size))
            case "sphere":
                return scene.add_icosphere(name, size[0], color=colour, subdivisions=3)
            case "cylinder":
                return scene.add_cylinder(name, size[0], 2 * size[1], color=colour)
            case "ellipsoid":
                return scene.add_icosphere(name, 1.0, color=colour, subdivisions=3, scale=tuple(size))
            case "mesh" if shape.mesh is not None:
                return scene.add_mesh_simple(name, *shape.mesh, color=colour, flat_shading=True, side="double")
        import trimesh  # which viser needs, too

        mesh = trimesh.creation.capsule(height=2 * size[1], radius=size[0], count=[16, 16])
        return scene.add_mesh_simple(name, mesh.vertices, mesh.faces, color=colour)


def camera(drawing: Drawing) -> tuple[np.ndarray, np.ndarray]:
    """Where the camera is and what it looks at: straight from the front what is flat, else a little from above."""
    target = np.array([0.0, 0.0, 0.0 if drawing.flat else drawing.focus[2] / 2])
    direction = np.array([0.0, -1.4, 0.0]) if drawing.flat else np.array([0.8, -2.2, 0.8])
    return target + drawing.extent * direction, target
