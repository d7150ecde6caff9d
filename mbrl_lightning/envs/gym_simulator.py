"""B gymnasium environments behind the Simulator interface, stepped one after the other or each in a process of its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from torch import Tensor

from mbrl_lightning.envs.bodies.shapes import Drawing
from mbrl_lightning.envs.guard import Guard
from mbrl_lightning.envs.gym_row import Row
from mbrl_lightning.envs.spec import EnvSpec, require_finite, require_finite_action
from mbrl_lightning.errors import EnvError

ROUNDING = 1e-6  # relative; a float32 has 6e-8


class GymSimulator:
    """A :class:`~mbrl_lightning.envs.spec.Simulator` over separate gymnasium environments.

    Args:
        spec: the family's spec.
        row: builds one of them, given this process, its number and its P task parameters.
        guard: calls the user's code.
        processes: each environment has a process of its own.
        tasks: [B, P] float64.

    Attributes:
        last_reward: the environments' own rewards of the last step, float64 [B]; only for checking ``spec.reward``.
        last_terminated: their own ``terminated``, bool [B].
    """

    one_by_one = True

    def __init__(
        self,
        spec: EnvSpec,
        row: Callable[[int, int, Sequence[float]], Row],
        guard: Guard,
        processes: bool,
        tasks: Tensor,
    ) -> None:
        self.batch_size, self._spec, self._guard, self._tasks = len(tasks), spec, guard, tasks.tolist()
        self._processes, self._started = processes, False
        rows = [partial(row, os.getpid(), number, task) for number, task in enumerate(self._tasks)]
        self._waiting = torch.zeros(self.batch_size, dtype=torch.bool)
        self._observation = torch.zeros(self.batch_size, spec.observation_dim)
        self.last_reward = torch.zeros(self.batch_size, dtype=torch.float64)
        self.last_terminated = torch.zeros(self.batch_size, dtype=torch.bool)
        kind = partial(AsyncVectorEnv, context="fork") if processes else SyncVectorEnv
        self._vector: Any = None
        self._vector = self._call("building", kind, rows, copy=False, autoreset_mode=AutoresetMode.DISABLED)

    def _call(self, what: str, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """All rows do something. Each guards its own time; the time here is for one that cannot be broken off there."""

        def reach() -> Any:
            try:
                return function(*arguments, **named)
            except (EOFError, ConnectionError):
                raise self._lost() from None

        try:
            return self._guard.call(what, reach, calls=2 if self._processes else self.batch_size + 1)
        except BaseException:
            if self._processes and self._vector is not None:  # what they were at is not to be waited for
                for process in self._vector.processes:
                    process.kill()
                    process.join()
                self._vector.closed = True
            raise

    def _lost(self) -> EnvError:
        ended = [] if self._vector is None else list(enumerate(self._vector.processes))
        for _, process in ended:
            process.join(0.1)
        gone = [
            f"of task {row} {self._tasks[row]} with status {p.exitcode}" for row, p in ended if p.exitcode is not None
        ]
        which = f"{(gone or ['while it was built'])[0]}{f', and {len(gone) - 1} more' * (len(gone) > 1)}"
        cause = f"{self._spec.name}: the process of an environment ended: {which}."
        return EnvError(cause, "Look at what it printed; processes=False runs it where it can be debugged.")

    def _ask(self, what: str, method: str, *arguments: Any) -> list[Any]:
        """What all rows answer; see `Row.ask`."""
        answers = self._call(what, self._vector.call, "ask", what, method, *arguments)
        _raise_first(fault for _, fault in answers)
        return [answer for answer, _ in answers]

    def reset(self, generator: torch.Generator, mask: Tensor | None = None) -> Tensor:
        """See Simulator.reset; every environment is seeded from the generator."""
        seeds = torch.randint(2**31 - 1, (self.batch_size,), generator=generator, device=generator.device).tolist()
        self._reset(seeds, torch.ones(self.batch_size, dtype=torch.bool) if mask is None else mask.cpu())
        require_finite(self._spec, self._observation)
        return self._observation.clone()

    def _reset(self, seeds: list[int], rows: Tensor) -> None:
        begun = rows if self._started else torch.ones_like(rows)  # gymnasium wants all to have begun
        if begun.any():
            seen, infos = self._call("reset", self._vector.reset, seed=seeds, options={"reset_mask": begun.numpy()})
            _raise_first(infos.get("fault", ()))
            self._observation = torch.where(rows[:, None], torch.from_numpy(seen), self._observation)
            self._started = True

    def step(self, action: Tensor, mask: Tensor | None = None) -> Tensor:
        """See Simulator.step; an end that ``spec.termination`` does not foresee is an EnvError: models would go on there."""
        require_finite_action(self._spec, action, mask)
        rows = torch.ones(self.batch_size, dtype=torch.bool) if mask is None else mask.cpu()
        if (self._waiting != ~rows).any():
            self._waiting = ~rows
            self._ask("step", "wait", self._waiting.numpy())
        seen, reward, _, _, infos = self._call("step", self._vector.step, action.detach().cpu().float().numpy())
        _raise_first(infos.get("fault", ()))
        self._observation = torch.where(rows[:, None], torch.from_numpy(seen), self._observation)
        self.last_reward = torch.where(rows, torch.from_numpy(reward), self.last_reward)
        ended = torch.from_numpy(np.array(infos.get("terminated", np.zeros(self.batch_size, dtype=bool))))
        self.last_terminated = torch.where(rows, ended, self.last_terminated)
        require_finite(self._spec, self._observation)
        if ended.any():
            self._refuse_unforeseen(ended & rows)
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

    def state(self) -> Tensor:
        """See Simulator.state."""
        rows = self._ask("reading the state", "read")
        return torch.cat([torch.from_numpy(np.stack(rows)), self._observation.double()], -1)

    def set_state(self, state: Tensor) -> None:
        """See Simulator.set_state."""
        size = state.shape[1] - self._spec.observation_dim
        if not self._started:  # stepping before a reset is an error in gymnasium
            self._reset([0] * self.batch_size, torch.ones(self.batch_size, dtype=torch.bool))
        self._ask("writing the state", "write", state[:, :size].cpu().numpy())
        self._observation = state[:, size:].float().cpu().clone()

    def render(self, index: int = 0) -> np.ndarray:
        """See Simulator.render; the environment must have been built with render_mode="rgb_array"."""
        return self._ask("render", "picture", index)[index]

    def drawing(self, index: int = 0) -> Drawing | None:
        """See Simulator.drawing: of a MuJoCo environment."""
        return self._ask("the drawing", "shapes", index)[index]

    def set_tasks(self, rows: Tensor, tasks: Tensor) -> None:
        """Write tasks [n, P] into ``rows`` (indices [n]) now; what an environment reads in ``reset`` alone waits until then."""
        given = dict(zip(rows.tolist(), tasks.tolist(), strict=True))
        self._tasks = [given.get(row, task) for row, task in enumerate(self._tasks)]
        self._ask("set_task", "retask", given)

    def close(self) -> None:
        """See Simulator.close."""
        self._call("close", self._vector.close)


def _raise_first(faults: Iterable[EnvError | None]) -> None:
    for fault in faults:
        if fault is not None:
            raise fault
