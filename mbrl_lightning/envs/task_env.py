"""One task of a family as a plain ``gymnasium.Env``: for loops, wrappers and libraries that know nothing of tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from mbrl_lightning.envs.bodies.shapes import Drawing
from mbrl_lightning.envs.spec import EnvSpec, Simulator
from mbrl_lightning.errors import ConfigError


class TaskEnv(gymnasium.Env):
    """Observations [S] float32; actions [A] in [-1, 1], whatever the body's units, or the number of a discrete one.

    ``terminated`` is the family's termination, ``truncated`` its horizon, ``info["task"]`` the parameters in force: where a
    hidden task switches, every episode begins with the one given here.

    Args:
        spec: the family's.
        build: tasks [1, P] float64 -> Simulator.
        parameters: P names.
        task: P values in that order, or a value by name.
        render_mode: "rgb_array" or None.

    Raises:
        ConfigError: a task of other parameters, an unknown render mode, an action of another shape.
    """

    _simulator: Simulator | None
    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012 - as gymnasium has it

    def __init__(
        self,
        spec: EnvSpec,
        build: Callable[[Tensor], Simulator],
        parameters: tuple[str, ...],
        task: Sequence[float] | Mapping[str, float] | Tensor,
        render_mode: str | None = None,
    ) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ConfigError(f"render_mode={render_mode!r} is not known.", 'Give "rgb_array" or None.')
        self.family_spec, self._build, self._parameters, self.render_mode = spec, build, parameters, render_mode
        self._task, self._simulator = self._values(task), None
        self._observation, self._age = torch.zeros(1, spec.observation_dim), 0
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (spec.observation_dim,), np.float32)
        box = gymnasium.spaces.Box(-1.0, 1.0, (spec.action_dim,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(spec.action_dim) if spec.discrete else box

    def _values(self, task: Sequence[float] | Mapping[str, float] | Tensor) -> Tensor:
        names = self._parameters
        if isinstance(task, Mapping):
            task = [task[name] for name in names] if task.keys() == {*names} else []
        values = _numbers(task).ravel().copy()
        if len(values) != len(names) or not np.isfinite(values).all():
            cause = f"{self.family_spec.name}: {values.tolist()} is no task."
            raise ConfigError(cause, f"Give a finite number for each of {', '.join(names)}.")
        return torch.from_numpy(values).unsqueeze(0)

    def switch(self, task: Sequence[float] | Mapping[str, float] | Tensor) -> None:
        """Another task, as in the constructor, from the next step on; the body stays as it is, and no other switch is due.

        A ConfigError where the simulator cannot do that.
        """
        self._task = self._values(task)
        if self._simulator is not None and not hasattr(self._simulator, "set_tasks"):
            cause = f"{self.family_spec.name}: its simulator gives a row no other task."
            raise ConfigError(cause, "Give it set_tasks(rows, tasks), or make another environment.")
        if self._simulator is not None:
            self._simulator.set_tasks(torch.zeros(1, dtype=torch.long), self._task)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """A new episode of the task; its start is drawn from ``np_random``."""
        super().reset(seed=seed)
        if getattr(self._simulator, "tasks", None) is not None:  # one that switches would begin with another task
            self.close()
        if self._simulator is None:
            self._simulator = self._build(self._task)
        draws = torch.Generator().manual_seed(int(self.np_random.integers(2**62)))
        self._observation, self._age = self._simulator.reset(draws), 0
        return self._told()

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        """See ``gymnasium.Env.step``."""
        spec, before, taken = self.family_spec, self._observation, torch.tensor(_numbers(action)).unsqueeze(0)
        fits = taken.shape[1:] == self.action_space.shape
        if self._simulator is None or not fits or (spec.discrete and not 0 <= taken < spec.action_dim):
            cause = f"{spec.name}: step before reset, or an action of shape {tuple(taken.shape[1:])}."
            raise ConfigError(cause, f"Reset first, and give one of {self.action_space}: action[0].")
        taken = one_hot(taken.long(), spec.action_dim).float() if spec.discrete else taken.float().clamp(-1, 1)
        self._observation, self._age = self._simulator.step(taken), self._age + 1
        terminated = bool(spec.termination(self._observation))
        observation, info = self._told()
        reward = float(spec.reward(before, taken, self._observation))
        return observation, reward, terminated, self._age >= spec.horizon and not terminated, info

    def _told(self) -> tuple[np.ndarray, dict[str, Any]]:
        hidden = getattr(self._simulator, "tasks", None)
        task = (self._task if hidden is None else hidden)[0].tolist()
        return self._observation[0].numpy().copy(), {"task": dict(zip(self._parameters, task, strict=True))}

    def render(self) -> Any:
        """A picture, uint8 [height, width, 3], if that was asked for."""
        return self._simulator.render(0) if self._simulator is not None and self.render_mode else None

    def drawing(self) -> Drawing | None:
        """The body as shapes in space, if there are any, once an episode has begun."""
        found = getattr(self._simulator, "drawing", None)
        return None if found is None else found(0)

    def close(self) -> None:
        """See ``gymnasium.Env.close``."""
        if self._simulator is not None:
            self._simulator.close()
        self._simulator = None


def _numbers(value: Any) -> np.ndarray:
    """As an array; one that fits nothing where it is none."""
    try:
        return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        return np.empty((0, 0))
