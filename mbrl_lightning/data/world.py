"""The real world of a run: what an algorithm collects in it is stored and counted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from mbrl_lightning.data.buffer import TaskBuffer
from mbrl_lightning.data.collect import Agent, collect_parts
from mbrl_lightning.data.seeds import Streams
from mbrl_lightning.envs.family import TaskFamily


class RealWorld:
    """Tasks, the transitions collected in them, and how to collect more; at most `capacity` are kept.

    Attributes:
        real: all transitions.
        iteration: outer iterations done.
        tasks: the training tasks of this iteration `[M, P]`, drawn from the stream `tasks`.
        index: their indices in `real` `[M]`.
    """

    def __init__(self, family: TaskFamily, streams: Streams, capacity: int) -> None:
        self.family, self.streams, self.iteration = family, streams, 0
        self.real = TaskBuffer(len(family.parameters), capacity)
        self.tasks = torch.zeros(0, len(family.parameters), dtype=torch.float64)
        self.index = torch.zeros(0, dtype=torch.long)

    def draw(self, tasks: Tensor) -> None:
        """Train on new `tasks` `[M, P]` from here on."""
        self.tasks = tasks
        self.index = self.real.add_tasks(self.tasks)

    def interact(
        self,
        tasks: Tensor,
        agent: Agent,
        belief: TensorDict,
        steps: int,
        noise: torch.Generator | None = None,
        every: int | None = None,
        exploratory: bool = False,
        index: Tensor | None = None,
    ) -> Iterator[TensorDict]:
        """Real interaction (see `collect_parts`): collected, stored, counted, and handed over in parts `[B, every]`.

        Args:
            tasks: `[B, P]`.
            agent: acts.
            belief: what it begins its episodes with, `[B]`.
            steps: of each task, in all.
            noise: draws the actions; None: the stream `envs`.
            every: steps of a part; None gives all at once.
            exploratory: contexts are made of these transitions.
            index: of the tasks in `real` `[B]`; None looks them up, and so does a simulator that switches them.
        """
        envs, first = self.streams["envs"], self.real.episodes if every else None
        place = self.real.index_of(tasks) if index is None else index
        simulator = self.family.simulate(tasks)
        try:
            spec = self.family.spec
            for part in collect_parts(
                simulator, spec, agent, belief, steps, envs, every or steps, envs if noise is None else noise
            ):
                if "hidden" in part.keys():  # noqa: SIM118 - a TensorDict has no `in`
                    place = self.real.index_of(part["hidden"])
                self.real.extend(part, place, exploratory, first_episode=first)
                yield part
        finally:
            simulator.close()

    def state_dict(self) -> dict[str, Any]:
        """Plain containers and tensors; the streams are saved by who owns them."""
        own = {"tasks": self.tasks, "index": self.index, "iteration": self.iteration}
        return {"real": self.real.state_dict()} | own

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave into a new world."""
        self.real.load_state_dict(state["real"])
        self.tasks, self.index, self.iteration = state["tasks"], state["index"], state["iteration"]
