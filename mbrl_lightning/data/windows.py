"""Histories and segments of real transitions, drawn by index in one gather (M3PO section 4; L2A)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from mbrl_lightning.beliefs.history import HistoryInputs
from mbrl_lightning.data.buffer import COLUMNS, TaskBuffer
from mbrl_lightning.data.ring import Ring

PLACES = ("episode", "age", "stride")
STEP = ("current", "following", "action", "reward", "terminated")  # what `Histories` has of each transition


def around(places: Sequence[Tensor], rows: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
    """Row numbers of the steps `reach` `[R]` away from `rows` `[N]`, and which are of the same episode, `[N, R]` both.

    The `PLACES` of all transitions say where they are; an episode's steps lie `stride` rows apart, and `age` counts them.
    """
    episode, age, stride = places
    index = (rows.unsqueeze(1) + stride[rows].unsqueeze(1) * reach) % len(episode)
    # a row number beyond the buffer's ends, or since overwritten, belongs to another episode or another moment
    mask = episode[index] == episode[rows].unsqueeze(1)
    mask &= age[index] == age[rows].unsqueeze(1) + reach
    return index, mask


def in_blocks(steps: int, most: int = 16) -> Iterator[int]:
    """For how many of `steps` updates batches are put together at once, as one costs hardly less than many."""
    return (min(most, steps - first) for first in range(0, steps, most))


def steps_at(data: TensorDictBase, rows: Tensor) -> TensorDict:
    """What a model is fitted to of the transitions `rows` `[...]`: `observation`, `action`, `next.observation`, batch `[...]`."""
    names, flat = COLUMNS[:3], rows.flatten().to(data["action"].device)
    observation, action, following = (data[name].index_select(0, flat).view(*rows.shape, -1) for name in names)
    after = TensorDict({"observation": following}, batch_size=rows.shape)
    return TensorDict({"observation": observation, "action": action, "next": after}, batch_size=rows.shape)


class Histories:
    """Windows of L = `length` pairs of all transitions. A pair is a function of its own transition, so one is L row numbers.

    Args:
        real: the transitions; those that are added later are there after `read`.
        inputs: what a network sees of them; its statistics stay as they are.
        length: L.
        device: where the windows are wanted.
    """

    pairs: Tensor
    current: Tensor
    action: Tensor
    observation: Tensor
    next_observation: Tensor
    places: list[Tensor]

    def __init__(
        self, real: TaskBuffer, inputs: HistoryInputs, length: int, device: torch.device | str = "cpu"
    ) -> None:
        self.real, self.inputs, self.back = real, inputs, torch.arange(-length, 1, device=device)
        # rows are in the places that they have in the buffer
        self.rows = Ring(real.storage.storage.max_size, real.num_steps - len(real))
        self.read()

    @classmethod
    def of(cls, real: TaskBuffer, inputs: HistoryInputs, length: int, device: torch.device | str = "cpu") -> Histories:
        """Those that `real` keeps, read on to its end; `inputs` are the same each time."""
        seen = real.keep((cls, length, str(device)), lambda: cls(real, inputs, length, device))
        seen.read()
        return seen

    @torch.no_grad()
    def read(self) -> None:
        """Read on to the end of the real data."""
        data = self.real.transitions()
        fresh = torch.arange(self.rows.total, self.real.num_steps) % max(len(data), 1)
        names = ("observation", "action", ("next", "observation"), ("next", "reward"), ("next", "terminated"))
        observation, action, following, reward, terminated = (data[k][fresh].to(self.back.device) for k in names)
        new = {"observation": observation, "next_observation": following, "action": action, "reward": reward}
        new |= {"current": self.inputs.current(observation), "following": self.inputs.current(following)}
        new |= {"terminated": terminated.float(), "pairs": self.inputs.pair(observation, action, following)}
        new |= {name: data[name][fresh].to(self.back.device) for name in PLACES}
        self.rows.append(TensorDict(new, batch_size=[len(fresh)]))
        held = {name: column[: len(self)] for name, column in self.rows.columns.items()}
        self.places = [held.pop(name) for name in PLACES]
        vars(self).update(held)  # each column under its name

    def __len__(self) -> int:
        return len(self.rows)

    def window(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The pairs up to and including those of `rows` `[N]`: `[N, L + 1, X]`, and which are real `[N, L + 1]`.

        The first L are the history of the transition's observation, the last L that of its next observation. None is of
        another episode; what would be is zero.
        """
        index, mask = around(self.places, rows, self.back)
        pairs = self.pairs.index_select(0, index.flatten()).view(*index.shape, -1)
        return pairs.mul_(mask.unsqueeze(-1)), mask

    def columns(self, rows: Tensor) -> TensorDict:
        """What `transition` makes a SAC batch of, batch `[N]`."""
        pairs, mask = self.window(rows)
        own = {name: getattr(self, name).index_select(0, rows) for name in STEP}
        return TensorDict({"pairs": pairs, "mask": mask} | own, batch_size=[len(rows)])

    def before(self, rows: Tensor) -> TensorDict:
        """Batch `[N]`: the history `inputs` before each transition's action, and its raw `observation`."""
        pairs, mask = self.window(rows)
        inputs = {"pairs": pairs[:, :-1], "mask": mask[:, :-1], "current": self.current[rows]}
        return TensorDict({"inputs": inputs, "observation": self.observation[rows]}, batch_size=[len(rows)])

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Row numbers `[count]`, uniform, with replacement."""
        return torch.randint(len(self), (count,), generator=generator).to(self.back.device)


class Segments:
    """Stretches of real episodes, cut in two: M steps before a row, and K steps from it on (L2A; Nagabandi et al. 2019).

    A step of another episode, or of none, is masked: there may be fewer than M before a row, and fewer than K after it.

    Of the transitions `[N]` they have what `columns` makes of those drawn, `[...] -> [..., X]`, such as the `inputs` of a model
    and its `target`.
    """

    def __init__(
        self, data: TensorDictBase, columns: Callable[[TensorDictBase], Mapping[str, Tensor]], past: int, future: int
    ) -> None:
        self.data, self.columns, self.sizes = data, columns, [past, future]
        self.places = [data[name] for name in PLACES]
        self.reach = torch.arange(-past, future, device=self.places[0].device)

    def at(self, rows: Tensor) -> TensorDict:
        """The segments cut before `rows` `[B]`: batch `[B]`, each of `past` and `future` with the columns and `mask`."""
        index, mask = around(self.places, rows, self.reach)
        columns = dict(self.columns(steps_at(self.data, index)))
        past, future = TensorDict(columns | {"mask": mask}, batch_size=index.shape).split(self.sizes, 1)
        return TensorDict({"past": past, "future": future}, batch_size=rows.shape)

    def batches(self, steps: int, count: int, generator: torch.Generator) -> Iterator[TensorDict]:
        """`steps` batches `[count]` of segments cut before random rows, uniform, with replacement."""
        for some in in_blocks(steps):
            rows = torch.randint(len(self.places[0]), (some * count,), generator=generator)
            yield from self.at(rows.to(self.reach.device)).split(count)


def transition(stored: TensorDictBase) -> TensorDict:
    """Batch `[N]` for SAC: `inputs`, `action`, `next.inputs`, `next.reward`, `next.terminated`; no copies.

    Args:
        stored: batch `[N]` in which each pair is held once: `pairs` `[N, L + 1, X]` and `mask` `[N, L + 1]` (see
            `Histories.window`), `current` and `following` (network inputs of the observation and the next one) `[N, F]`,
            `action` `[N, A]`, `reward` and `terminated` (0 or 1) `[N, 1]`.
    """
    pairs, mask = stored["pairs"], stored["mask"]
    before = {"pairs": pairs[:, :-1], "mask": mask[:, :-1], "current": stored["current"]}
    after = {"pairs": pairs[:, 1:], "mask": mask[:, 1:], "current": stored["following"]}
    outcome = {"inputs": after, "reward": stored["reward"], "terminated": stored["terminated"]}
    return TensorDict({"inputs": before, "action": stored["action"], "next": outcome}, batch_size=stored.batch_size)
