"""MuJoCo families: rewards and edits by their definitions, and what is said when physics breaks."""

import sys
from ctypes.util import find_library

import mujoco as engine
import numpy as np
import pytest
import torch
from fakes import generator, walk
from tensordict import TensorDict

from mbrl_lightning.envs import make_family
from mbrl_lightning.envs.bodies import humanoid as slim_humanoid
from mbrl_lightning.envs.bodies import mujoco
from mbrl_lightning.errors import EnvError


def test_humanoid_reward_against_the_definition():
    family, seen = make_family("slim_humanoid"), set()
    simulator = family.simulate(family.test[:4])
    for before, action, after in walk(family, simulator, 60, generator()):
        reward = family.spec.reward(before, action, after)
        for row, data in enumerate(simulator._datas):
            up = bool(1 <= data.qpos[2] <= 2)
            seen.add(up)
            expected = 50 / 3 * data.qvel[0] - 0.1 * float((data.ctrl**2).sum()) + 5 * up
            assert reward[row].item() == pytest.approx(expected, abs=1e-4)
            assert bool(family.spec.training_termination(after)[row]) is not up
        assert not family.spec.termination(after).any()
    assert seen == {True, False}


@pytest.mark.parametrize("name", ["slim_humanoid", "half_cheetah", "ant", "hopper", "walker2d", "swimmer"])
def test_joints_of_the_actuators_stand_where_the_spec_says(name):
    family, draws = make_family(name), generator()
    simulator = family.simulate(family.sample(1, draws))
    observation = simulator.reset(draws)
    for _ in range(5):
        observation = simulator.step(family.spec.random_action((1,), draws))
    model, data = simulator._models[0], simulator._datas[0]
    joints = [model.actuator_trnid[motor, 0] for motor in range(model.nu)]
    told = observation[0][torch.tensor(family.spec.joints)]
    expected = [(data.qpos[model.jnt_qposadr[j]], data.qvel[model.jnt_dofadr[j]]) for j in joints]
    assert torch.allclose(told, torch.tensor(np.array(expected), dtype=torch.float32), atol=1e-5)


def test_the_mirrored_humanoid_falls_the_mirrored_way():
    image, turned = slim_humanoid.mirror()
    family, draws = make_family("slim_humanoid"), generator()
    simulator = family.simulate(family.test[:1])
    model, data = simulator._models[0], simulator._datas[0]

    def after(observation, action):
        engine.mj_resetData(model, data)
        data.qpos[2], data.qpos[3:] = 4.0, observation[0, 1:22]  # in the air, where the feet do not differ
        data.qvel[:] = observation[0, 22:]
        engine.mj_forward(model, data)
        return simulator.step(action)

    observation = simulator.reset(draws) + 0.2 * torch.randn(1, 45, generator=draws)
    action = family.spec.random_action((1,), draws)
    one, other = after(observation, action), after(image(observation), turned(action))
    moved = (one - observation)[0, 1:].abs().mean()
    assert (image(one) - other)[
        0
    ].abs().max() < 0.1 * moved  # gymnasium's knees and hips differ in armature and stiffness


def test_rows_do_not_depend_on_their_neighbours_or_threads():
    family, draws = make_family("slim_humanoid"), generator()
    threaded = make_family("slim_humanoid", threads=2).simulate(family.test[:3])
    alone, together = family.simulate(family.test[1:2]), family.simulate(family.test[:3])
    together.reset(draws)
    start = together.state()
    threaded.set_state(start)
    alone.set_state(start[1:2])
    for _ in range(20):
        action = family.spec.random_action((3,), draws)
        following = together.step(action)
        assert threaded.step(action).equal(following)
        assert alone.step(action[1:2]).equal(following[1:2])
    threaded.close()


def test_task_edits_start_from_nominal_values_and_update_derived_ones():
    nominal = mujoco.nominal_model("half_cheetah.xml")
    family = make_family("half_cheetah", scale_inertia=True)
    model = family.simulate(torch.tensor([[1.2, 0.8]]))._models[0]
    np.testing.assert_allclose(model.body_mass, 1.2 * nominal.body_mass)
    np.testing.assert_allclose(model.body_inertia, 1.2 * nominal.body_inertia)
    np.testing.assert_allclose(model.dof_damping, 0.8 * nominal.dof_damping)
    np.testing.assert_allclose(model.body_subtreemass[1], 1.2 * 14.0)
    plain = make_family("half_cheetah").simulate(torch.tensor([[1.2, 0.8]]))._models[0]
    np.testing.assert_array_equal(plain.body_inertia, nominal.body_inertia)
    flipped = make_family("half_cheetah_flip").simulate(torch.tensor([[1, -1, 1, 1, 0.7, 1]]))._models[0]
    ratio = flipped.actuator_gear[:, 0] / nominal.actuator_gear[:, 0]
    np.testing.assert_allclose(ratio, [1, -1, 1, 1, 0.7, 1])


