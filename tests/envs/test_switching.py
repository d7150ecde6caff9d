"""Hidden tasks that switch in flight: when, to what, without a trace in the body, and exactly again from a saved state."""

import dataclasses

import pytest
import torch
from fakes import generator

from mbrl_lightning.check_env import check_family
from mbrl_lightning.envs import make_family
from mbrl_lightning.envs.families.hidden import directions
from mbrl_lightning.envs.families.switching import Schedule, SwitchingSimulator
from mbrl_lightning.envs.spec import EnvSpec
from mbrl_lightning.errors import ConfigError

MUJOCO = (
    "half_cheetah_fwd_bwd", "half_cheetah_pier", "ant_fwd_bwd", "ant_crippled_leg", "walker2d_random_params",
    "humanoid_direc",
)  # fmt: skip
NAMES = ("point_switch", *MUJOCO)
DIRECTIONS = ("point_switch", "half_cheetah_fwd_bwd", "ant_fwd_bwd", "humanoid_direc")


class Steps:
    """A body that counts its steps in the visible entry and the tasks it was given."""

    def __init__(self, tasks):
        self.batch_size, self.given = len(tasks), [[float(task)] for task in tasks[:, 0]]
        self.count = torch.zeros(self.batch_size)

    def set_tasks(self, rows, tasks):
        for row, task in zip(rows.tolist(), tasks[:, 0].tolist(), strict=True):
            self.given[row].append(task)

    def reset(self, draws, mask=None):
        self.count = torch.zeros(self.batch_size) if mask is None else self.count.masked_fill(mask, 0)
        return self.observe()

    def step(self, action, mask=None):
        self.count = self.count + (1 if mask is None else mask)
        return self.observe()

    def observe(self):
        return torch.stack([-self.count, self.count], -1)


def count_up(n, draws):
    """Tasks that tell the order in which they were drawn."""
    count_up.drawn += n
    return torch.arange(count_up.drawn - n, count_up.drawn, dtype=torch.float64).unsqueeze(1)


count_up.drawn = 1000


def simulator(schedule, rows=2):
    tasks = torch.arange(rows, dtype=torch.float64).unsqueeze(1)
    spec = EnvSpec("steps", ("count", "previous_reward"), 1, schedule.horizon, "episode", lambda o, a, n: n[..., -1])

    def reward(before, action, after, task):
        """Before, after and the task, each readable from the digits."""
        return 100 * task[:, 0] + 10 * after[:, 0] + before[:, 0]

    return SwitchingSimulator(Steps(tasks), spec, tasks, reward, schedule, slice(1, None))


def run(sim, steps, mask=None):
    rows = []
    for _ in range(steps):
        task = sim.tasks.clone()
        rows.append((task, sim.step(torch.zeros(sim.batch_size, 1), mask)))
    return torch.stack([task[:, 0] for task, _ in rows], 1), torch.stack([seen for _, seen in rows], 1)


def test_switch_times_without_jitter_and_the_reward_of_the_step_before():
    sim = simulator(Schedule(count_up, horizon=10, every=3, jitter=0.0))
    assert sim.reset(generator()).tolist() == [[0, 0], [0, 0]]
    tasks, seen = run(sim, 10)
    changes = (tasks[:, 1:] != tasks[:, :-1]).nonzero()[:, 1].unique().tolist()
    assert changes == [2, 5, 8], "the fourth, seventh and tenth step have new tasks"
    assert tasks[:, 0].tolist() == [0, 1]
    # a body that has made n steps shows -n where the reward looks: 100 task - 10 (n + 1) - n
    n = torch.arange(10.0)
    assert torch.equal(seen[..., 1].double(), 100 * tasks - 10 * (n + 1) - n)
    assert torch.equal(seen[..., 0], (n + 1).expand(2, 10))
    assert sim._base.given[1] == tasks[1].unique_consecutive().tolist()


def test_jittered_times_keep_to_their_range_and_mean():
    schedule = Schedule(count_up, horizon=1000, every=50, jitter=0.1)
    times = schedule.times(400, generator())
    gaps = torch.diff(times, dim=1, prepend=torch.zeros(400, 1, dtype=torch.long))
    assert times.shape == (400, 22)
    assert (gaps.min(), gaps.max()) == (45, 55)
    assert abs(gaps.double().mean() - 50) < 0.2
    assert (times[:, -1] >= 990).all(), "an episode never runs out of switches"


