"""B gymnasium environments stepped one after the other behind the Simulator interface."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from mbrl_lightning.envs.spec import EnvSpec, require_finite
from mbrl_lightning.errors import EnvError

StateAccess = tuple[Callable[[gymnasium.Env], np.ndarray], Callable[[gymnasium.Env, np.ndarray], None]]


class GymSimulator:
    """A :class:`~mbrl_lightning.envs.spec.Simulator` over separate gymnasium environments.

    Args:
        spec: the family's spec.
        make: builds one environment.
        set_task: (env, P values) writes a task; called before every reset.
        tasks: [B, P] float64.
        state_access: (read, write) of an environment's hidden state as a flat array; None: found out (MuJoCo
            environments, and those with an attribute ``state``).

    Attributes:
        last_reward: the environments' own rewards of the last step, float32 [B]; only for checking
            ``spec.reward``.
        last_terminated: their own ``terminated``, bool [B].
    """

    def __init__(
        self,
        spec: EnvSpec,
        make: Callable[[], gymnasium.Env],
        set_task: Callable[[gymnasium.Env, Sequence[float]], None],
        tasks: Tensor,
        state_access: StateAccess | None = None,
    ) -> None:
        self.batch_size = len(tasks)
        self._spec, self._set_task, self._tasks = spec, set_task, tasks.tolist()
        self._envs = [make() for _ in range(self.batch_size)]
        self._access, self._started = state_access, [False] * self.batch_size
        self._observation = torch.zeros(self.batch_size, spec.observation_dim)
        self.last_reward = torch.zeros(self.batch_size)
        self.last_terminated = torch.zeros(self.batch_size, dtype=torch.bool)

    def reset(self, generator: torch.Generator, mask: Tensor | None = None) -> Tensor:
        """See Simulator.reset; every environment is seeded from the generator."""
        seeds = torch.randint(2**31 - 1, (self.batch_size,), generator=generator, device=generator.device).tolist()
        for row in self._rows(mask):
            self._start(row, seeds[row])
        return self._checked()

    def _start(self, row: int, seed: int) -> None:
        self._set_task(self._envs[row], self._tasks[row])
        observation, _ = self._guard(row, "reset", lambda env: env.reset(seed=seed))
        self._write(row, observation)
        self._started[row] = True

    def step(self, action: Tensor, mask: Tensor | None = None) -> Tensor:
        """See Simulator.step."""
        for row in self._rows(mask):
            physical = self._physical(self._envs[row].action_space, action[row])
            observation, reward, terminated, _, _ = self._guard(row, "step", functools.partial(_step, action=physical))
            self._write(row, observation)
            self.last_reward[row], self.last_terminated[row] = float(reward), bool(terminated)
        return self._checked()

    def _physical(self, space: gymnasium.Space, action: Tensor) -> Any:
        if isinstance(space, gymnasium.spaces.Discrete):
            return int(action.argmax()) + int(space.start)
        assert isinstance(space, gymnasium.spaces.Box)
        unit = action.detach().clamp(-1, 1).double().cpu().numpy()
        return (space.low + (unit + 1) / 2 * (space.high - space.low)).astype(space.dtype)

    def _guard(self, row: int, what: str, call: Callable[[gymnasium.Env], Any]) -> Any:
        try:
            return call(self._envs[row])
        except Exception as error:
            raise EnvError(
                f"{self._spec.name}: {what}, task {row} {self._tasks[row]}: {type(error).__name__}: {error}",
                "Check what set_task writes; `check_env` steps every parameter on its own.",
            ) from error

    def _write(self, row: int, observation: np.ndarray) -> None:
        values = torch.as_tensor(np.asarray(observation, dtype=np.float32))
        if values.shape != self._observation[row].shape:
            raise EnvError(
                f"{self._spec.name}: task {row} returned an observation of shape {tuple(values.shape)}, "
                f"not ({self._spec.observation_dim},).",
                "Make the environment return what its observation_space says.",
            )
        self._observation[row] = values

    def _checked(self) -> Tensor:
        require_finite(self._spec, self._observation)
        return self._observation.clone()

    def _rows(self, mask: Tensor | None) -> range | list[int]:
        return range(self.batch_size) if mask is None else torch.nonzero(mask).flatten().tolist()

    def state(self) -> Tensor:
        """See Simulator.state.

        Raises:
            EnvError: no way to read the state is known.
        """
        read, _ = self._state_access()
        rows = np.stack([np.asarray(read(env), dtype=np.float64).ravel() for env in self._envs])
        return torch.cat([torch.from_numpy(rows), self._observation.double()], -1)

    def set_state(self, state: Tensor) -> None:
        """See Simulator.set_state."""
        _, write = self._state_access()
        size = state.shape[1] - self._spec.observation_dim
        for row, env in enumerate(self._envs):
            if not self._started[row]:  # stepping before a reset is an error in gymnasium
                self._start(row, seed=0)
            write(env, state[row, :size].cpu().numpy().copy())
        self._observation = state[:, size:].float().cpu().clone()

    def _state_access(self) -> StateAccess:
        if self._access is None:
            inner: Any = self._envs[0].unwrapped
            if hasattr(inner, "model") and hasattr(inner, "data"):
                self._access = _read_mujoco, _write_mujoco
            elif hasattr(inner, "state"):
                self._access = _read_attribute, _write_attribute
            else:
                raise EnvError(
                    f"{self._spec.name}: no way is known to read the environment's state.",
                    "Give gym_family(state_access=(read, write)).",
                )
        return self._access

    def render(self, index: int = 0) -> np.ndarray:
        """See Simulator.render; the environment must have been built with render_mode="rgb_array"."""
        frame = self._guard(index, "render", lambda env: env.render())
        if frame is None:
            raise EnvError(
                f"{self._spec.name}: nothing was drawn.",
                'Build the environment with render_mode="rgb_array".',
            )
        return np.asarray(frame, dtype=np.uint8)

    def close(self) -> None:
        """See Simulator.close."""
        for env in self._envs:
            env.close()


def _step(env: gymnasium.Env, action: Any) -> Any:
    return env.step(action)


def _read_attribute(env: Any) -> np.ndarray:
    return np.asarray(env.unwrapped.state)


def _write_attribute(env: Any, values: np.ndarray) -> None:
    env.unwrapped.state = values


def _read_mujoco(env: Any) -> np.ndarray:
    import mujoco

    model, data, kind = env.unwrapped.model, env.unwrapped.data, mujoco.mjtState.mjSTATE_INTEGRATION.value
    values = np.empty(mujoco.mj_stateSize(model, kind))
    mujoco.mj_getState(model, data, values, kind)
    return values


def _write_mujoco(env: Any, values: np.ndarray) -> None:
    import mujoco

    mujoco.mj_setState(env.unwrapped.model, env.unwrapped.data, values, mujoco.mjtState.mjSTATE_INTEGRATION.value)
