"""Rows in one allocation, to which more can be added without a copy of those that are there."""

from __future__ import annotations

import sys

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor


class Ring:
    """The last `capacity` rows appended, the oldest first; room for them is made twofold, and then the newest replace the oldest.

    Attributes:
        total: rows ever appended; row n of these is in place n modulo the capacity.
        columns: by name `[room, ...]`, of which the first `len` places are in use.
    """

    def __init__(self, capacity: int = sys.maxsize, total: int = 0) -> None:
        self.capacity, self.total, self.columns = capacity, total, dict[str, Tensor]()

    def __len__(self) -> int:
        return min(self.total, self.capacity)

    def append(self, rows: TensorDictBase) -> None:
        """Add rows, batch `[N]`, with the same columns each time."""
        held, end = len(self), self.total + len(rows)
        if not self.columns or len(next(iter(self.columns.values()))) < min(end, self.capacity):
            room, old = min(max(end, 2 * held), self.capacity), self.columns
            self.columns = {name: new.new_empty(room, *new.shape[1:]) for name, new in rows.items()}
            for name, column in old.items():
                self.columns[name][:held] = column[:held]
        cuts = list(range(self.capacity - self.total % self.capacity, len(rows), self.capacity))
        for name, new in rows.items():
            now = self.total
            for part in new.tensor_split(cuts):
                first, now = now % self.capacity, now + len(part)
                self.columns[name][first : first + len(part)] = part
        self.total = end

    def __getitem__(self, index: Tensor) -> TensorDict:
        """The rows with the numbers `index` `[N]`, batch `[N]`; the oldest has 0."""
        place = (index + self.total) % self.capacity if self.total > self.capacity else index
        columns = {name: column.index_select(0, place.to(column.device)) for name, column in self.columns.items()}
        return TensorDict(columns, batch_size=index.shape)

    def draw(self, count: int, generator: torch.Generator) -> TensorDict:
        """Batch `[count]`, uniform, with replacement."""
        return self[torch.randint(len(self), (count,), generator=generator)]


def drawn_share(size: int, share: float, generator: torch.Generator) -> int:
    """How many of `size` rows are of the kind that a row is with probability `share`."""
    below = torch.rand(size, generator=generator) < share
    return size if share >= 1 else int(below.sum())