@pytest.mark.parametrize(("every", "jitter", "switches"), [(None, 0.1, 0), (1, 0.0, 9), (1, 0.5, 9), (40, 0.1, 0)])
def test_number_of_switches(every, jitter, switches):
    sim = simulator(Schedule(count_up, horizon=10, every=every, jitter=jitter))
    sim.reset(generator())
    tasks, _ = run(sim, 10)
    assert (tasks[:, 1:] != tasks[:, :-1]).sum(1).tolist() == [switches] * 2


def test_flipping_always_turns_round_and_drawing_may_stay():
    for flip, share in ((True, 1.0), (False, 0.5)):
        task = directions(flip)
        sequence = Schedule(task.draw, 1000, 10, 0.1, task.another).tasks(task.draw(50, generator()), generator(1))
        assert set(sequence.unique().tolist()) == {-1, 1}
        changed = (sequence[:, 1:] != sequence[:, :-1]).double().mean().item()
        assert changed == pytest.approx(share, abs=0.03)


def test_only_the_first_episode_begins_with_the_given_task():
    sim = simulator(Schedule(count_up, horizon=10, every=4, jitter=0.0), rows=3)
    first = torch.tensor([True, False, True])
    sim.reset(generator(), first)
    assert sim.tasks[:, 0].tolist() == [0, 1, 2]
    run(sim, 6, first)
    sim.reset(generator(1), torch.tensor([True, True, False]))
    assert sim.tasks[0] >= 1000
    assert sim.tasks[1] == 1, "row 1 had not begun yet"
    assert sim.tasks[2] != 2, "row 2 is past its first switch"


def test_where_tasks_are_lasting_every_episode_begins_with_the_given_one():
    sim = simulator(Schedule(count_up, horizon=10, every=4, jitter=0.0, lasting=True), rows=3)
    for episode in range(3):
        sim.reset(generator(episode))
        assert sim.tasks[:, 0].tolist() == [0, 1, 2]
        run(sim, 6)
        assert (sim.tasks >= 1000).all()  # they switch in mid-episode all the same


def test_what_happens_to_a_row_does_not_depend_on_the_others():
    sims = [simulator(Schedule(directions().draw, horizon=40, every=5), rows=3) for _ in range(2)]
    for sim in sims:
        sim.reset(generator())
    masks = torch.tensor([True, True, True]), torch.tensor([True, False, True])
    for sim, mask in zip(sims, masks, strict=True):
        run(sim, 7, mask)
        sim.reset(generator(1), mask)
    together, alone = (run(sim, 40)[1] for sim in sims)
    assert together[[0, 2]].equal(alone[[0, 2]])


def test_masked_rows_keep_observation_clock_and_task():
    sim = simulator(Schedule(count_up, horizon=10, every=2, jitter=0.0))
    sim.reset(generator())
    only_first = torch.tensor([True, False])
    tasks, seen = run(sim, 5, only_first)
    assert tasks[1].tolist() == [1] * 5
    assert seen[1].eq(0).all()
    later, _ = run(sim, 3)
    assert later[1, :2].tolist() == [1, 1]
    assert later[1, 2] >= 1000, "its own second step is past"


@pytest.mark.parametrize(
    ("options", "message"),
    [({key: value}, "no schedule") for key, value in (("switch_every_steps", 0), ("jitter", 1.0), ("jitter", -0.1))]
    + [({"horizon": 0}, "no schedule"), ({"previous_reward": "nowhere"}, "no place")],
)
def test_impossible_schedules_and_places_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        make_family("point_switch", **options)


# -- every family


@pytest.mark.parametrize("name", NAMES)
def test_state_continues_exactly_across_switches_and_resets(name):
    family, draws = make_family(name, switch_every_steps=4, horizon=30), generator()
    first, second = (family.simulate(family.test[:3]) for _ in range(2))
    first.reset(draws)
    actions = [family.spec.random_action((3,), draws) for _ in range(15)]
    for action in actions[:6]:
        first.step(action)
    second.set_state(first.state())
    assert second.state().equal(first.state())
    assert second.tasks.equal(first.tasks)
    for action in actions[6:]:
        assert second.step(action).equal(first.step(action))
        assert second.tasks.equal(first.tasks)
    mask = torch.tensor([False, True, True])
    assert second.reset(generator(3), mask).equal(first.reset(generator(3), mask))
    for action in actions:
        assert second.step(action).equal(first.step(action))
    assert second.tasks.equal(first.tasks)


