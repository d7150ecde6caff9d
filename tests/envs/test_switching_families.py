"""Each hidden-task family against its formulas and its model: rewards, ends, what a task changes, and where it is seen."""

import numpy as np
import pytest
import torch
from fakes import centre_x, generator, walk
from tensordict import TensorDict

from mbrl_lightning.envs import make_family
from mbrl_lightning.envs.bodies import ant, mujoco
from mbrl_lightning.envs.bodies.pier import BLOCKS, pier_model
from mbrl_lightning.errors import ConfigError


def test_point_one_step_by_hand():
    family = make_family("point_switch")
    sim = family.simulate(torch.tensor([[1.0], [-1.0]]))
    start = sim.reset(generator())
    action = torch.tensor([[0.6, -3.0], [0.6, -3.0]])  # the second entry is clipped to -1
    following = sim.step(action)
    for row, direction in ((0, 1), (1, -1)):
        vx, vy, _ = start[row].double().tolist()
        vx, vy = vx + 0.5 * (0.6 - 0.5 * vx), vy + 0.5 * (-1 - 0.5 * vy)
        expected = [vx, vy, direction * vx - 0.1 * (0.36 + 1)]
        assert following[row].tolist() == pytest.approx(expected, abs=1e-6)


def test_point_is_worth_nothing_blind_and_much_when_told():
    """Both numbers frame what a learner can reach; the direction flips, so no fixed action pays."""
    family = make_family("point_switch")
    returns = {}
    for told in (True, False):
        sim, total = family.simulate(family.test), torch.zeros(20)
        sim.reset(generator())
        for _ in range(200):
            direction = sim.tasks.float() if told else torch.ones(20, 1)
            total += sim.step(torch.cat([direction, torch.zeros(20, 1)], 1))[:, -1]
        returns[told] = total.mean().item()
    assert returns[True] == pytest.approx(337, abs=5)
    assert abs(returns[False]) < 45


# -- tasks and ends


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        ("ant_fwd_bwd", [{0: 0.21}, {0: 0.99}], [{0: 0.19}, {0: 1.01}]),
        ("humanoid_direc", [{0: 1.01}, {0: 1.99}], [{0: 0.99}, {0: 2.01}]),
        ("walker2d_random_params", [{0: 0.81, 1: -0.99}, {0: 1.99}], [{0: 0.79}, {0: 2.01}, {0: 1.2, 1: 1.01}]),
        ("ant", [{1: 0.21}, {1: 0.99}], [{1: 0.19}, {1: 1.01}]),
        ("walker2d", [{1: 0.81, 2: -0.99}], [{1: 0.79}, {1: 2.01}, {1: 1.2, 2: 1.01}]),
        ("hopper", [{1: 0.71, 2: 0.19}, {1: 5.0}], [{1: 0.69}, {1: 1.2, 2: -0.21}, {1: 1.2, 4: 101.0}]),
        ("ant_crippled_leg", [{0: 0.1}, {0: 1e6}], []),
        ("half_cheetah_fwd_bwd", [{0: -1e6}], []),
    ],
)
def test_episodes_end_where_stated(name, inside, outside):
    spec = make_family(name).spec
    for cases, ends in ((inside, False), (outside, True)):
        for case in cases:
            observation = torch.zeros(2, 3, spec.observation_dim)
            for entry, value in case.items():
                observation[..., entry] = value
            assert (spec.termination(observation) == ends).all(), case


# -- hidden dynamics


DEAD = [("ant_crippled_leg", leg, motors) for leg, motors in enumerate(ant.MOTORS)]
DEAD += [("half_cheetah_disabled", joint, (joint,)) for joint in range(6)]


@pytest.mark.parametrize(("name", "task", "dead"), DEAD)
def test_dead_motors_have_no_say_and_the_others_have(name, task, dead):
    family = make_family(name)
    for motor in range(family.spec.action_dim):
        sim, pushed = family.simulate(torch.full((2, 1), float(task))), torch.zeros(2, family.spec.action_dim)
        sim.reset(generator())
        sim.set_state(sim.state()[:1].repeat(2, 1))
        pushed[1, motor] = 1.0
        one, other = sim.step(pushed)
        assert one.equal(other) == (motor in dead)


