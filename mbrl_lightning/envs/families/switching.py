"""Simulators whose task is hidden and may change inside an episode, without the body noticing (M3PO section 3).

The reward goes where the agent can learn it from: it is the last entry of the next observation, 0 at the start of an
episode. Everything else of the observation is the same whatever the task.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mbrl_lightning.envs.bodies.body import Retaskable
from mbrl_lightning.envs.bodies.shapes import Drawing
from mbrl_lightning.envs.spec import EnvSpec
from mbrl_lightning.errors import ConfigError

Reward = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(base obs [B, S'], action clipped [B, A], base next obs [B, S'], task [B, P]) -> [B]."""


def hide(tasks: Tensor) -> Tensor:
    """Nothing of the tasks [B, P]: [B, 0]."""
    return tasks[:, :0]


@dataclass(frozen=True)
class Schedule:
    """When and to what the hidden task changes.

    Attributes:
        draw: (n, generator) -> float64 [n, P], tasks at the start of an episode.
        horizon: steps per episode; nothing switches later.
        every: mean number of steps between switches, each drawn from every * U[1 - jitter, 1 + jitter]; None: never.
        another: (tasks [n, P], generator) -> [n, P], the tasks that follow; None: a fresh draw, which may be the same again.
        lasting: a row's later episodes begin with the task of its first, not with one drawn anew.
    """

    draw: Callable[[int, torch.Generator], Tensor]
    horizon: int
    every: int | None = None
    jitter: float = 0.1
    another: Callable[[Tensor, torch.Generator], Tensor] | None = None
    lasting: bool = False

    def __post_init__(self) -> None:
        whole = all(isinstance(n, int) and n >= 1 for n in (self.horizon, 1 if self.every is None else self.every))
        if not whole or not 0 <= self.jitter < 1:
            raise ConfigError(
                f"horizon={self.horizon}, switch_every_steps={self.every}, jitter={self.jitter} make no schedule.",
                "Give whole numbers of at least 1 (switch_every_steps=null: never) and a jitter in [0, 1).",
            )

    @property
    def switches(self) -> int:
        """N, the most switches an episode can have."""
        shortest = self.horizon if self.every is None else max(1, math.floor(self.every * (1 - self.jitter)))
        return (self.horizon - 1) // shortest

    def times(self, rows: int, generator: torch.Generator) -> Tensor:
        """Steps after which the task switches, int64 [rows, N], increasing."""
        unit = torch.rand(rows, self.switches, generator=generator, dtype=torch.float64)
        gaps = (self.every or 1) * (1 + self.jitter * (2 * unit - 1))
        return gaps.round().clamp_min(1).long().cumsum(1)

    def tasks(self, first: Tensor, generator: torch.Generator) -> Tensor:
        """The tasks of an episode in their order, [rows, N + 1, P], beginning with ``first`` [rows, P]."""
        sequence = [first]
        for _ in range(self.switches):
            following = self.another(sequence[-1], generator) if self.another else self.draw(len(first), generator)
            sequence.append(following.to(first))
        return torch.stack(sequence, 1)