@pytest.mark.parametrize("name", NAMES)
def test_a_switch_at_every_step(name):
    """A body whose model is rewritten at every step moves like new simulators built with each step's task."""
    family, draws = make_family(name, switch_every_steps=1, jitter=0.0, horizon=10), generator()
    sim, seen = family.simulate(family.test[:2]), []
    sim.reset(draws)
    for _ in range(9):
        seen.append(sim.tasks.clone())
        twin = family.simulate(sim.tasks)._base
        twin.set_state(sim._base.state())
        action = family.spec.random_action((2,), draws)
        visible = twin.step(action)[:, sim._visible]
        assert sim.step(action)[:, :-1].equal(visible)
        assert sim._base.state().equal(twin.state())
    assert len(torch.cat(seen).unique(dim=0)) > 1


@pytest.mark.parametrize("name", NAMES)
def test_a_later_episode_begins_as_in_a_new_simulator_of_its_task(name):
    family, draws = make_family(name), generator(5)
    sim = family.simulate(family.test[:8])
    sim.reset(generator())
    sim.reset(generator(5))
    assert not sim.tasks.equal(family.test[:8])
    twin = family.simulate(sim.tasks)._base
    torch.randint(2**62, (), generator=draws)  # the seed of tasks and times
    twin.reset(draws)
    assert sim._base.state().equal(twin.state())


@pytest.mark.parametrize("name", NAMES)
def test_the_body_does_not_feel_a_switch(name):
    """Positions and velocities right after a switch are those of the simulator that did not switch."""
    switching, staying = (make_family(name, switch_every_steps=n, jitter=0.0, horizon=20) for n in (5, None))
    sims = [family.simulate(family.test[:4]) for family in (switching, staying)]
    for sim in sims:
        sim.reset(generator())
    draws = generator(1)
    for step in range(5):
        action = staying.spec.random_action((4,), draws)
        one, other = (sim.step(action) for sim in sims)
        assert one.equal(other), step
    states = [sim._base.state() for sim in sims]
    assert states[0].equal(states[1])
    assert not sims[0].tasks.equal(sims[1].tasks)
    assert sims[1].tasks.equal(staying.test[:4])


@pytest.mark.parametrize("name", DIRECTIONS)
def test_a_direction_shows_in_nothing_but_the_reward(name):
    family, draws = make_family(name), generator(1)
    spec = family.spec
    hidden, shown = (make_family(name, previous_reward=place).spec for place in ("history", "observation"))
    forwards, backwards = (family.simulate(torch.tensor([[float(d)]])) for d in (1, -1))
    pair = [sim.reset(generator()) for sim in (forwards, backwards)]
    assert pair[0].equal(pair[1])
    assert pair[0][0, -1] == 0
    for _ in range(25):
        action = spec.random_action((1,), draws)
        one, other = forwards.step(action), backwards.step(action)
        assert one[:, :-1].equal(other[:, :-1])
        assert one[0, -1] != other[0, -1]
        assert hidden.features(one).equal(hidden.features(other))
        assert shown.features(one)[..., -1].equal(one[..., -1])
        assert hidden.outcome(one).equal(one[..., -1:])
        assert spec.reward(one, action, one).equal(one[..., -1])


@pytest.mark.parametrize("name", ["half_cheetah_pier", "ant_crippled_leg", "walker2d_random_params"])
def test_the_start_does_not_tell_hidden_dynamics(name):
    family = make_family(name)
    alike = [family.simulate(task[None]).reset(generator(2))[0] for task in family.test[:4]]
    assert all(start.equal(alike[0]) for start in alike)


@pytest.mark.parametrize("name", NAMES)
def test_target_holds_the_reward_itself(name):
    family, draws = make_family(name), generator()
    spec, sim = family.spec, family.simulate(family.test[:3])
    before = sim.reset(draws)
    after = sim.step(spec.random_action((3,), draws))
    change = spec.target(before, after)
    assert change[..., -1].equal(after[..., -1])
    rebuilt = spec.untarget(before, change)
    assert rebuilt[..., -1].equal(after[..., -1])
    # the humanoid integrates positions from its velocities
    exact = slice(22, 45) if name == "humanoid_direc" else slice(None)
    torch.testing.assert_close(rebuilt[..., exact], after[..., exact], atol=1e-5, rtol=1e-5)
    assert spec.outcome_dim == 1


def test_sharing_tasks_must_be_said():
    family = make_family("point_switch")
    silent = dataclasses.replace(family, shared_tasks=False)
    assert [[c.name for c in check_family(f) if not c.passed] for f in (family, silent)] == [[], ["splits"]]
