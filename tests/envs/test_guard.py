"""Whatever a user's environment does, the answer is an EnvError that says where, or the environment is right and is taken."""

import contextlib
import dataclasses
import multiprocessing
import os
import time

import gymnasium
import numpy as np
import pytest
import torch
from fakes import generator

from mbrl_lightning.check_env import check_family
from mbrl_lightning.envs.family import TaskFamily
from mbrl_lightning.envs.guard import Guard, HangError, guarded_family
from mbrl_lightning.envs.gym_family import gym_family
from mbrl_lightning.errors import ConfigError, DivergedError, EnvError


class Cart(gymnasium.Env):
    """A mass on a line, pushed by one motor."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
    end = False

    def __init__(self):
        self.mass, self.state = 1.0, np.zeros(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = self.np_random.uniform(-1, 1, 2)
        return self.seen(), {}

    def seen(self):
        return self.state.astype(np.float32)

    def own_reward(self):
        return -(float(self.state[0]) ** 2)

    def step(self, action):
        speed = 0.95 * self.state[1] + 0.2 * float(action[0]) / self.mass
        self.state = np.array([self.state[0] + 0.1 * speed, speed])
        return self.seen(), self.own_reward(), self.end, False, {"speed": speed}


def reward(observation, action, following):
    return -(following[..., 0] ** 2)


def cart(cls=Cart, paid=reward, ranges=None, **options):
    return gym_family(cls, ranges or {"mass": (0.5, 2.0)}, paid, **{"horizon": 20, "name": "cart"} | options)


def failed(family):
    return [check.name for check in check_family(family) if not check.passed]


def variant(**members):
    return type("Own", (Cart,), members)


def raising(error):
    def method(self, *arguments, **named):
        raise error

    return method


def waits(self, *arguments):
    while True:
        with contextlib.suppress(Exception):
            time.sleep(0.01)


def stepped(family, steps=3):
    with contextlib.closing(family.simulate(family.test[:2])) as simulator:
        simulator.reset(generator())
        for _ in range(steps):
            simulator.step(family.spec.random_action((2,), generator()))
        simulator.render()


FAULTS = {
    "exit": (variant(step=raising(SystemExit(0))), {}, "SystemExit: 0"),
    "pipe": (variant(step=raising(BrokenPipeError())), {}, "BrokenPipeError"),
    "base": (variant(step=raising(GeneratorExit())), {}, "GeneratorExit"),
    "reset": (variant(reset=raising(KeyError("torso"))), {}, "reset.*KeyError"),
    "four": (variant(step=lambda self, action: (self.seen(), 0.0, False, {})), {}, "4 values"),
    "one": (variant(reset=lambda self, **named: self.seen()), {}, "reset.*ndarray, not"),
    "none": (variant(own_reward=lambda self: None), {}, "the reward of step"),
    "two": (variant(own_reward=lambda self: np.ones(2)), {}, "the reward of step"),
    "dict": (variant(seen=lambda self: {"place": 1.0}), {}, "the observation.*TypeError"),
    "shape": (variant(seen=lambda self: np.zeros(3)), {}, "of shape"),
    "render": (variant(render=raising(OSError("no screen"))), {}, "render.*no screen"),
    "flat picture": (variant(render=lambda self: np.zeros(3)), {}, "a picture of shape"),
    "nothing": (Cart, {}, "nothing was drawn|NotImplementedError"),
    "close": (variant(render=lambda self: np.zeros((2, 2, 3)), close=raising(ValueError("shut"))), {}, "close.*shut"),
    "task": (Cart, {"set_task": lambda env, task: {}["torso"]}, "set_task.*KeyError.*test_guard.py:"),
    "hang": (variant(step=waits), {"call_seconds": 0.2}, "did not come back.*test_guard.py:"),
    "hang in reset": (variant(reset=lambda self, **named: waits(self)), {"call_seconds": 0.2}, "did not come back"),
    "ends": (variant(end=True), {}, "termination"),
    "build": (lambda: [][0], {}, "building.*IndexError"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_environments(fault):
    cls, options, message = FAULTS[fault]
    with pytest.raises(EnvError, match=message) as caught:
        stepped(cart(cls, **options))
    assert "cart" in str(caught.value)
    assert "test_guard.py:" in str(caught.value) or fault in ("nothing", "ends", "flat picture")
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("fault", ["exit", "pipe", "four", "ended in a render", "hang", "ends", "build", "killed"])
def test_faults_in_processes_of_their_own(fault):
    own = {
        "killed": (variant(step=lambda self, action: os.kill(os.getpid(), 9)), {}, r"task 0 \[.*\] with status -9"),
        "ended in a render": (variant(render=lambda self: os._exit(7)), {}, r"task 0 \[.*\] with status 7"),
    }
    cls, options, message = (FAULTS | own)[fault]
    family, began = cart(cls, processes=True, **options) if fault != "build" else None, time.monotonic()
    with pytest.raises(EnvError, match=message) as caught:
        stepped(family or cart(cls, processes=True))
    assert "test_guard.py:" in str(caught.value) or fault in ("ends", *own)
    assert caught.value.exit_code == 3
    assert time.monotonic() - began < 20
    assert not multiprocessing.active_children()


def test_processes_do_what_one_process_does():
    plain, parted = (cart(processes=own, info=("speed",)) for own in (False, True))
    alone, apart = (family.simulate(family.test[:3]) for family in (plain, parted))
    mask, action = torch.tensor([True, False, True]), torch.tensor([[0.5], [-1.0], [2.0]])
    for simulator in (alone, apart):
        simulator.reset(generator())
    for rows in (None, mask, None):
        assert apart.step(action, rows).equal(alone.step(action, rows))
    assert apart.reset(generator(1), mask).equal(alone.reset(generator(1), mask))
    assert apart.last_reward.equal(alone.last_reward)
    saved = apart.state()
    assert saved.equal(alone.state())
    for simulator in (alone, apart):
        simulator.set_tasks(torch.tensor([1]), torch.tensor([[9.0]]))
        simulator.step(action)
        simulator.set_state(saved)
    assert apart.step(action, mask).equal(alone.step(action, mask))
    for simulator in (alone, apart, apart):
        simulator.close()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("functions", "message"),
    [
        ({"paid": lambda o, a, n: -(n[..., :1] ** 2)}, r"\(2, 3, 1\)"),
        ({"paid": lambda o, a, n: 0.0}, "a float, not a tensor"),
        ({"paid": lambda o, a, n: -np.square(n[..., 0])}, "numpy"),
        ({"paid": lambda o, a, n: n[..., 0] if n[..., 0] < 0 else -n[..., 0]}, "reward.*test_guard.py:"),
        ({"termination": lambda n: n[..., :1] > 9}, r"\(2, 3, 1\)"),
        ({"termination": lambda n: (n[..., 0] > 9).float()}, "torch.bool"),
        ({"training_termination": lambda n: n[..., 7] > 9}, "IndexError"),
    ],
)
def test_faults_of_functions_are_named_before_any_step(functions, message):
    with pytest.raises(EnvError, match=message):
        cart(**functions)


@pytest.mark.parametrize(
    "cls",
    [
        variant(own_reward=lambda self: np.array([-(self.state[0] ** 2)])),
        variant(own_reward=lambda self: torch.tensor(-(self.state[0] ** 2))),
        variant(own_reward=lambda self: np.float64(-(self.state[0] ** 2)), end=np.bool_(False)),
        variant(seen=lambda self: self.state[::-1].copy()[::-1]),
        variant(seen=lambda self: np.broadcast_to(self.state, (2,))),
        variant(seen=lambda self: [float(value) for value in self.state]),
    ],
)
def test_what_is_legal_is_taken(cls):
    assert not failed(cart(cls))


def test_the_reward_is_of_the_type_of_the_observation():
    family = cart(paid=lambda o, a, n: (n[..., 0] > 0).long())
    assert family.spec.reward(torch.zeros(4, 2), torch.zeros(4, 1), torch.ones(4, 2)).dtype == torch.float32


@pytest.mark.parametrize(
    ("cls", "options", "names"),
    [
        (Cart, {"set_task": lambda env, task: setattr(env, "mass", env.mass * task["mass"])}, ["seeding"]),
        (Cart, {"termination": lambda n: n[..., 0] < 100}, ["termination"]),
        (Cart, {"test_seed": 1}, []),
        (Cart, {"ranges": {"mass": [0.5, 1.0, 2.0]}}, []),
        (variant(step=waits), {"call_seconds": 0.2}, ["shapes"]),  # and none is tried after it
    ],
)
def test_checks(cls, options, names):
    assert failed(cart(cls, **options)) == names


@pytest.mark.parametrize("unit", [1e-9, 1e9])
def test_checks_do_not_depend_on_units(unit):
    class InUnits(Cart):
        def seen(self):
            return (unit * self.state).astype(np.float32)

        def own_reward(self):
            return unit * self.state[0]

    right = cart(InUnits, paid=lambda o, a, n: n[..., 0])
    assert not failed(right)
    wrong = cart(InUnits, paid=lambda o, a, n: 1.01 * n[..., 0], set_task=lambda env, task: None)
    assert failed(wrong) == ["parameters", "reward"]


def test_an_end_late_in_the_episode_is_found():
    class Ends(Cart):
        def step(self, action):
            self.count = getattr(self, "count", 0) + 1
            observation, paid, _, *rest = super().step(action)
            return observation, paid, self.count % 100 == 90, *rest

    assert "termination=" in list(check_family(cart(Ends, horizon=100)))[-1].detail


def test_an_end_at_the_threshold_may_differ_by_rounding():
    class Ends(Cart):
        end = True

        def seen(self):
            return np.array([0.2 + 1e-9, 0.0])  # in float32 it is 0.2, which is not above 0.2

    stepped_on = cart(Ends, termination=lambda n: n[..., 0] > torch.tensor(0.2)).simulate(torch.tensor([[1.0]]))
    stepped_on.reset(generator())
    stepped_on.step(torch.zeros(1, 1))


class OwnSimulator:
    batch_size = 2

    def __init__(self, fault):
        self.fault = fault

    def reset(self, generator, mask=None):
        return torch.zeros(2, 2)

    def step(self, action, mask=None):
        return self.fault()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda: torch.zeros(2, 3), r"\(2, 3\)"),
        (lambda: [][0], "IndexError"),
        (lambda: None, "NoneType"),
        (lambda: torch.full((2, 2), torch.nan), "task 0 has a non-finite"),
        (lambda: time.sleep(9), "did not come back"),
    ],
)
def test_simulators_of_ones_own_are_guarded(fault, message):
    plain = cart()
    own = TaskFamily(plain.spec, ("mass",), plain.draw, lambda tasks: OwnSimulator(fault), plain.rescale, plain.test)
    simulator = guarded_family(own, Guard("mine", 0.1)).simulate(plain.test[:2])
    assert simulator.batch_size == 2
    simulator.reset(generator())
    with pytest.raises(EnvError, match=message):
        simulator.step(torch.zeros(2, 1))
    with pytest.raises(DivergedError):
        simulator.step(torch.full((2, 1), torch.nan))
    with pytest.raises(EnvError, match="test tasks"):
        guarded_family(dataclasses.replace(own, test=torch.ones(3)), Guard("mine"))


def test_time_is_given_to_each_call_and_given_back():
    def inner():
        with pytest.raises(HangError):
            Guard("inner", 0.1).call("sleep", time.sleep, 5)
        time.sleep(0.3)
        return 7

    assert Guard("outer", 2.0).call("both", inner) == 7
    with pytest.raises(HangError):
        Guard("outer", 0.2).call("both", inner)


# -- actions and parameters


@pytest.mark.parametrize("low", [-2, 0])
def test_integers_are_equally_likely(low):
    seen = []

    class Counts(Cart):
        action_space = gymnasium.spaces.Box(low, low + 4, (1,), np.int64)

        def step(self, action):
            seen.append(int(action[0]))
            return super().step(action)

    family = cart(Counts)
    simulator = family.simulate(family.test[:50])
    simulator.reset(generator())
    for _ in range(40):
        simulator.step(family.spec.random_action((simulator.batch_size,), generator(len(seen))))
    shares = np.bincount(np.array(seen) - low, minlength=5) / len(seen)
    assert shares.shape == (5,)
    assert shares.min() > 0.15


def test_actions_stay_inside_the_environment_s_bounds():
    class Bounded(Cart):
        action_space = gymnasium.spaces.Box(np.float32(-0.1), np.float32(0.7), (1,), np.float32)

        def step(self, action):
            assert self.action_space.contains(action), action
            return super().step(action)

    simulator = cart(Bounded).simulate(torch.tensor([[1.0]]))
    simulator.reset(generator())
    for value in (-5.0, -1.0, 1.0, 5.0):
        simulator.step(torch.tensor([[value]]))


def test_choices_are_drawn_as_such():
    ranges = {"mass": [4.0, 0.5, 1.0], "drag": (0.0, 1.0)}
    family = cart(ranges=ranges, set_task={"drag": "spec"}, extreme={"mass": [8.0, 16.0, 1.0], "drag": (0.0, 2.0)})
    drawn = family.sample(500, generator())
    assert drawn[:, 0].unique().tolist() == [0.5, 1.0, 4.0]
    assert len(drawn[:, 1].unique()) == 500
    assert family.scale(drawn).abs().max() <= 1
    assert not family.shared_tasks
    assert ((family.extreme[:, 0] > 4) | (family.extreme[:, 1] > 1)).all()
    assert cart(ranges={"mass": [4.0, 0.5, 1.0]}).shared_tasks


RANGES = [(0.5, np.inf), (0.5, np.nan), (2.0, 1.0), (1.0,), 0.7, "12", [1, 1, 2], None]
WRONG = [("horizon", 0), ("horizon", 2.5), ("call_seconds", -1), ("unit", "second"), ("set_task", {"masss": "load"})]
WRONG += [("ranges", {"mass": given}) for given in RANGES]
WRONG += [("extreme", {"mass": given}) for given in ((0.8, 1.5), (0.5, 2.0))]


@pytest.mark.parametrize(("option", "value"), WRONG)
def test_wrong_ranges_and_numbers_are_refused_at_once(option, value):
    with pytest.raises(ConfigError):
        cart(**{option: value})


def test_constants_of_a_mujoco_model_follow_its_masses():
    def put(env, task):
        env.unwrapped.model.body_mass[1] = task["torso"]

    family = gym_family("Hopper-v5", {"torso": (2.0, 12.0)}, reward, set_task=put, termination=lambda n: n[..., 0] > 0)
    simulator = family.simulate(family.test[:1])
    simulator.reset(generator())
    model = simulator._vector.envs[0].unwrapped.model
    assert model.body_subtreemass[1] == pytest.approx(model.body_mass[1:].sum())