class SwitchingSimulator:
    """A :class:`~mbrl_lightning.envs.spec.Simulator` that hides its task and switches it on a schedule.

    The first episode of a row begins with the task it was built with, every later one with a task drawn anew, unless
    tasks are lasting. Tasks and times of all rows are drawn at every reset, so what happens to a row does not depend on the
    others.

    Args:
        base: the body; its observation holds whatever the reward needs.
        spec: the family's.
        tasks: [B, P] float64, those ``base`` was built with.
        reward: with the task in force *during* the step.
        schedule: when and to what the task changes.
        visible: the entries of the base's observation that the agent sees.
        show: tasks [B, P] -> what of them is put before the previous reward, in the open.

    Attributes:
        tasks: hidden, in force in the next step, float64 [B, P]; for reports and pictures, never for an agent.
    """

    def __init__(
        self,
        base: Retaskable,
        spec: EnvSpec,
        tasks: Tensor,
        reward: Reward,
        schedule: Schedule,
        visible: slice,
        show: Callable[[Tensor], Tensor] = hide,
    ) -> None:
        self.batch_size = len(tasks)
        self._base, self._reward, self._schedule = base, reward, schedule
        self.one_by_one = getattr(base, "one_by_one", False)
        self._visible, self._show = visible, show
        self.tasks = tasks.double().clone()
        self._sequence = self.tasks.unsqueeze(1).repeat(1, schedule.switches + 1, 1)
        self._times = torch.full((self.batch_size, schedule.switches), schedule.horizon)
        self._clock = torch.zeros(self.batch_size, dtype=torch.long)
        self._started = torch.zeros(self.batch_size, dtype=torch.bool)
        self._before = torch.zeros(self.batch_size, 0)
        self._observation = torch.zeros(self.batch_size, spec.observation_dim)
        self._quiet = 0

    def reset(self, generator: torch.Generator, mask: Tensor | None = None) -> Tensor:
        """See Simulator.reset."""
        # A stream of their own for tasks and times: where the body starts does not depend on how often they switch.
        seed = torch.randint(2**62, (), generator=generator, device=generator.device)
        stream = torch.Generator().manual_seed(int(seed))
        fresh = self._schedule.draw(self.batch_size, stream).double()
        anew = self._started & (not self._schedule.lasting)
        first = torch.where(anew.unsqueeze(1), fresh, self._sequence[:, 0])
        times, sequence = self._schedule.times(self.batch_size, stream), self._schedule.tasks(first, stream)
        rows = torch.ones_like(self._started) if mask is None else mask.cpu()
        self._times = torch.where(rows[:, None], times, self._times)
        self._sequence = torch.where(rows[:, None, None], sequence, self._sequence)
        self._clock = self._clock.masked_fill(rows, 0)
        self._started = self._started | rows
        # Before the body is put at its start, so that whatever is derived there is of the task's own model.
        self._follow_schedule()
        self._before = self._base.reset(generator, mask)
        opening = self._observe(self._before, torch.zeros(self.batch_size))
        self._observation = torch.where(rows[:, None], opening, self._observation)
        return self._observation.clone()

    @torch.no_grad()
    def step(self, action: Tensor, mask: Tensor | None = None) -> Tensor:
        """See Simulator.step; a switch that is due comes after the reward of the step."""
        following = self._base.step(action, mask)
        reward = self._reward(self._before, action.detach().cpu().clamp(-1, 1), following, self.tasks)
        self._clock += 1 if mask is None else mask.cpu()
        self._before = following
        self._quiet -= 1
        if self._quiet <= 0:
            self._follow_schedule()
        observation = self._observe(following, reward)
        if mask is not None:
            observation = torch.where(mask.cpu()[:, None], observation, self._observation)
        self._observation = observation
        return observation.clone()

    def _observe(self, base: Tensor, reward: Tensor) -> Tensor:
        parts = base[:, self._visible], self._show(self.tasks).to(base), reward.to(base).unsqueeze(-1)
        return torch.cat(parts, -1)

    def _follow_schedule(self) -> None:
        """Put the tasks in force that the clocks ask for, and count the steps in which nothing can switch."""
        passed = self._times <= self._clock[:, None]
        due = self._sequence[torch.arange(self.batch_size), passed.sum(1)]
        rows = (due != self.tasks).any(1).nonzero().flatten()
        if len(rows):
            self._base.set_tasks(rows, due[rows])
        self.tasks = due
        left = (self._times - self._clock[:, None]).masked_fill(passed, self._schedule.horizon)
        self._quiet = int(left.min()) if left.numel() else self._schedule.horizon

    def set_tasks(self, rows: Tensor, tasks: Tensor) -> None:
        """Give ``rows`` (indices [n]) the tasks [n, P] from the next step on, until their episodes end; nothing is due before."""
        self._sequence[rows] = tasks.to(self._sequence).unsqueeze(1)
        self._follow_schedule()

    def _parts(self) -> list[Tensor]:
        return [self._clock[:, None], self._started[:, None], self._times, self._sequence.flatten(1), self._observation]

    def state(self) -> Tensor:
        """See Simulator.state."""
        return torch.cat([part.double() for part in (*self._parts(), self._base.state(), self._before)], -1)

    def set_state(self, state: Tensor) -> None:
        """See Simulator.set_state."""
        sizes = [part.shape[1] for part in (*self._parts(), self._base.state())]
        parts = state.cpu().double().split([*sizes, state.shape[1] - sum(sizes)], -1)
        clock, started, times, sequence, observation, base, before = parts
        self._clock, self._times = clock[:, 0].long(), times.long()
        self._started, self._sequence = started[:, 0].bool(), sequence.reshape(self._sequence.shape).clone()
        self._observation, self._before = observation.float(), before.float()
        self._follow_schedule()
        self._base.set_state(base)

    def render(self, index: int = 0) -> np.ndarray:
        """See Simulator.render; the body's colour tells the hidden task."""
        return self._base.render(index)

    def drawing(self, index: int = 0) -> Drawing | None:
        """See Simulator.drawing."""
        return self._base.drawing(index)

    def close(self) -> None:
        """See Simulator.close."""
        self._base.close()
