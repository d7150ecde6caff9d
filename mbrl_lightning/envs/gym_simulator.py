"""B gymnasium environments stepped one after the other behind the Simulator interface."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import mujoco
import numpy as np
import torch
from torch import Tensor

from mbrl_lightning.envs.bodies.mujoco import read_physics, write_physics
from mbrl_lightning.envs.bodies.shapes import Drawing, drawn
from mbrl_lightning.envs.guard import Guard
from mbrl_lightning.envs.gym_tasks import physics_of
from mbrl_lightning.envs.spec import EnvSpec, chosen_rows, require_finite, require_finite_action
from mbrl_lightning.errors import EnvError

StateAccess = tuple[Callable[[gymnasium.Env], np.ndarray], Callable[[gymnasium.Env, np.ndarray], None]]

STEP = ("observation", "reward", "terminated", "truncated", "info")
ROUNDING = 1e-6  # relative; a float32 has 6e-8


def read_state(env: gymnasium.Env) -> np.ndarray:
    """The hidden state of a MuJoCo environment, or of one that keeps it in an attribute ``state``."""
    inner: Any = env.unwrapped
    if (physics := physics_of(env)) is not None:
        return read_physics(*physics)
    if not hasattr(inner, "state"):
        cause = f"no way is known to read the state of {type(inner).__name__}."
        raise EnvError(cause, "Give gym_family(state_access=(read, write)).")
    return np.asarray(inner.state)


def write_state(env: gymnasium.Env, values: np.ndarray) -> None:
    """Restore what :func:`read_state` gave."""
    inner: Any = env.unwrapped
    if (physics := physics_of(env)) is not None:
        write_physics(*physics, values)
    else:
        inner.state = values


class GymSimulator:
    """A :class:`~mbrl_lightning.envs.spec.Simulator` over separate gymnasium environments.

    Args:
        spec: the family's spec.
        make: builds one environment.
        set_task: (env, P values) writes a task; called before every reset.
        guard: calls the user's code.
        tasks: [B, P] float64.
        state_access: (read, write) of an environment's hidden state as a flat array; None: see :func:`read_state`.
        info: numbers of the environment's info that are entries of an observation after its own, 0 after a reset.

    Attributes:
        last_reward: the environments' own rewards of the last step, float64 [B]; only for checking ``spec.reward``.
        last_terminated: their own ``terminated``, bool [B].
    """

    one_by_one = True

    def __init__(
        self,
        spec: EnvSpec,
        make: Callable[[], gymnasium.Env],
        set_task: Callable[[gymnasium.Env, Sequence[float]], None],
        guard: Guard,
        tasks: Tensor,
        state_access: StateAccess | None = None,
        info: Sequence[str] = (),
    ) -> None:
        self.batch_size, self._info = len(tasks), tuple(info)
        self._spec, self._set_task, self._guard, self._tasks = spec, set_task, guard, tasks.tolist()
        self._envs = [guard.call(f"building environment {row}", make) for row in range(self.batch_size)]
        self._code = guard.call("the environment", _code, self._envs[0]) if self._envs else ""
        self._access, self._started = state_access or (read_state, write_state), [False] * self.batch_size
        self._observation = torch.zeros(self.batch_size, spec.observation_dim)
        self.last_reward = torch.zeros(self.batch_size, dtype=torch.float64)
        self.last_terminated = torch.zeros(self.batch_size, dtype=torch.bool)

    def reset(self, generator: torch.Generator, mask: Tensor | None = None) -> Tensor:
        """See Simulator.reset; every environment is seeded from the generator."""
        seeds = torch.randint(2**31 - 1, (self.batch_size,), generator=generator, device=generator.device).tolist()
        for row in chosen_rows(self.batch_size, mask):
            self._start(row, seeds[row])
        require_finite(self._spec, self._observation)
        return self._observation.clone()

    def _start(self, row: int, seed: int) -> None:
        env = self._envs[row]
        self._call(row, "set_task", self._set_task, env, self._tasks[row])
        _follow_constants(env)
        returned = self._call(row, "reset", env.reset, seed=seed)
        self._write(row, self._unpack(row, "reset", returned, ("observation", "info"))[0], ())
        self._started[row] = True

    def step(self, action: Tensor, mask: Tensor | None = None) -> Tensor:
        """See Simulator.step; an end that ``spec.termination`` does not foresee is an EnvError: models would go on there."""
        require_finite_action(self._spec, action, mask)
        for row in chosen_rows(self.batch_size, mask):
            physical = _physical(self._envs[row].action_space, action[row])
            returned = self._call(row, "step", self._envs[row].step, physical)
            observation, reward, terminated, _, info = self._unpack(row, "step", returned, STEP)
            self.last_reward[row] = self._call(row, "the reward of step", _number, reward)
            told = [self._call(row, f"info[{name!r}] of step", _entry, info, name) for name in self._info]
            self._write(row, observation, told)
            self.last_terminated[row] = bool(self._call(row, "the end told by step", _number, terminated))
        require_finite(self._spec, self._observation)
        if self.last_terminated.any():
            self._refuse_unforeseen(self.last_terminated if mask is None else self.last_terminated & mask)
        return self._observation.clone()

    def _refuse_unforeseen(self, ended: Tensor) -> None:
        # An environment compares in float64; at its threshold the rounded observation may lie on the other side.
        foreseen = [self._spec.termination(self._observation * (1 + shift)) for shift in (0.0, ROUNDING, -ROUNDING)]
        missed = ended & ~torch.stack(foreseen).any(0)
        if missed.any():
            row = int(missed.nonzero()[0])
            at = [round(value, 4) for value in self._observation[row].tolist()]
            raise EnvError(
                f"{self._spec.name}: the environment ended the episode of task {row} {self._tasks[row]} at observation {at}, "
                "where termination() is False.",
                "Give gym_family(termination=...), which models need too, or build it so that it never terminates.",
            )

    def _call(self, row: int, what: str, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        return self._guard.call(self._named(row, what), function, *arguments, **named)

    def _named(self, row: int, what: str) -> str:
        return f"{what}, task {row} {self._tasks[row]} of {self._code},"

    def _unpack(self, row: int, what: str, returned: Any, names: tuple[str, ...]) -> tuple[Any, ...]:
        if isinstance(returned, tuple) and len(returned) == len(names):
            return returned
        found = f"{len(returned)} values" if isinstance(returned, tuple) else f"a {type(returned).__name__}"
        raise self._guard.refuse(self._named(row, what), found, f"({', '.join(names)})")

    def _write(self, row: int, observation: Any, told: Sequence[float]) -> None:
        # A copy: environments may hand out a view, flipped or read-only, of what they go on writing into.
        values = self._call(row, "the observation", np.array, observation, dtype=np.float32)
        wanted = (self._spec.observation_dim - len(self._info),)
        if values.shape != wanted:
            found = f"an observation of shape {values.shape}"
            raise self._guard.refuse(f"task {row} of {self._code}", found, f"shape {wanted}")
        self._observation[row, : len(values)] = torch.from_numpy(values)
        self._observation[row, len(values) :] = torch.tensor(told) if told else 0.0

    def state(self) -> Tensor:
        """See Simulator.state."""
        read, _ = self._access
        rows = [self._call(row, "reading the state", _flat, read, env) for row, env in enumerate(self._envs)]
        return torch.cat([torch.from_numpy(np.stack(rows)), self._observation.double()], -1)

    def set_state(self, state: Tensor) -> None:
        """See Simulator.set_state."""
        _, write = self._access
        size = state.shape[1] - self._spec.observation_dim
        for row, env in enumerate(self._envs):
            if not self._started[row]:  # stepping before a reset is an error in gymnasium
                self._start(row, seed=0)
            self._call(row, "writing the state", write, env, state[row, :size].cpu().numpy().copy())
        self._observation = state[:, size:].float().cpu().clone()

    def render(self, index: int = 0) -> np.ndarray:
        """See Simulator.render; the environment must have been built with render_mode="rgb_array"."""
        frame = self._call(index, "render", self._envs[index].render)
        if frame is None:
            raise EnvError(f"{self._spec.name}: nothing was drawn.", 'Build it with render_mode="rgb_array".')
        picture = self._call(index, "the picture", np.array, frame, dtype=np.uint8)
        if picture.ndim != 3 or picture.shape[2] != 3:
            raise self._guard.refuse("render", f"a picture of shape {picture.shape}", "[height, width, 3]")
        return picture

    def drawing(self, index: int = 0) -> Drawing | None:
        """See Simulator.drawing: of a MuJoCo environment."""
        inner: Any = self._envs[index].unwrapped
        if not isinstance(getattr(inner, "model", None), mujoco.MjModel):
            return None
        data = copy.copy(inner.data)  # computed in place it would touch the solver's warm start
        mujoco.mj_kinematics(inner.model, data)
        return drawn(inner.model, data)

    def set_tasks(self, rows: Tensor, tasks: Tensor) -> None:
        """Write tasks [n, P] into ``rows`` (indices [n]) now; what an environment reads in ``reset`` alone waits until then."""
        for row, task in zip(rows.tolist(), tasks.tolist(), strict=True):
            self._tasks[row] = task
            self._call(row, "set_task", self._set_task, self._envs[row], task)
            _follow_constants(self._envs[row])

    def close(self) -> None:
        """See Simulator.close."""
        for row, env in enumerate(self._envs):
            self._call(row, "close", env.close)


def _physical(space: gymnasium.Space, action: Tensor) -> Any:
    """A normalised action [A] in the environment's units: inside its bounds, every integer of a range equally likely."""
    if isinstance(space, gymnasium.spaces.Discrete):
        return int(action.argmax()) + int(space.start)
    assert isinstance(space, gymnasium.spaces.Box)
    share = (action.detach().clamp(-1, 1).double().cpu().numpy() + 1) / 2
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    if np.issubdtype(space.dtype, np.integer):
        return np.minimum(np.floor(low + share * (high - low + 1)), high).astype(space.dtype)
    return np.clip((low + share * (high - low)).astype(space.dtype), space.low, space.high)


def _code(env: gymnasium.Env) -> str:
    """Class, file and line of the user's environment, for faults that show only in what it returned."""
    kind = type(env.unwrapped)
    code = getattr(kind.step, "__code__", None)
    return kind.__name__ + (f" ({code.co_filename}:{code.co_firstlineno})" if code else "")


def _number(value: Any) -> float:
    return float(np.asarray(value).item())


def _entry(info: Any, name: str) -> float:
    return _number(info[name])


def _flat(read: Callable[[gymnasium.Env], Any], env: gymnasium.Env) -> np.ndarray:
    return np.array(read(env), dtype=np.float64).ravel()


def _follow_constants(env: gymnasium.Env) -> None:
    """Let a MuJoCo model's derived constants follow what a task wrote into it (masses of subtrees, inverse weights)."""
    if (physics := physics_of(env)) is not None:
        mujoco.mj_setConst(physics[0], mujoco.MjData(physics[0]))
