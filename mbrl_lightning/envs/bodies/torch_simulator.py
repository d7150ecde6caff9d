"""Families with closed-form dynamics: B environments advanced as one float64 torch batch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from mbrl_lightning.envs.bodies.shapes import Canvas, Drawing
from mbrl_lightning.envs.spec import EnvSpec, identity, require_finite, require_finite_action


class TorchSimulator:
    """A :class:`~mbrl_lightning.envs.spec.Simulator` whose state, kept in float64, *is* the observation, or holds more.

    Args:
        spec: the family's spec.
        tasks: [B, P] float64.
        initial: (batch, generator) -> [batch, X] float64.
        transition: (state [B, X], action [B, A] clipped, tasks [B, P]) -> next state [B, X], all float64.
        draw: (state row [X], task row [P]) -> the canvas on which it is drawn.
        observe: state [B, X] -> [B, S], what is seen of it.
    """

    def __init__(
        self,
        spec: EnvSpec,
        tasks: Tensor,
        initial: Callable[[int, torch.Generator], Tensor],
        transition: Callable[[Tensor, Tensor, Tensor], Tensor],
        draw: Callable[[Tensor, Tensor], Canvas],
        observe: Callable[[Tensor], Tensor] = identity,
    ) -> None:
        self.batch_size = len(tasks)
        self._spec, self._tasks, self._observe = spec, tasks.clone(), observe
        self._initial, self._transition, self._draw = initial, transition, draw
        self._state = torch.zeros_like(initial(self.batch_size, torch.Generator())).to(tasks)

    def reset(self, generator: torch.Generator, mask: Tensor | None = None) -> Tensor:
        """See Simulator.reset."""
        fresh = self._initial(self.batch_size, generator).to(self._state)
        self._state = fresh if mask is None else torch.where(mask[:, None], fresh, self._state)
        return self._observe(self._state).float()

    @torch.no_grad()
    def step(self, action: Tensor, mask: Tensor | None = None) -> Tensor:
        """See Simulator.step."""
        require_finite_action(self._spec, action, mask)
        stepped = self._transition(self._state, action.to(self._state).clamp(-1, 1), self._tasks)
        self._state = stepped if mask is None else torch.where(mask[:, None], stepped, self._state)
        observation = self._observe(self._state).float()
        require_finite(self._spec, observation)
        return observation

    def set_tasks(self, rows: Tensor, tasks: Tensor) -> None:
        """Give ``rows`` (indices [n]) the tasks [n, P] from the next step on; the state stays as it is."""
        self._tasks[rows] = tasks.to(self._tasks)

    def state(self) -> Tensor:
        """See Simulator.state."""
        return self._state.clone()

    def set_state(self, state: Tensor) -> None:
        """See Simulator.set_state."""
        self._state = state.to(self._state).clone()

    def render(self, index: int = 0) -> np.ndarray:
        """See Simulator.render."""
        return self._canvas(index).picture

    def drawing(self, index: int = 0) -> Drawing:
        """See Simulator.drawing."""
        return self._canvas(index).drawing

    def _canvas(self, index: int) -> Canvas:
        return self._draw(self._state[index].cpu(), self._tasks[index].cpu())

    def close(self) -> None:
        """Nothing is held."""
