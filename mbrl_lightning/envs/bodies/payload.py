"""A quadcopter that carries a load on a rope and is told velocities four times a second (Belkhale et al., RA-L 2021).

Seen is the load alone, its last moves and the last commands; drone, swing, rope and mass are hidden. The drone is a point of
80 g whose controller follows commanded velocities with a lag and lifts the drone's own weight, not the load's, so that a
heavier load drags it down; the rope is massless, does not stretch, and pulls only while it is tight. A load is to be at one
waypoint after another of a closed path, one a step.
"""

from __future__ import annotations

import functools
import math

import torch
from tensordict import TensorDictBase
from torch import Tensor

from mbrl_lightning.envs.bodies.shapes import Canvas
from mbrl_lightning.envs.bodies.torch_simulator import TorchSimulator
from mbrl_lightning.envs.spec import EnvSpec

DT, SUBSTEPS, GRAVITY = 0.25, 25, 9.81
DRONE_MASS, LAG, ACCELERATION, SPEED, DRAG = 0.08, 0.15, 6.0, 0.8, 0.1  # kg, s, m/s^2, m/s, 1/s
WAYPOINTS, SIZE = 60, 1.0  # of a round, and half the length of the figure-8, m
START, SWING = 0.03, 0.1  # deviations of the load's place and velocity at the start, m and m/s
RED, BLUE, GREY, PALE = (200, 40, 40), (40, 70, 180), (120, 120, 120), (160, 185, 160)


def square(turn: Tensor) -> Tensor:
    """A square with sides of 1 m from a corner on, at constant speed; `turn` [...] in rounds -> [..., 2]."""
    side = 4 * (turn % 1)
    x = (side.clamp(0, 1) - (side - 2).clamp(0, 1)) - 0.5
    y = ((side - 1).clamp(0, 1) - (side - 3).clamp(0, 1)) - 0.5
    return SIZE * torch.stack([x, y], -1)


def circle(turn: Tensor) -> Tensor:
    """A circle with a radius of 0.6 m."""
    angle = 2 * math.pi * turn
    return 0.6 * SIZE * torch.stack([angle.cos(), angle.sin()], -1)


def figure_8(turn: Tensor) -> Tensor:
    """A lying 8, 2 m long and 1 m wide, from its middle on."""
    angle = 2 * math.pi * turn
    return SIZE * torch.stack([angle.sin(), (2 * angle).sin() / 2], -1)


def sag(mass: float) -> float:
    """How fast a drone told to stand still sinks under a load of ``mass`` kg, m/s."""
    return LAG * GRAVITY * mass / DRONE_MASS


PATHS = {"square": square, "circle": circle, "figure_8": figure_8}


def waypoint(number: Tensor, path: str) -> Tensor:
    """Where the load is to be, [...] -> [..., 3] m; waypoints lie at height 0."""
    plane = PATHS[path](number / WAYPOINTS)
    return torch.cat([plane, torch.zeros_like(plane[..., :1])], -1)


def fly(state: Tensor, command: Tensor, tether: Tensor, mass: Tensor, seconds: float) -> Tensor:
    """Drone and load [B, 12] (places and velocities of drone, then load) after some time under a command [B, 3] in m/s.

    A step moves both freely; where they are then farther apart than the rope's length [B, 1], it pulls both back along itself,
    by their masses, and what it moves them by is their change of velocity too (SHAKE; Ryckaert et al. 1977).
    """
    step, share = seconds / SUBSTEPS, mass / (DRONE_MASS + mass)
    drone, drone_speed, load, load_speed = state.split(3, 1)
    weight = state.new_tensor([0.0, 0.0, -GRAVITY])
    for _ in range(SUBSTEPS):
        drone_speed = drone_speed + step * ((command - drone_speed) / LAG).clamp(-ACCELERATION, ACCELERATION)
        load_speed = load_speed + step * (weight - DRAG * load_speed)
        drone, load = drone + step * drone_speed, load + step * load_speed
        rope = drone - load
        length = rope.norm(dim=1, keepdim=True)
        pull = rope * ((length - tether).clamp_min(0) / length.clamp_min(1e-9))
        drone, load = drone - share * pull, load + (1 - share) * pull
        drone_speed, load_speed = drone_speed - share * pull / step, load_speed + (1 - share) * pull / step
    return torch.cat([drone, drone_speed, load, load_speed], 1)


