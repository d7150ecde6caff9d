"""The same family with its hidden task in sight: the ceiling for what a history can be worth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from mbrl_lightning.envs.family import TaskFamily
from mbrl_lightning.envs.spec import Simulator


class ToldSimulator:
    """A :class:`~mbrl_lightning.envs.spec.Simulator` whose observations hold the task in force, before the last entry.

    Args:
        base: hides its ``tasks`` [B, P].
        family: scales them.
    """

    def __init__(self, base: Simulator, family: TaskFamily) -> None:
        self.batch_size, self._base, self._family = base.batch_size, base, family

    @property
    def tasks(self) -> Tensor:
        """The tasks in force [B, P]."""
        tasks: Tensor = self._base.tasks  # type: ignore[attr-defined]
        return tasks

    def _show(self, observation: Tensor) -> Tensor:
        told = self._family.scale(self.tasks).to(observation)
        return torch.cat([observation[:, :-1], told, observation[:, -1:]], 1)

    def reset(self, generator: torch.Generator, mask: Tensor | None = None) -> Tensor:
        """See Simulator.reset."""
        return self._show(self._base.reset(generator, mask))

    def step(self, action: Tensor, mask: Tensor | None = None) -> Tensor:
        """See Simulator.step."""
        return self._show(self._base.step(action, mask))

    def state(self) -> Tensor:
        """See Simulator.state."""
        return self._base.state()

    def set_state(self, state: Tensor) -> None:
        """See Simulator.set_state."""
        self._base.set_state(state)

    def render(self, index: int = 0) -> np.ndarray:
        """See Simulator.render."""
        return self._base.render(index)

    def close(self) -> None:
        """See Simulator.close."""
        self._base.close()


def tell(family: TaskFamily) -> TaskFamily:
    """A family with a hidden task and the previous reward in its last entry -> the same with the task in sight."""
    spec, count = family.spec, len(family.parameters)

    def hide(observation: Tensor) -> Tensor:
        return torch.cat([observation[..., : -count - 1], observation[..., -1:]], -1)

    def told(observation: Tensor) -> Tensor:
        return observation[..., -count - 1 : -1]

    def untarget(observation: Tensor, target: Tensor) -> Tensor:
        following = spec.untarget(hide(observation), target[..., :-count])
        return torch.cat([following[..., :-1], target[..., -count:], following[..., -1:]], -1)

    def change(observation: Tensor, following: Tensor) -> Tensor:
        moved = spec.change(hide(observation), hide(following))
        return torch.cat([moved[..., :-1], told(following) - told(observation), moved[..., -1:]], -1)

    seen = replace(
        spec,
        observation_names=(*spec.observation_names[:-1], *family.parameters, spec.observation_names[-1]),
        features=lambda o: torch.cat([spec.features(hide(o)), told(o)], -1),
        target=lambda o, n: torch.cat([spec.target(hide(o), hide(n)), told(n)], -1),
        untarget=untarget,
        change=change,
        termination=spec.termination if spec.termination.__name__ == "never" else lambda n: spec.termination(hide(n)),
    )
    return replace(family, spec=seen, build=lambda tasks: ToldSimulator(family.build(tasks), family))
