"""A task family over the user's own gymnasium environment: what varies, and the reward as a torch function.

Example (examples/pendulum.py has it whole)::

    def family():
        return gym_family("Pendulum-v1", parameters={"m": (0.5, 2.0), "l": (0.6, 1.4)}, reward=reward)

then ``python -m mbrl_lightning.check_env env.file=FILE`` and ``python -m mbrl_lightning.fit env.file=FILE ...``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any, Literal

import gymnasium
import torch
from tensordict import TensorDict
from torch import Tensor

from mbrl_lightning.envs.bodies.mujoco import log_warnings
from mbrl_lightning.envs.family import Box, TaskFamily, box_family, draw_from
from mbrl_lightning.envs.guard import Guard, guarded_spec
from mbrl_lightning.envs.gym_row import Row, StateAccess
from mbrl_lightning.envs.gym_simulator import GymSimulator
from mbrl_lightning.envs.gym_tasks import SetTask, setter
from mbrl_lightning.envs.learned_reward import learned_reward
from mbrl_lightning.envs.spec import EnvSpec, difference, identity, never
from mbrl_lightning.errors import ConfigError


def gym_family(
    env: str | Callable[[], gymnasium.Env],
    parameters: Mapping[str, Sequence[float]],
    reward: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    *,
    tasks: Sequence[Sequence[float]] | None = None,
    unseen: Sequence[Sequence[float]] | None = None,
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
    info: Sequence[str] = (),
    name: str | None = None,
    state_access: StateAccess | None = None,
    call_seconds: float = 60.0,
    processes: bool = False,
) -> TaskFamily:
    """Make a task family of a gymnasium environment; an observation of several parts (``Dict``) or axes is made flat.

    Args:
        env: an environment id, or a function that builds one environment.
        parameters: of every number that varies from task to task, the range (low, high), or a list of three or more values
            to choose from.
        reward: (obs [..., S], action [..., A], next_obs [..., S]) -> [...], batched torch. Continuous actions arrive clipped
            and normalised to [-1, 1], discrete ones one-hot; ``check_env`` compares it with the environment's. None: the reward
            just received becomes the last entry of the observation, which models learn to predict with the others.
        tasks: the training tasks, each with a value for every parameter in order, in place of draws from the ranges.
        unseen: the same of the test tasks; asked for where ``tasks`` are given.
        set_task: writes a task into an environment, (env, {parameter: value}); or {parameter: attribute of
            ``env.unwrapped``}, nested as ``a.b``, or ``body_mass:torso``, ``geom_friction:floor``, ``dof_damping:hip`` of a
            MuJoCo model, which are multiples of what the model has; default: what the parameters are called. Called before
            every reset, so it must not build on what it wrote before. An attribute from which the environment derived
            others when it was built (CartPole's ``masspole``: ``total_mass``) leaves those as they were: a function should
            write them all. The derived constants of a MuJoCo model follow by themselves.
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
        info: names of numbers in what ``step`` gives as ``info``, such as a success: further entries of the observation, and
            metrics ``info/<name>``, the largest in an episode.
        name: family name; default: the id.
        state_access: (read, write) of an environment's hidden state, where it is neither a MuJoCo environment nor one with an
            attribute ``state``; only needed by what saves and restores simulators.
        call_seconds: an environment that does not come back from a call in this time ends the run; 0: wait for ever.
        processes: every environment of a batch is stepped in a process of its own (``AsyncVectorEnv``), for those that take
            milliseconds a step; otherwise one after the other (``SyncVectorEnv``).

    Raises:
        ConfigError: spaces or ranges that do not fit.
        EnvError: the environment is not built, or a function returns another shape or type than it should.
    """
    make = functools.partial(_flat, env)
    guard = Guard(name or (env if isinstance(env, str) else str(getattr(env, "__name__", "gym"))), call_seconds)
    probe = guard.call("building the environment", make)
    actions, limit, own = guard.call("the environment", _description, probe)
    label, steps = name or own or guard.name, limit if horizon is None else horizon
    discrete, action_dim = _action_space(label, actions)
    entries, names = (*_entries(label, probe, observation_names), *info), tuple(parameters)
    train, beyond = _box(parameters, names, log), _box(extreme, names, log) if extreme else None
    apply = guard.call("set_task", setter, label, probe, names, set_task, (beyond or train).low)
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
        reward=reward or _unknown,
        termination=termination,
        features=features,
        target=target,
        discrete=discrete,
        training_termination=training_termination,
        change=target,
        metrics=functools.partial(_largest, tuple(info), len(entries) - len(info)) if info else None,
    )
    spec = guarded_spec(spec, guard)
    row = functools.partial(Row, make, apply, guard, (len(entries), action_dim), info, state_access)
    build = functools.partial(GymSimulator, spec, row, guard, processes)
    family = box_family(spec, names, build, train, beyond, context_steps, test_tasks, test_seed)
    family = family if tasks is None and unseen is None else _listed(family, tasks, unseen)
    return learned_reward(family, known=False) if reward is None else family


def _largest(names: tuple[str, ...], first: int, episodes: TensorDict) -> dict[str, Tensor]:
    """The largest value of entries ``first`` and on in each of the episodes [M, E, T]: [M, E] by name."""
    values = episodes["next", "observation"][..., first : first + len(names)].amax(-2)
    return {f"info/{name}": values[..., number] for number, name in enumerate(names)}


def _unknown(observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
    raise NotImplementedError  # only the environment knows its reward


def _listed(
    family: TaskFamily, tasks: Sequence[Sequence[float]] | None, unseen: Sequence[Sequence[float]] | None
) -> TaskFamily:
    """The family with these tasks [n, P] in place of draws."""
    label, names = family.spec.name, family.parameters
    if tasks is None or unseen is None:
        raise ConfigError(f"{label}: training tasks or unseen ones are listed, not both.", "Give tasks= and unseen=.")
    for given in (tasks, unseen):
        widths = {len(task) for task in given}
        if widths != {len(names)}:
            cause = f"{label}: tasks of {sorted(widths) or 'no'} values, where {len(names)} vary."
            raise ConfigError(cause, f"Give each task a value for {', '.join(names)}.")
    grid, test = (torch.tensor(given, dtype=torch.float64) for given in (tasks, unseen))
    return replace(family, grid=grid, draw=draw_from(grid), test=test, extreme=test[:0], shared_tasks=False)


def _flat(wanted: str | Callable[[], gymnasium.Env]) -> gymnasium.Env:
    """An environment by its id, or as a function builds it, with a flat observation."""
    log_warnings()
    env = _made(wanted) if isinstance(wanted, str) else wanted()
    flat = isinstance(env.observation_space, gymnasium.spaces.Box) and len(env.observation_space.shape) == 1
    return env if flat else gymnasium.wrappers.FlattenObservation(env)


def _made(name: str) -> gymnasium.Env:
    try:
        return gymnasium.make(name, disable_env_checker=True)
    except (gymnasium.error.Error, ModuleNotFoundError) as error:
        remedy = "Correct the id, or install and import what registers it, as gymnasium.register_envs(shimmy) does."
        raise ConfigError(f"{name}: {error}", remedy) from None


def _entries(label: str, env: gymnasium.Env, names: Sequence[str] | None) -> tuple[str, ...]:
    flat = env.observation_space
    if not isinstance(flat, gymnasium.spaces.Box) or len(flat.shape) != 1:
        raise ConfigError(f"{label}: observation space {flat} cannot be made flat.", "Wrap it in one that is a Box.")
    # of a flattened one the names are those of its parts
    space = env.env.observation_space if isinstance(env, gymnasium.wrappers.FlattenObservation) else flat
    names = _parts(space, "") if names is None else names
    if len(names) != flat.shape[0]:
        raise ConfigError(f"{label}: {len(names)} names for {flat.shape[0]} observations.", "Name each or none.")
    return tuple(names)


def _parts(space: gymnasium.Space, prefix: str) -> list[str]:
    """A name for each number of a flattened space: keys and places of the parts that hold it."""
    if isinstance(space, gymnasium.spaces.Dict | gymnasium.spaces.Tuple):
        inner = space.spaces.items() if isinstance(space, gymnasium.spaces.Dict) else enumerate(space.spaces)
        return [name for key, part in inner for name in _parts(part, f"{prefix} {key}".strip())]
    count = gymnasium.spaces.flatdim(space)
    return [prefix] if prefix and count == 1 else [f"{prefix or 'observation'} {i}" for i in range(count)]


def _description(env: gymnasium.Env) -> tuple[gymnasium.Space, int | None, str]:
    """Its actions, its step limit and its id."""
    limit, own = getattr(env.spec, "max_episode_steps", None), str(getattr(env.spec, "id", ""))
    return env.action_space, limit, own


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
    backwards = len(values) == 2 and values[0] > values[1]
    if len(values) < 2 or len(set(values)) < len(values) or backwards or not all(map(math.isfinite, values)):
        cause = f"parameter {name}: {given!r} is neither a range (low, high) nor different values to choose from."
        raise ConfigError(cause, "Give (low, high), or a list of three or more numbers.")
    return values


def _action_space(label: str, space: gymnasium.Space) -> tuple[bool, int]:
    if isinstance(space, gymnasium.spaces.Discrete):
        return True, int(space.n)
    if isinstance(space, gymnasium.spaces.Box) and len(space.shape) == 1 and space.is_bounded():
        return False, space.shape[0]
    raise ConfigError(f"{label}: action space {space} is neither Discrete nor a bounded flat Box.", "Wrap the actions.")


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
