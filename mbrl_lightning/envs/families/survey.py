"""Families of the survey's methods: a quadcopter with a load on a rope (Belkhale et al., RA-L 2021)."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from mbrl_lightning.envs.bodies import payload
from mbrl_lightning.envs.family import Box, TaskFamily, box_family
from mbrl_lightning.errors import ConfigError

TETHER, MASS, CONTEXT, TESTS, SEED = (0.15, 1.2), (0.005, 0.035), 40, 20, 20280


def payload_quadcopter(
    path: str = "figure_8",
    history: int = 3,
    horizon: int = payload.WAYPOINTS,
    tether: Sequence[float] = TETHER,
    mass: Sequence[float] = MASS,
) -> TaskFamily:
    """Lead a load along waypoints 0.25 s apart; what varies is the rope, m, and the load, kg. Mean per step: minus the error, m.

    Args:
        path: "square", "circle" or "figure_8", of 60 waypoints.
        history: moves and commands that are seen.
        horizon: steps of an episode.
        tether: shortest and longest rope.
        mass: lightest and heaviest load.
    """
    if path not in payload.PATHS or history < 1:
        cause = f"payload_quadcopter: path={path!r}, history={history}."
        raise ConfigError(cause, f"Choose one of {', '.join(payload.PATHS)}, and a history of at least 1.")
    if len(tether) != 2 or len(mass) != 2:
        raise ConfigError(f"payload_quadcopter: tether={tether}, mass={mass}.", "Give two numbers each, low and high.")
    (shortest, longest), (lightest, heaviest) = tether, mass
    if min(shortest, lightest) <= 0:
        raise ConfigError(
            f"payload_quadcopter: the rope never tightens with tether={tether} m and mass={mass} kg.",
            "Give a rope some length and a load some weight.",
        )
    if payload.sag(heaviest) >= payload.SPEED:
        raise ConfigError(
            f"payload_quadcopter: a load of {heaviest} kg drags the drone down faster than it climbs, {payload.SPEED} m/s.",
            "Choose lighter loads.",
        )
    spec = payload.payload_spec(path, horizon, history)
    build = functools.partial(payload.build, spec, path=path, history=history)
    train = Box((shortest, lightest), (longest, heaviest))
    beyond = Box((0.75 * shortest, 0.75 * lightest), (1.25 * longest, 1.1 * heaviest))
    return box_family(spec, ("tether", "mass"), build, train, beyond, CONTEXT, TESTS, SEED)