def test_crippling_moves_from_leg_to_leg():
    sim = make_family("ant_crippled_leg", flip=True, switch_every_steps=1, jitter=0.0).simulate(torch.zeros(1, 1))
    sim.reset(generator())
    nominal, before = mujoco.nominal_model("ant.xml"), -1
    for motors, geoms in zip(ant.MOTORS, ant.LEGS, strict=True):  # a leg's geoms hang on the joints of its motors
        joints = [nominal.jnt_bodyid[nominal.actuator_trnid[motor, 0]] for motor in motors]
        assert joints == [nominal.geom_bodyid[geom] for geom in geoms]
    for _ in range(12):
        leg, model = int(sim.tasks), sim._base._models[0]
        assert leg != before
        shrunk = np.flatnonzero((model.geom_size != nominal.geom_size).any(1)).tolist()
        assert tuple(shrunk) == ant.LEGS[leg]
        np.testing.assert_allclose(model.geom_size[shrunk], nominal.geom_size[shrunk] / 2)
        np.testing.assert_array_equal(model.geom_pos[shrunk[1]], nominal.geom_pos[shrunk[0]])
        assert (model.geom_rbound[shrunk] < 0.7 * nominal.geom_rbound[shrunk]).all()
        np.testing.assert_array_equal(model.body_mass, nominal.body_mass)
        np.testing.assert_array_equal(np.flatnonzero(model.actuator_gear[:, 0] == 0), sorted(ant.MOTORS[leg]))
        before = leg
        sim.step(torch.zeros(1, 8))


def test_crippled_ant_is_paid_for_its_centre_of_mass():
    family = make_family("ant_crippled_leg")
    sim = family.simulate(family.test[:1])
    model, data = sim._base._models[0], sim._base._datas[0]
    before = None
    for _, _, after in walk(family, sim, 20, generator()):
        place = centre_x(model, data)
        if before is not None:
            assert after[0, -1].item() == pytest.approx((place - before) / 0.05 + 0.05, abs=1e-5)
        before = place


def test_walker_friction_and_mass_are_the_tasks():
    family, nominal = make_family("walker2d_random_params"), mujoco.nominal_model("walker2d_v5.xml")
    sim = family.simulate(torch.tensor([[2.0, 0.5]], dtype=torch.float64))
    sim.reset(generator())
    model, data = sim._base._models[0], sim._base._datas[0]
    expected = nominal.body_mass.copy()
    expected[1] *= 2
    np.testing.assert_array_equal(model.body_mass, expected)
    np.testing.assert_array_equal(model.body_inertia[1], 2 * nominal.body_inertia[1])
    assert model.body_subtreemass[1] == pytest.approx(expected.sum())
    touched = 0
    for _ in range(40):
        x = data.qpos[0]
        action = family.spec.random_action((1,), generator(touched))
        observation = sim.step(action)
        expected_reward = (data.qpos[0] - x) / 0.008 + 1 - 1e-3 * float(action.square().sum())
        assert observation[0, -1].item() == pytest.approx(expected_reward, abs=1e-4)
        for contact in data.contact:
            touched += 1
            assert contact.friction[0] == pytest.approx(0.35), "the feet's 1.9 would hide the ground's"
    assert touched
    box = family.sample(2000, generator())
    assert box.min() == pytest.approx(1.5**-3, rel=0.01)
    assert box.max() == pytest.approx(1.5**3, rel=0.01)


def test_pier_masses_are_explicit_and_indices_fit():
    for mass in (14.0, 2.93):
        model = pier_model(mass)
        assert model.body_mass[1:8].sum() == pytest.approx(mass)
        np.testing.assert_allclose(model.body_mass[8:], 1.38)
        assert [model.joint(9 + block).name for block in range(8)] == [f"block_{block}" for block in range(8)]
        np.testing.assert_array_equal(model.jnt_stiffness[9:], 150)
        assert model.opt.timestep == 0.01


@pytest.mark.parametrize("block", range(8))
def test_a_block_matters_where_the_cheetah_stands_on_it(block):
    family = make_family("half_cheetah_pier")
    nominal = torch.tensor([[5.0] * 8 + [0.5] * 8], dtype=torch.float64)
    other = (block + 4) % 8
    changes = {"damping": block, "friction": 8 + block, "damping elsewhere": other, "friction elsewhere": 8 + other}
    tasks = nominal.repeat(5, 1)
    for row, column in enumerate(changes.values(), start=1):
        tasks[row, column] *= 0.4
    sim = family.simulate(tasks)
    sim.reset(generator())
    for model, data in zip(sim._base._models, sim._base._datas, strict=True):
        data.qpos[:9] = 0
        data.qpos[0] = BLOCKS[block][0]
        data.qvel[:] = 0
        assert model.nq == 17
    sim.set_state(sim.state())
    draws = generator(1)
    grips = []
    for _ in range(30):
        seen = sim.step(family.spec.random_action((1,), draws).repeat(5, 1))
        grips += [contact.friction[0] for contact in sim._base._datas[2].contact]
    assert grips == [pytest.approx(0.2)] * len(grips), "the cheetah's own 0.4 would hide a slippery block"
    assert grips
    moved = (seen[1:] - seen[0]).abs().amax(1)
    assert (moved[:2] > 1e-3).all()
    assert (moved[2:] == 0).all()