def test_divergence_and_missing_models_are_reported(caplog):
    family, draws = make_family("half_cheetah_flip"), generator()
    tasks = family.test[:3].clone()
    tasks[1] = 1e7
    simulator = family.simulate(tasks)
    simulator.reset(draws)
    actions = [family.spec.random_action((3,), draws) for _ in range(50)]
    with pytest.raises(EnvError, match=r"half_cheetah_flip: task 1 has a non-finite x_speed_mean"):
        [simulator.step(action) for action in actions]
    assert "MuJoCo" in caplog.text
    with pytest.raises(EnvError, match="nowhere"):
        mujoco.nominal_model("nowhere.xml")


@pytest.mark.skipif(not any(map(find_library, ("EGL", "OSMesa"))), reason="nothing to draw with off screen")
def test_drawing_leaves_the_physics_and_does_not_mind_who_imported_mujoco(monkeypatch):
    assert "mujoco" in sys.modules
    for name in ("DISPLAY", "MUJOCO_GL"):
        monkeypatch.delenv(name, raising=False)
    family, draws = make_family("half_cheetah"), generator()
    simulator, twin = family.simulate(family.test[:2]), family.simulate(family.test[:2])
    simulator.reset(draws)
    twin.set_state(simulator.state())
    for index in (0, 1):
        picture = simulator.render(index)
        assert picture.shape == (240, 320, 3)
        assert picture.std() > 5
    action = family.spec.random_action((2,), draws)
    assert simulator.step(action).equal(twin.step(action)), "drawing changed the physics"
    simulator.close()
    simulator.close()
    monkeypatch.setenv("MUJOCO_GL", "nothing")
    with pytest.raises(EnvError, match="cannot draw off screen with MUJOCO_GL=nothing"):
        twin.render()


def test_humanoid_positions_follow_from_velocities():
    """Left over of the true position changes while upright: the shares stated in ``untarget``."""
    family, draws = make_family("slim_humanoid"), generator()
    spec, simulator = family.spec, family.simulate(family.test)
    observation, rows = simulator.reset(draws), []
    size = torch.rand(16, 1, generator=draws)
    for _ in range(25):
        following = simulator.step(size * spec.random_action((16,), draws))
        up = slim_humanoid.upright(observation)
        rows.append(torch.stack([observation[up], following[up]]))
        observation = following
    before, after = torch.cat(rows, 1).double()
    predicted = spec.untarget(before, spec.target(before, after))
    torch.testing.assert_close(predicted[:, 22:], after[:, 22:])
    moved = (after - before).var(0, correction=0)
    left = (predicted - after).square().mean(0)
    for part, limit in ((slice(0, 1), 0.05), (slice(1, 5), 0.15), (slice(5, 22), 0.15)):
        assert (left[part].mean() / moved[part].mean()).sqrt() < limit


def test_humanoid_rotation_and_turn_agree_with_mujoco():
    draws = generator()
    quaternion = torch.nn.functional.normalize(torch.randn(20, 4, generator=draws, dtype=torch.float64), dim=-1)
    angle = torch.randn(20, 3, generator=draws, dtype=torch.float64)
    matrices, turned = slim_humanoid.rotation(3 * quaternion), slim_humanoid.turn(quaternion, angle)
    for row in range(20):
        matrix, moved = np.zeros(9), quaternion[row].numpy().copy()
        engine.mju_quat2Mat(matrix, moved)
        engine.mju_quatIntegrate(moved, angle[row].numpy().copy(), 1.0)
        np.testing.assert_allclose(matrices[row].flatten(), matrix, atol=1e-12)
        np.testing.assert_allclose(turned[row], moved, atol=1e-12)


def episodes(observation, following, valid):
    content = {"observation": observation, "valid": valid}
    after = TensorDict({"observation": following}, batch_size=valid.shape)
    return TensorDict(content | {"next": after}, batch_size=valid.shape)


def test_metrics():
    spec = make_family("slim_humanoid").spec
    before, after = torch.zeros(1, 4, 45), torch.zeros(1, 4, 45)
    before[..., 22], after[..., 22] = 1.0, 3.0
    after[..., 0] = torch.tensor([1.4, 1.2, 0.9, 1.1])
    values = spec.metrics(episodes(before, after, torch.ones(1, 4, dtype=torch.bool)))
    assert values["upright/share"].item() == 0.75
    assert values["upright/first_fall"].item() == 2
    assert values["distance"].item() == pytest.approx(4 * 0.015 * 2)
    cheetah = make_family("half_cheetah").spec
    speed = torch.full((1, 4, 18), 2.0)
    valid = torch.tensor([[True, True, True, False]])
    assert cheetah.metrics(episodes(speed, speed, valid))["distance"].item() == pytest.approx(0.3)
