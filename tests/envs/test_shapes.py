"""Bodies as shapes in space: those that MuJoCo draws, and lines on a canvas."""

from __future__ import annotations

import math
from pathlib import Path

import mujoco
import numpy as np
import pytest
import torch

from mbrl_lightning.envs import FAMILIES, load_family, make_family
from mbrl_lightning.envs.bodies.shapes import Canvas, drawn
from mbrl_lightning.errors import ConfigError


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_drawn_and_can_be_switched(name):
    family = make_family(name)
    env = family.make(family.test[0])
    assert env.drawing() is None
    env.reset(seed=0)
    first = env.drawing()
    env.switch(family.test[-1])
    env.step(env.action_space.sample())
    second = env.drawing()
    assert first.extent > 0.5
    assert len(first.shapes) == len(second.shapes) > 1
    assert any(abs(one.place - two.place).max() > 1e-5 for one, two in zip(first.shapes, second.shapes, strict=True))
    env.close()


def test_shapes_are_where_mujoco_has_them():
    model = mujoco.MjModel.from_xml_string("""<mujoco><asset><material name="m" rgba="1 0 0 1"/></asset><worldbody>
      <geom type="plane" size="1 1 1"/><geom type="box" size="1 2 3" group="3"/>
      <body pos="1 2 3" euler="0 90 0"><joint/><geom type="capsule" size=".1 .5" material="m"/>
      <geom type="sphere" size=".2" pos="0 0 1" rgba="0 0 1 1"/></body></worldbody></mujoco>""")
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    plane, capsule, sphere = drawn(model, data).shapes
    assert [shape.kind for shape in (plane, capsule, sphere)] == ["plane", "capsule", "sphere"]
    assert (capsule.colour, sphere.colour) == ((255, 0, 0), (0, 0, 255))
    np.testing.assert_allclose(capsule.turn, [math.sqrt(0.5), 0, math.sqrt(0.5), 0], atol=1e-9)
    np.testing.assert_allclose(sphere.place, [2, 2, 3], atol=1e-9)
    assert drawn(model, data).extent == pytest.approx(1.2)


def test_looking_at_a_body_changes_nothing_of_it():
    family = make_family("half_cheetah")
    one, two = family.make(family.test[0]), family.make(family.test[0])
    for env in (one, two):
        env.reset(seed=3)
    for _ in range(5):
        two.drawing()
        np.testing.assert_array_equal(*(env.step(np.full(6, 0.7))[0] for env in (one, two)))


def test_lines_are_boxes_and_dots_spheres():
    canvas = Canvas(2.0)
    canvas.segment((0.0, 0.0), (0.0, 1.0), 0.2, (10, 20, 30))
    canvas.segment((1.0, 1.0), (1.0, 1.0), 0.4, (40, 50, 60))
    line, dot = canvas.drawing.shapes
    assert (line.kind, dot.kind, dot.size) == ("box", "sphere", (0.2,))
    np.testing.assert_allclose(line.size, (0.6, 0.1, 0.1))
    np.testing.assert_allclose(line.place, (0, 0, 0.5))
    turned = np.empty(3)
    mujoco.mju_rotVecQuat(turned, np.array([1.0, 0, 0]), line.turn)
    np.testing.assert_allclose(turned, (0, 0, 1), atol=1e-9)  # along the line: up
    assert dot.place[1] < line.place[1]  # nearer to who looks along y
    assert (canvas.picture == (10, 20, 30)).all(-1).sum() == pytest.approx(64**2 * (0.2 + 0.01 * math.pi), rel=0.1)


def test_a_simulator_that_cannot_switch_says_so(monkeypatch):
    family = make_family("cartpole")
    env = family.make(family.test[0])
    env.reset(seed=0)
    monkeypatch.delattr(type(env._simulator), "set_tasks")
    with pytest.raises(ConfigError, match="no other task"):
        env.switch(family.test[1])
    with pytest.raises(ConfigError, match="no task"):
        env.switch([1.0, math.nan])


def test_a_users_environment_is_switched_and_drawn_as_a_picture():
    family = load_family(str(Path(__file__).parents[2] / "examples" / "pendulum.py"))
    env = family.make({"m": 0.5, "l": 1.0}, render_mode="rgb_array")
    env.reset(seed=0)
    assert env.drawing() is None
    env.switch([2.0, 1.3])
    inner = env._simulator._vector.envs[0].unwrapped
    assert (inner.m, inner.l) == (2.0, 1.3)
    env.reset(seed=1)
    assert inner.m == 2.0
    torch.testing.assert_close(env._simulator._tasks[0], [2.0, 1.3])
