"""The quadcopter with a load: a pendulum's period, a rope that only pulls, momentum, reward by hand, and bad input."""

from __future__ import annotations

import math

import pytest
import torch
from fakes import generator, walk

from mbrl_lightning.envs import make_family
from mbrl_lightning.envs.bodies import payload
from mbrl_lightning.errors import ConfigError

HEAVY_DRONE = 1e9  # one that its load does not move


def flight(length: float, mass: float, seconds: float, angle: float = 0.0, drop: float = 1.0):
    """Drone and load `[T, 3]`, every 10 ms, of a load let go at an angle and at `drop` rope's lengths from a drone at rest."""
    tether, weight = (torch.full((1, 1), value, dtype=torch.float64) for value in (length, mass))
    state = torch.zeros(1, 12, dtype=torch.float64)
    state[0, 6], state[0, 8] = drop * length * math.sin(angle), -drop * length * math.cos(angle)
    rows = []
    for _ in range(round(seconds * 100)):
        state = payload.fly(state, torch.zeros(1, 3, dtype=torch.float64), tether, weight, 0.01)
        rows.append(state)
    path = torch.cat(rows)
    return path[:, :3], path[:, 6:9]


@pytest.mark.parametrize("length", [0.18, 0.3, 1.2])
def test_it_swings_like_a_pendulum_and_the_rope_keeps_its_length(length, monkeypatch):
    monkeypatch.setattr(payload, "DRONE_MASS", HEAVY_DRONE)
    drone, load = flight(length, 0.01, 6.0, angle=0.1)
    x = load[:, 0] - drone[:, 0]
    falls = [i + float(x[i] / (x[i] - x[i + 1])) for i in range(len(x) - 1) if x[i] > 0 >= x[i + 1]]
    period = 0.01 * (falls[-1] - falls[0]) / (len(falls) - 1)
    assert period == pytest.approx(2 * math.pi * math.sqrt(length / payload.GRAVITY), rel=0.005)
    assert (load - drone).norm(dim=1).max() <= length + 1e-9


def test_a_slack_rope_does_nothing_until_it_is_tight():
    drone, load = flight(1.0, 0.02, 0.6, drop=0.5)
    distance = (load - drone).norm(dim=1)
    free = distance < 1 - 1e-9
    assert free[:25].all()
    assert not free[-1]
    assert not drone[:25].any()
    fallen = -load[24, 2] - 0.5
    assert float(fallen) == pytest.approx(0.5 * payload.GRAVITY * 0.25**2, rel=0.03)
    assert drone[-1, 2] < 0


def test_a_load_drags_the_drone_down_at_the_speed_that_is_told():
    drone, _ = flight(0.4, 0.02, 4.0)
    assert float(drone[-1, 2] - drone[-101, 2]) == pytest.approx(-payload.sag(0.02), rel=0.01)


def test_nothing_that_is_seen_tells_the_task_before_it_moves():
    family = make_family("payload_quadcopter")
    tasks = torch.tensor([[0.2, 0.01], [1.1, 0.03]], dtype=torch.float64)
    rows = [family.simulate(tasks[i : i + 1]).reset(generator(0)) for i in range(2)]
    assert rows[0].equal(rows[1])


def test_reward_is_the_distance_from_the_waypoint_of_that_moment():
    family = make_family("payload_quadcopter", path="circle")
    simulator = family.simulate(family.test[:3])
    for number, (before, action, after) in enumerate(walk(family, simulator, 5, generator(1)), start=1):
        angle = 2 * math.pi * number / 60
        goal = torch.tensor([0.6 * math.cos(angle), 0.6 * math.sin(angle), 0.0])
        expected = -(after[:, 1:4] - goal).norm(dim=1)
        torch.testing.assert_close(family.spec.reward(before, action, after), expected)
        torch.testing.assert_close(after[:, 4:7], after[:, 1:4] - before[:, 1:4])
        torch.testing.assert_close(after[:, 13:16], action.float())
    assert after[:, 0].tolist() == [5.0] * 3


@pytest.mark.parametrize("path", list(payload.PATHS))
def test_paths_are_closed_and_slow_enough(path):
    points = payload.waypoint(torch.arange(payload.WAYPOINTS + 1, dtype=torch.float64), path)
    torch.testing.assert_close(points[0], points[-1])
    speed = (points[1:] - points[:-1]).norm(dim=1) / payload.DT
    assert speed.max() < payload.SPEED
    assert family_picture(path).shape == (256, 256, 3)


def family_picture(path: str):
    family = make_family("payload_quadcopter", path=path)
    simulator = family.simulate(family.test[:1])
    simulator.reset(generator())
    return simulator.render(0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tether": [0.0, 0.5]}, "never tightens"),
        ({"mass": [-0.01, 0.02]}, "never tightens"),
        ({"mass": [0.01, 0.06]}, "faster than it climbs"),
        ({"path": "slalom"}, "square, circle, figure_8"),
        ({"history": 0}, "history of at least 1"),
        ({"tether": [0.3, 0.3]}, "not low < high"),
        ({"tether": [0.3]}, "two numbers"),
    ],
)
def test_impossible_payloads_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        make_family("payload_quadcopter", **options)