def transition(state: Tensor, action: Tensor, tasks: Tensor, history: int) -> Tensor:
    """One control step of what is seen [B, S], followed by what is not [B, 9].

    That is the drone's place from a rope's length above the load, its velocity, and the load's.
    """
    seen, (above, drone_speed, load_speed) = state[:, :-9], state[:, -9:].split(3, 1)
    tether, mass = tasks.split(1, 1)
    number, load = seen[:, :1], seen[:, 1:4]
    rest = torch.cat([torch.zeros_like(load[:, :2]), tether], 1)
    before = torch.cat([load + rest + above, drone_speed, load, load_speed], 1)
    drone, drone_speed, after, load_speed = fly(before, SPEED * action, tether, mass, DT).split(3, 1)
    moves, commands = seen[:, 4:].split(3 * history, 1)
    moves = torch.cat([after - load, moves[:, :-3]], 1)
    commands = torch.cat([action, commands[:, :-3]], 1)
    return torch.cat([number + 1, after, moves, commands, drone - after - rest, drone_speed, load_speed], 1)


def initial(batch: int, generator: torch.Generator, history: int, path: str) -> Tensor:
    """The load near waypoint 0, moving a little under a drone at rest above it."""
    noise = torch.randn(batch, 6, generator=generator, dtype=torch.float64, device=generator.device)
    first = waypoint(torch.zeros(batch, dtype=torch.float64), path) + START * noise[:, :3]
    nothing = noise.new_zeros(batch, 6 * history + 6)
    return torch.cat([nothing[:, :1], first, nothing, SWING * noise[:, 3:]], 1)


def picture(state: Tensor, task: Tensor, path: str) -> Canvas:
    """Path, load, rope and drone, seen from above and the front; the waypoint is a grey dot."""

    def seen(place: Tensor) -> tuple[float, float]:
        return float(place[0]), float(0.6 * place[1] + 0.8 * place[2]) - 0.4

    canvas, load = Canvas(1.5), state[1:4]
    drone = load + state[-9:-6] + torch.cat([task.new_zeros(2), task[:1]])
    for corner in waypoint(torch.arange(WAYPOINTS).to(state), path):
        canvas.segment(seen(corner), seen(corner), 0.04, PALE)
    place = seen(waypoint(state[0], path))
    canvas.segment(place, place, 0.09, GREY)
    canvas.segment(seen(load), seen(drone), 0.015, GREY)
    canvas.segment(seen(load), seen(load), 0.05 + float(task[1]), RED)
    (x, y) = seen(drone)
    canvas.segment((x - 0.08, y), (x + 0.08, y), 0.04, BLUE)
    return canvas


def payload_spec(path: str, horizon: int, history: int) -> EnvSpec:
    """Minus the load's distance from the waypoint of that moment, m; its mean per step is the mean error with a minus."""
    axes, count = "xyz", 3 * history
    moves = (f"{kind}_{age}_{axis}" for kind in ("move", "command") for age in range(1, history + 1) for axis in axes)

    def reward(observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
        return -(next_observation[..., 1:4] - waypoint(next_observation[..., 0], path)).norm(dim=-1)

    def target(observation: Tensor, next_observation: Tensor) -> Tensor:
        newest = slice(4 + count, 7 + count)
        return torch.cat([next_observation[..., 1:4] - observation[..., 1:4], next_observation[..., newest]], -1)

    def untarget(observation: Tensor, change: Tensor) -> Tensor:
        move, command = change.split(3, -1)
        place, older = observation[..., :4], observation[..., 4:].split(count, -1)
        new = [torch.cat([first, old[..., :-3]], -1) for first, old in zip((move, command), older, strict=True)]
        return torch.cat([place[..., :1] + 1, place[..., 1:] + move, *new], -1)

    def metrics(episodes: TensorDictBase) -> dict[str, Tensor]:
        away = -episodes["next", "reward"].squeeze(-1)
        return {"path/error": away.mean(-1), "path/largest_error": away.amax(-1)}

    return EnvSpec(
        "payload_quadcopter",
        ("waypoint", *(f"load_{axis} [m]" for axis in axes), *moves),
        action_dim=3,
        horizon=horizon,
        unit="step",
        reward=reward,
        features=lambda observation: observation[..., 4:],
        target=target,
        untarget=untarget,
        metrics=metrics,
    )


def build(spec: EnvSpec, tasks: Tensor, path: str, history: int) -> TorchSimulator:
    """A simulator of tasks [B, 2]: length of the rope, m, and mass of the load, kg."""
    return TorchSimulator(
        spec,
        tasks,
        functools.partial(initial, history=history, path=path),
        functools.partial(transition, history=history),
        functools.partial(picture, path=path),
        observe=lambda state: state[:, :-9],
    )
