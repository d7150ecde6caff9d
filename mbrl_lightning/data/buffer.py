"""Real transitions at rest, in a TorchRL replay buffer, indexed by task."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer

from mbrl_lightning.data.ring import Ring
from mbrl_lightning.errors import ConfigError, EnvError
from mbrl_lightning.runs.checkpoint import Segment

Made = TypeVar("Made")

BLOCK, FAN, LEVELS = 4096, 16, 5  # rows of a block, blocks of one of the next level, levels
COLUMNS = ("observation", "action", ("next", "observation"), ("next", "reward"), ("next", "terminated"))


class TaskBuffer:
    """Transitions of many tasks with P = `parameters`; batches of M tasks x N transitions are drawn with one gather.

    The oldest are dropped beyond the `capacity`.
    """

    def __init__(self, parameters: int, capacity: int = 200_000) -> None:
        self.storage, self.capacity = TensorDictReplayBuffer(storage=LazyTensorStorage(capacity)), capacity
        self.tasks = torch.zeros(0, parameters, dtype=torch.float64)
        self.num_steps = 0
        self.episodes = 0
        self._rows: dict[bool, tuple[Tensor, Tensor, Tensor, int]] = {}  # table, counts, table with room, steps seen
        self._starts, self._begun = (Ring(), Ring()), 0  # numbers of rows to start from, steps seen
        self._all: TensorDict | None = None
        self._known: dict[tuple[int, int], dict[Hashable, Any]] = {}  # summaries by level and block
        self._kept: dict[Hashable, Any] = {}

    def __len__(self) -> int:
        return len(self.storage)

    def add_tasks(self, tasks: Tensor) -> Tensor:
        """Register task parameters `[M, P]`; returns their indices `[M]`."""
        first = len(self.tasks)
        self.tasks = torch.cat([self.tasks, tasks.double()])
        return torch.arange(first, len(self.tasks))

    def index_of(self, tasks: Tensor) -> Tensor:
        """Indices `[...]` of tasks `[..., P]`: equal ones share theirs, those not seen before are registered."""
        known = len(self.tasks)
        values = torch.cat([self.tasks, tasks.reshape(-1, self.tasks.shape[1]).double()])
        inverse = torch.unique(values, dim=0, return_inverse=True)[1]
        first = torch.full_like(inverse, len(values)).scatter_reduce_(0, inverse, torch.arange(len(values)), "amin")
        own = first[inverse]  # the first row with a row's value stands for it
        new = own[known:].unique()
        new = new[new >= known]
        self.add_tasks(values[new])
        index = torch.where(own < known, own, known + torch.searchsorted(new, own))
        return index[known:].view(tasks.shape[:-1])

    def extend(self, data: TensorDictBase, index: Tensor, exploratory: bool, first_episode: int | None = None) -> None:
        """Add the valid rows of `data` `[B, T]`, row b of task `index[b]`.

        Args:
            data: what `collect` gave, or recordings of your own with the keys of COLUMNS and `("next", "done")`; nothing is
                added if a number is not finite or a key is missing.
            index: task indices `[B]`, or `[B, T]` where tasks change on the way.
            exploratory: collected by the exploration policy (such rows make up contexts).
            first_episode: what `episodes` was before the first part, for data that come in parts (`collect_parts`); rows
                are then stored step by step instead of row by row, so that an episode's steps lie B rows apart.
        """
        data = _with_episodes(data)
        bad = [key for key in COLUMNS[:4] if not bool(torch.isfinite(data[key]).all())]
        if bad:
            raise EnvError(
                f"the environment gave a non-finite {bad[0]}",
                "check the family with `python -m mbrl_lightning.check_env NAME`; nothing of this batch was kept",
            )
        flat = data.select(*COLUMNS, "initial", "age", "episode", "command", strict=False).clone()
        flat["episode"] += self.episodes if first_episode is None else first_episode
        self.episodes = max(self.episodes, int(flat["episode"].max()) + 1)
        flat["task"] = (index if index.ndim == 2 else index.unsqueeze(1)).expand(data.shape)
        flat["exploratory"] = torch.full(data.shape, exploratory)
        stride = 1 if first_episode is None else len(data)
        flat["stride"] = torch.full(data.shape, stride)
        flat = flat[data["valid"]] if stride == 1 else flat.transpose(0, 1).reshape(-1)
        for block in torch.as_tensor(self.storage.extend(flat)).div(BLOCK, rounding_mode="floor").unique().tolist():
            for level in range(LEVELS):
                self._known.pop((level, block // FAN**level), None)
        self.num_steps += len(flat)
        self._all = None

    def transitions(self) -> TensorDict:
        """All transitions `[N]`; not to be written into. A ConfigError where there are none."""
        if not len(self):
            cause = "no real transitions, at which what adapts by imagining begins: shipped weights come without"
            raise ConfigError(cause, "give a run that has its data")
        if self._all is None:
            self._all = self.storage[:]  # views, of which TorchRL takes most of a millisecond to make one
        return self._all

    def rows(self, exploratory: bool) -> tuple[Tensor, Tensor]:
        """Row numbers by task `[tasks, most]`, the oldest first, and how many are valid `[tasks]`; all or exploratory ones.

        The table grows with what is added; it is made anew once rows are overwritten.
        """
        none = torch.zeros(0, dtype=torch.long)
        shown, counts, table, seen = self._rows.get(exploratory, (none, none, none.view(0, 0), 0))
        if seen == self.num_steps and len(counts) == len(self.tasks):
            return shown, counts
        data = self.transitions()
        kept = torch.arange(min(seen, len(data)), len(data))
        if seen < self.num_steps and self.num_steps > len(data):  # rows were overwritten
            oldest = int(self.storage.writer.state_dict()["_cursor"])
            table, counts, kept = none.view(0, 0), none, torch.arange(len(data)).roll(-oldest)
        kept = kept[data["exploratory"][kept]] if exploratory else kept
        tasks = data["task"][kept]
        order = torch.argsort(tasks, stable=True)
        fresh = torch.bincount(tasks, minlength=len(self.tasks))
        counts = torch.cat([counts, counts.new_zeros(len(self.tasks) - len(counts))])
        columns = torch.arange(len(order)) + torch.repeat_interleave(counts - fresh.cumsum(0) + fresh, fresh)
        counts = counts + fresh
        most = max(int(counts.max()), 1)
        if len(self.tasks) > len(table) or most > table.shape[1]:  # room for as many again
            table, held = counts.new_zeros(2 * len(self.tasks), 2 * most), table
            table[: len(held), : held.shape[1]] = held
        table[tasks[order], columns] = kept[order]
        shown = table[: len(self.tasks), :most]
        self._rows[exploratory] = shown, counts, table, self.num_steps
        return shown, counts

    def draw_tasks(self, count: int, generator: torch.Generator, exploratory: bool = True) -> Tensor:
        """Indices `[count]` of tasks that have (exploratory) data, without repetition while there are enough."""
        known = self.rows(exploratory)[1].nonzero().squeeze(-1)
        rounds = -(-count // len(known))
        return torch.cat([known[torch.randperm(len(known), generator=generator)] for _ in range(rounds)])[:count]

    def target_rows(self, tasks: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Row numbers `[M, count]` of transitions of the given tasks, any policy's, with replacement."""
        table, counts = self.rows(exploratory=False)
        column = (torch.rand(len(tasks), count, generator=generator) * counts[tasks].unsqueeze(1)).long()
        return table[tasks.unsqueeze(1), column]

    def draw_targets(self, tasks: Tensor, count: int, generator: torch.Generator) -> TensorDict:
        """Transitions `[M, count]` of the given tasks, any policy's, with replacement."""
        return self.transitions()[self.target_rows(tasks, count, generator)]

    def recent_rows(self, tasks: Tensor, count: int, recent: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Row numbers among the `recent` newest exploratory ones of each task, without replacement, and which there are.

        `[M, count]` both: a task with fewer leaves the rest of its row open.
        """
        table, counts = self.rows(exploratory=True)
        column = counts[tasks].unsqueeze(1) - 1 - torch.arange(max(recent, count))
        order = torch.rand(column.shape, generator=generator)
        order = order.masked_fill((column < 0) | (torch.arange(column.shape[1]) >= recent), 2.0)
        order, pick = order.topk(count, dim=1, largest=False)
        return table[tasks.unsqueeze(1), column.gather(1, pick).clamp_min(0)], order < 2.0

    def draw_context(self, tasks: Tensor, count: int, generator: torch.Generator) -> TensorDict:
        """Exploratory transitions `[M, K]`, without replacement, K = `count` or what the poorest task has."""
        table, counts = self.rows(exploratory=True)
        count = min(count, int(counts[tasks].min()))
        order = torch.rand(len(tasks), table.shape[1], generator=generator)
        order = order.masked_fill(torch.arange(table.shape[1]) >= counts[tasks].unsqueeze(1), 2.0)
        column = order.topk(count, dim=1, largest=False).indices
        return self.transitions()[table[tasks.unsqueeze(1), column]]

    def start_states(self, count: int, generator: torch.Generator, initial: float = 1.0) -> Tensor:
        """Real states `[count, S]`: a share `initial` of first steps of episodes, then of steps that did not end one (or any)."""
        data, first, picks = self.transitions(), round(initial * count), []
        if self._begun < self.num_steps:
            seen = self._begun if self.num_steps == len(data) else 0  # all anew once rows are overwritten
            self._starts = self._starts if seen else (Ring(), Ring())
            kinds = data["initial"][seen:], ~data["next", "terminated"][seen:].squeeze(-1)
            for ring, kept in zip(self._starts, kinds, strict=True):
                rows = seen + kept.nonzero().squeeze(-1)
                ring.append(TensorDict({"row": rows}, batch_size=[len(rows)]))
            self._begun = self.num_steps
        for ring, size in zip(self._starts, (first, count - first), strict=True):
            pick = torch.randint(len(ring) or len(data), (size,), generator=generator)
            picks.append(ring.columns["row"][pick] if len(ring) else pick)
        return data["observation"][torch.cat(picks)]

    def summary(self, name: Hashable, of: Callable[[TensorDict], Made], join: Callable[[Sequence[Made]], Made]) -> Made:
        """What `of` makes of all rows: `join` puts together what it makes of blocks of them, and only new ones are looked at."""

        def made(level: int, at: int) -> Made:  # of blocks that depend on where their rows are alone
            known, size = self._known.setdefault((level, at), {}), BLOCK * FAN**level
            if name not in known:
                parts = range(FAN * at, min(FAN * (at + 1), -(-FAN * len(self) // size)))
                rows = slice(at * size, (at + 1) * size)
                known[name] = join([made(level - 1, part) for part in parts]) if level else of(self.transitions()[rows])
            return known[name]

        return made(next(level for level in range(LEVELS) if BLOCK * FAN**level >= len(self)), 0)

    def keep(self, name: Hashable, make: Callable[[], Made]) -> Made:
        """What was made of these rows once by who reads on in them as they grow; it is made anew after a state was restored."""
        if name not in self._kept:
            self._kept[name] = make()
        return self._kept[name]

    def state_dict(self) -> dict[str, object]:
        """Plain tensors and numbers; of the rows views, in blocks that are the same ones as long as no row in them changes."""
        segments: list[Segment] = []
        if len(self):
            segments = self.summary(Segment, _segment, lambda parts: [each for part in parts for each in part])
        # the writer's cursor says which rows are the oldest once the buffer is full
        return {
            "segments": segments,
            "writer": dict(self.storage.writer.state_dict()),
            **{name: getattr(self, name) for name in ("tasks", "num_steps", "episodes")},
        }

    def load_state_dict(self, state: dict) -> None:
        """Restore, in place of all that is held."""
        self.storage.empty()
        for known in (self._known, self._kept, self._rows):
            known.clear()
        self._all, self._begun = None, 0
        for rows in blocks_of(state):
            self.storage.extend(TensorDict(dict(rows), batch_size=[len(rows["task"])]).unflatten_keys("."))
        if len(self):
            self.storage.writer.load_state_dict(state["writer"])
        self.tasks, self.num_steps, self.episodes = state["tasks"], state["num_steps"], state["episodes"]


def blocks_of(state: Mapping[str, Any]) -> list[Mapping[str, Tensor]]:
    """Columns of the blocks of rows of a buffer's state; one that was saved before there were blocks has one of all rows."""
    return state["segments"] if "segments" in state else [state["data"]] if state["data"] else []


def _with_episodes(data: TensorDictBase) -> TensorDictBase:
    """Recordings `[B, T]` with what only `collect` writes down: which episode a step is of, and where in it."""
    if "episode" in data:
        return data
    missing = [key for key in (*COLUMNS, ("next", "done")) if key not in data.keys(include_nested=True)]
    if missing:
        raise EnvError(f"the recorded data have no {missing}", "give a TensorDict [tasks, steps] with these keys")
    done, steps = data["next", "done"].reshape(data.shape), torch.arange(data.shape[1])
    initial = torch.cat([torch.ones_like(done[:, :1]), done[:, :-1]], 1)
    age = steps - torch.where(initial, steps, 0).cummax(1).values
    episode = (initial.cumsum(1) - 1) * len(data) + torch.arange(len(data)).unsqueeze(1)
    told = {"initial": initial, "age": age, "episode": episode, "valid": torch.ones_like(done)}
    return data.clone(False).update(told)


def _segment(rows: TensorDictBase) -> list[Segment]:
    return [Segment(rows.flatten_keys(".").items())]