def test_pier_is_paid_for_its_centre_of_mass_and_shows_it():
    family = make_family("half_cheetah_pier")
    sim, names = family.simulate(family.test[:1]), family.spec.observation_names
    column, data = names.index("centre_of_mass_x [m]"), sim._base._datas[0]
    for before, action, after in walk(family, sim, 20, generator()):
        expected = (after[0, column] - before[0, column]) / 0.01 - 0.05 * action.square().sum()
        assert after[0, -1].item() == pytest.approx(expected.item(), abs=1e-4)
        assert after[0, :8].double().numpy() == pytest.approx(data.qpos[1:9], abs=1e-6)
    assert len(names) == 21


def test_distance_is_what_the_body_travelled():
    family, draws = make_family("half_cheetah_fwd_bwd"), generator()
    sim, rows = family.simulate(family.test[:2]), []
    sim.reset(draws)
    data = sim._base._datas
    start = [float(d.qpos[0]) for d in data]
    for _ in range(30):
        action = family.spec.random_action((2,), draws)
        rows.append((action, sim.step(action)))
    action, seen = (torch.stack(part, 1) for part in zip(*rows, strict=True))
    valid = torch.ones(2, 30, dtype=torch.bool)
    after = {"observation": seen, "reward": seen[..., -1:]}
    episodes = TensorDict({"observation": seen, "action": action, "next": after, "valid": valid}, batch_size=[2, 30])
    travelled = family.spec.metrics(episodes)["distance"]
    expected = [d * (float(row.qpos[0]) - x) for d, row, x in zip((1, -1), data, start, strict=True)]
    assert travelled.tolist() == pytest.approx(expected, abs=1e-4)
    valid[1, 12:] = False
    lasted = make_family("ant_fwd_bwd").spec.metrics(episodes)["upright/first_fall"]
    assert lasted.tolist() == [30, 12]


def test_a_leg_can_be_kept_for_the_test():
    family = make_family("ant_crippled_leg", unseen_leg=2, switch_every_steps=None)
    assert family.sample(300, generator()).unique().tolist() == [0.0, 1.0, 3.0]
    assert family.test.unique().tolist() == [2.0]
    simulator = family.simulate(family.test[:2])
    simulator.reset(generator())
    for _ in range(5):
        simulator.step(torch.zeros(2, 8))
    assert simulator.tasks.unique().tolist() == [2.0]
    for options in ({"unseen_leg": 2}, {"unseen_leg": 4, "switch_every_steps": None}):
        with pytest.raises(ConfigError, match="keeps its leg"):
            make_family("ant_crippled_leg", **options)


# -- where the task is seen


@pytest.mark.parametrize("name", ["point_switch", "half_cheetah_fwd_bwd"])
def test_a_family_that_shows_its_task_is_otherwise_as_it_was(name):
    options = {"switch_every_steps": 4, "flip": True}
    hidden, told = make_family(name, **options), make_family(name, told=True, **options)
    tasks, actions = hidden.test[:2], generator()
    plain, seen = hidden.simulate(tasks), told.simulate(tasks)
    one, two = plain.reset(generator(1)), seen.reset(generator(1))
    shown = set()
    for _ in range(12):
        assert torch.equal(torch.cat([two[:, :-2], two[:, -1:]], 1), one)
        assert torch.equal(two[:, -2:-1].double(), plain.tasks)
        shown.add(float(two[0, -2]))
        action = hidden.spec.random_action((2,), actions)
        before, after = two, seen.step(action)
        one, two = plain.step(action), after
        spec = told.spec
        torch.testing.assert_close(spec.untarget(before, spec.target(before, after)), after)
        assert torch.equal(spec.reward(before, action, after), one[:, -1])
    assert shown == {-1.0, 1.0}
    assert told.spec.feature_dim == hidden.spec.feature_dim + 1
    assert told.spec.observation_dim == len(told.spec.observation_names) == two.shape[1]


@pytest.mark.parametrize("name", ["half_cheetah_fwd_bwd", "half_cheetah_pier", "ant_crippled_leg", "humanoid_direc"])
def test_colours_follow_the_hidden_task(name):
    family = make_family(name, switch_every_steps=2, jitter=0.0)
    sim, seen = family.simulate(family.test[:1]), {}
    sim.reset(generator())
    for _ in range(8):
        seen.setdefault(tuple(sim.tasks[0].tolist()), sim._base._models[0].geom_rgba.copy())
        fresh = family.simulate(sim.tasks)._base._models[0]
        np.testing.assert_array_equal(sim._base._models[0].geom_rgba, fresh.geom_rgba)
        sim.step(torch.zeros(1, family.spec.action_dim))
    first, second, *_ = seen.values()
    assert not np.array_equal(first, second)


def test_point_picture_follows_the_hidden_task():
    sim = make_family("point_switch", switch_every_steps=1, jitter=0.0).simulate(torch.tensor([[1.0]]))
    sim.reset(generator())
    before = sim.render()
    blue = (before[..., 2] > 180) & (before[..., 0] < 60)
    sim.step(torch.zeros(1, 2))
    after = sim.render()
    assert blue.sum() > 100
    assert not ((after[..., 2] > 180) & (after[..., 0] < 60)).any()
