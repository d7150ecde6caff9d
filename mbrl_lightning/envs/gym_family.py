"""A task family over the user's own gymnasium environment: what varies, and the reward as a torch function.

Example (examples/pendulum.py has it whole)::

    def family():
        return gym_family("Pendulum-v1", parameters={"m": (0.5, 2.0), "l": (0.6, 1.4)}, reward=reward)

then ``python -m mbrl_lightning.check_env env.file=FILE`` and ``python -m mbrl_lightning.fit env.file=FILE ...``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import Any, Literal

import gymnasium
import torch
from torch import Tensor

from mbrl_lightning.envs.family import Box, TaskFamily, box_family
from mbrl_lightning.envs.guard import Guard, guarded_spec
from mbrl_lightning.envs.gym_simulator import GymSimulator, StateAccess
from mbrl_lightning.envs.spec import EnvSpec, difference, identity, never
from mbrl_lightning.errors import ConfigError

SetTask = Callable[[gymnasium.Env, dict[str, float]], None]


def gym_family(
    env: str | Callable[[], gymnasium.Env],
    parameters: Mapping[str, Sequence[float]],
    reward: Callable[[Tensor, Tensor, Tensor], Tensor],
    *,
    set_task: SetTask | Mapping[str, str] | None = None,
    termination: Callable[[Tensor], Tensor] = never,
    training_termination: Callable[[Tensor], Tensor] | None = None,
    horizon: int | None = None,
    unit: Literal["step", "episode"] = "episode",
    angles: Sequence[int] = (),
    log: bool = False,
    test_tasks: int = 20,
    test_seed: int = 20280,
    extreme: Mapping[str, Sequence[float]] | None = None,
    context_steps: int = 200,
    observation_names: Sequence[str] | None = None,
    name: str | None = None,
    state_access: StateAccess | None = None,
    call_seconds: float = 60.0,
) -> TaskFamily:
    """Make a task family of a gymnasium environment with a flat observation.

    Args:
        env: an environment id, or a function that builds one environment.
        parameters: of every number that varies from task to task, the range (low, high), or a list of three or more values
            to choose from.
        reward: (obs [..., S], action [..., A], next_obs [..., S]) -> [...], batched torch. Continuous actions arrive clipped
            and normalised to [-1, 1], discrete ones one-hot; ``check_env`` compares it with the environment's.
        set_task: writes a task into an environment, (env, {parameter: value}); or {parameter: attribute of
            ``env.unwrapped``}; default: attributes named like the parameters. Called before every reset, so it must not
            build on what it wrote before. An attribute from which the environment derived others when it was built
            (CartPole's ``masspole``: ``total_mass``) leaves those as they were: a function should write them all.
            The derived constants of a MuJoCo model follow by themselves.
        termination: next_obs [..., S] -> bool [...], the environment's own ``terminated``. Models need it as well, so an end
            that it does not foresee stops the run with an EnvError; the environment's ``truncated`` is not heeded.
        training_termination: where training episodes are cut besides (a fall), or None.
        horizon: steps per episode; default: the id's own limit.
        unit: returns as mean per "step" or sum per "episode".
        angles: observation entries in radians; networks see their sine and cosine, models predict wrapped changes.
        log: draw the parameters log-uniformly.
        test_tasks: number of fixed unseen tasks, drawn from the same ranges with ``test_seed``.
        test_seed: seed of the test tasks.
        extreme: wider ranges; as many fixed tasks outside the training ranges. None: no extreme tasks.
        context_steps: random-policy transitions given before the policy acts at meta-test.
        observation_names: S names; default "observation 0" ...
        name: family name; default: the id.
        state_access: (read, write) of an environment's hidden state, where it is neither a MuJoCo environment nor one with an
            attribute ``state``; only needed by what saves and restores simulators.
        call_seconds: an environment that does not come back from a call in this time ends the run; 0: wait for ever.

    Raises:
        ConfigError: spaces or ranges that do not fit.
        EnvError: the environment is not built, or a function returns another shape or type than it should.
    """
    make = functools.partial(gymnasium.make, env, disable_env_checker=True) if isinstance(env, str) else env
    guard = Guard(name or str(getattr(env, "__name__", env)), call_seconds)
    probe = guard.call("building the environment", make)
    space, actions, limit, own = guard.call("the environment", _description, probe)
    label, steps = name or (env if isinstance(env, str) else own), limit if horizon is None else horizon
    discrete, action_dim = _action_space(label, actions)
    entries, names = _entries(label, space, observation_names), tuple(parameters)
    apply = _setter(label, probe, names, set_task)
    guard.call("close", probe.close)
    if steps is None:
        raise ConfigError(f"{label}: the environment has no step limit.", "Give horizon=.")
    features, target = _angle_functions(sorted(angles), len(entries))
    spec = EnvSpec(
        label,
        entries,
        action_dim=action_dim,
        horizon=int(steps) if isinstance(steps, Integral) else steps,
        unit=unit,
        reward=reward,
        termination=termination,
        features=features,
        target=target,
        discrete=discrete,
        training_termination=training_termination,
        change=target,
    )
    train = _box(parameters, names, log)
    beyond = _box(extreme, names, log) if extreme else None
    spec = guarded_spec(spec, guard)
    build = functools.partial(GymSimulator, spec, make, apply, guard, state_access=state_access)
    return box_family(spec, names, build, train, beyond, context_steps, test_tasks, test_seed)


def _entries(label: str, space: gymnasium.Space, names: Sequence[str] | None) -> tuple[str, ...]:
    if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
        raise ConfigError(f"{label}: observation space {space} is not flat.", "Wrap it in FlattenObservation.")
    names = [f"observation {i}" for i in range(space.shape[0])] if names is None else names
    if len(names) != space.shape[0]:
        raise ConfigError(f"{label}: {len(names)} names for {space.shape[0]} observations.", "Name each or none.")
    return tuple(names)


def _description(env: gymnasium.Env) -> tuple[gymnasium.Space, gymnasium.Space, int | None, str]:
    """Its spaces, its step limit and its id."""
    limit, own = getattr(env.spec, "max_episode_steps", None), str(getattr(env.spec, "id", "gym"))
    return env.observation_space, env.action_space, limit, own


def _box(ranges: Mapping[str, Sequence[float]], names: tuple[str, ...], log: bool) -> Box:
    missing = set(names) ^ set(ranges)
    if missing:
        raise ConfigError(f"parameters {sorted(missing)} have only a training or only an extreme range.", "Give both.")
    values = [_numbers(name, ranges[name]) for name in names]
    choices = {number: given for number, given in enumerate(values) if len(given) > 2}
    ends = [(min(given), max(given)) if number in choices else given for number, given in enumerate(values)]
    return Box(tuple(low for low, _ in ends), tuple(high for _, high in ends), log, choices)


def _numbers(name: str, given: Sequence[float]) -> tuple[float, ...]:
    try:
        values = () if isinstance(given, str) else tuple(float(value) for value in given)
    except (TypeError, ValueError):
        values = ()
    if len(values) < 2 or len(set(values)) < len(values):
        cause = f"parameter {name}: {given!r} is neither a range nor different values to choose from."
        raise ConfigError(cause, "Give (low, high), or a list of three or more numbers.")
    return values


def _action_space(label: str, space: gymnasium.Space) -> tuple[bool, int]:
    if isinstance(space, gymnasium.spaces.Discrete):
        return True, int(space.n)
    if isinstance(space, gymnasium.spaces.Box) and len(space.shape) == 1 and space.is_bounded():
        return False, space.shape[0]
    raise ConfigError(f"{label}: action space {space} is neither Discrete nor a bounded flat Box.", "Wrap the actions.")


def _setter(
    label: str, probe: gymnasium.Env, names: tuple[str, ...], set_task: SetTask | Mapping[str, str] | None
) -> Callable[[gymnasium.Env, Sequence[float]], None]:
    """(env, values in the order of ``names``) from the three forms of ``set_task``."""
    if callable(set_task):
        return lambda env, values: set_task(env, dict(zip(names, values, strict=True)))
    unknown = set(set_task or {}) - set(names)
    if unknown:
        cause = f"{label}: set_task writes {sorted(unknown)}, which no parameter is called."
        raise ConfigError(cause, f"Use {', '.join(names)}.")
    attributes = [(set_task or {}).get(n, n) for n in names]
    for attribute in attributes:
        if not hasattr(probe.unwrapped, attribute):
            cause = f"{label}: the environment has no attribute {attribute!r} to set."
            raise ConfigError(cause, "Give set_task={parameter: attribute} or a function (env, values).")

    def apply(env: gymnasium.Env, values: Sequence[float]) -> None:
        for attribute, value in zip(attributes, values, strict=True):
            setattr(env.unwrapped, attribute, value)

    return apply


def _angle_functions(angles: list[int], size: int) -> tuple[Callable[[Tensor], Tensor], Callable[..., Tensor]]:
    """Features and target for observations of which the entries ``angles`` are angles."""
    if not angles:
        return identity, difference
    if angles[0] < 0 or angles[-1] >= size:
        raise ConfigError(f"angles={angles} do not index {size} observations.", f"Use 0 .. {size - 1}.")
    others: list[Any] = [i for i in range(size) if i not in angles]

    def features(observation: Tensor) -> Tensor:
        turned = observation[..., angles]
        return torch.cat([observation[..., others], turned.sin(), turned.cos()], -1)

    def target(observation: Tensor, next_observation: Tensor) -> Tensor:
        change = next_observation - observation
        wrapped = torch.remainder(change + torch.pi, 2 * torch.pi) - torch.pi
        turning = torch.isin(torch.arange(size, device=change.device), torch.tensor(angles, device=change.device))
        return torch.where(turning, wrapped, change)

    return features, target
