"""One gymnasium environment of a batch: writes its task, checks what it returns, and tells what is wrong with that."""

from __future__ import annotations

import copy
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium
import mujoco
import numpy as np

from mbrl_lightning.envs.bodies.mujoco import read_physics, write_physics
from mbrl_lightning.envs.bodies.shapes import Drawing, drawn
from mbrl_lightning.envs.guard import Guard
from mbrl_lightning.envs.gym_tasks import physics_of
from mbrl_lightning.errors import EnvError

StateAccess = tuple[Callable[[gymnasium.Env], np.ndarray], Callable[[gymnasium.Env, np.ndarray], None]]

STEP = ("observation", "reward", "terminated", "truncated", "info")


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
        mujoco.mj_step1(*physics)  # dm_control begins a step with the second half of MuJoCo's
    else:
        inner.state = values


class Row(gymnasium.Wrapper):
    """Environment ``number`` of a batch, as gymnasium's vector environments call it, in this process or in one of its own.

    It observes what the environment does and, behind that, the numbers ``info``, float32 [S], 0 after a reset; actions are
    normalised, [A]. An episode never ends by itself: ``terminated`` is told as info. An EnvError is not raised but given back,
    as ``fault`` of the info or beside an answer, so that it is the same from another process.

    Args:
        make: builds the environment.
        set_task: (env, P values) writes a task; called before every reset.
        guard: calls the user's code.
        sizes: S and A.
        info: names in the environment's info.
        access: (read, write) of its hidden state as a flat array; None: see :func:`read_state`.
        parent: the number of the process that makes the batch; in another one its signals are not heeded.
        number: the row.
        task: P values.
    """

    def __init__(
        self,
        make: Callable[[], gymnasium.Env],
        set_task: Callable[[gymnasium.Env, Sequence[float]], None],
        guard: Guard,
        sizes: tuple[int, int],
        info: Sequence[str],
        access: StateAccess | None,
        parent: int,
        number: int,
        task: Sequence[float],
    ) -> None:
        if os.getpid() != parent:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        super().__init__(guard.call(f"building environment {number}", make))
        self._number, self._task, self._set_task, self._guard = number, task, set_task, guard
        self._info, self._access, self._waits, self._what = info, access or (read_state, write_state), False, ""
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, sizes[:1], np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, sizes[1:], np.float32)
        self._seen = np.zeros(sizes[0], np.float32)
        self._code = guard.call("the environment", _code, self.env)

    def _where(self) -> str:
        return f"{self._what}, task {self._number} {self._task} of {self._code},"

    def ask(self, what: str, method: str, *arguments: Any) -> tuple[Any, EnvError | None]:
        """What the ``method`` says, or the fault that kept it from it; a fault calls it ``what``."""
        self._what = what
        try:
            return self._guard.call(self._where, getattr(self, method), *arguments), None
        except EnvError as fault:
            return None, fault

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        """A new episode of the task."""
        _, fault = self.ask("set_task", "start", seed)
        return self._seen, {} if fault is None else {"fault": fault}

    def start(self, seed: int | None) -> None:
        """Write the task and reset."""
        self.retask({self._number: self._task})
        self._what = "reset"
        observation, _ = self._unpack(self.env.reset(seed=seed), ("observation", "info"))
        self._see(observation, [0.0] * len(self._info))

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """A step, unless it is to wait."""
        if self._waits:
            return self._seen, 0.0, False, False, {}
        told, fault = self.ask("step", "go", action)
        if fault is not None:
            return self._seen, 0.0, False, False, {"fault": fault}
        reward, terminated = told
        return self._seen, reward, False, False, {"terminated": True} if terminated else {}

    def go(self, action: np.ndarray) -> tuple[float, bool]:
        """Reward and end of a step."""
        returned = self.env.step(_physical(self.env.action_space, action))
        observation, reward, terminated, _, info = self._unpack(returned, STEP)
        self._what = "the reward of step"
        received, told = _number(reward), []
        for name in self._info:
            self._what = f"info[{name!r}] of step"
            if name not in info:
                raise EnvError(f"{self._guard.name}: {self._where()} is missing.", f"There is {', '.join(info)}.")
            told.append(_number(info[name]))
        self._what = "the end told by step"
        ended = bool(_number(terminated))
        self._see(observation, told)
        return received, ended

    def _unpack(self, returned: Any, names: tuple[str, ...]) -> tuple[Any, ...]:
        if isinstance(returned, tuple) and len(returned) == len(names):
            return returned
        found = f"{len(returned)} values" if isinstance(returned, tuple) else f"a {type(returned).__name__}"
        raise self._guard.refuse(self._where(), found, f"({', '.join(names)})")

    def _see(self, observation: Any, told: list[float]) -> None:
        # A copy: environments may hand out a view, flipped or read-only, of what they go on writing into.
        self._what = "the observation"
        values, wanted = np.array(observation, dtype=np.float32), (len(self._seen) - len(told),)
        if values.shape != wanted:
            found = f"an observation of shape {values.shape}"
            raise self._guard.refuse(f"task {self._number} of {self._code}", found, f"shape {wanted}")
        self._seen = np.concatenate([values, np.array(told, np.float32)]) if told else values

    def wait(self, rows: np.ndarray) -> None:
        """Whether it is among the ``rows``, bool [B], that wait while others step."""
        self._waits = bool(rows[self._number])

    def retask(self, tasks: Mapping[int, Sequence[float]]) -> None:
        """Write the task that there is for it among ``tasks`` of some rows, if there is one, now."""
        if self._number not in tasks:
            return
        self._task = tasks[self._number]
        self._set_task(self.env, self._task)
        if (physics := physics_of(self.env)) is not None:  # masses of subtrees, inverse weights
            mujoco.mj_setConst(physics[0], mujoco.MjData(physics[0]))

    def read(self) -> np.ndarray:
        """Its hidden state, flat."""
        return np.array(self._access[0](self.env), dtype=np.float64).ravel()

    def write(self, states: np.ndarray) -> None:
        """Restore its own of the hidden ``states`` [B, X]."""
        self._access[1](self.env, states[self._number].copy())

    def picture(self, index: int) -> np.ndarray | None:
        """Of row ``index``; the environment must have been built with render_mode="rgb_array"."""
        if index != self._number:
            return None
        frame: Any = self.env.render()
        if frame is None:
            raise EnvError(f"{self._guard.name}: nothing was drawn.", 'Build it with render_mode="rgb_array".')
        self._what = "the picture"
        picture = np.array(frame, dtype=np.uint8)
        if picture.ndim != 3 or picture.shape[2] != 3:
            raise self._guard.refuse("render", f"a picture of shape {picture.shape}", "[height, width, 3]")
        return picture

    def shapes(self, index: int) -> Drawing | None:
        """Row ``index`` of a MuJoCo environment as shapes in space."""
        inner: Any = self.env.unwrapped
        if index != self._number or not isinstance(getattr(inner, "model", None), mujoco.MjModel):
            return None
        data = copy.copy(inner.data)  # computed in place it would touch the solver's warm start
        mujoco.mj_kinematics(inner.model, data)
        return drawn(inner.model, data)


def _physical(space: gymnasium.Space, action: np.ndarray) -> Any:
    """A normalised action [A] in the environment's units: inside its bounds, every integer of a range equally likely."""
    if isinstance(space, gymnasium.spaces.Discrete):
        return int(action.argmax()) + int(space.start)
    assert isinstance(space, gymnasium.spaces.Box)
    share = (np.minimum(np.maximum(action, -1), 1).astype(np.float64) + 1) / 2  # np.clip takes three times as long
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    if np.issubdtype(space.dtype, np.integer):
        return np.minimum(np.floor(low + share * (high - low + 1)), high).astype(space.dtype)
    return np.minimum(np.maximum((low + share * (high - low)).astype(space.dtype), space.low), space.high)


def _code(env: gymnasium.Env) -> str:
    """Class, file and line of the user's environment, for faults that show only in what it returned."""
    kind = type(env.unwrapped)
    code = getattr(kind.step, "__code__", None)
    return kind.__name__ + (f" ({code.co_filename}:{code.co_firstlineno})" if code else "")


def _number(value: Any) -> float:
    return float(np.asarray(value).item())
