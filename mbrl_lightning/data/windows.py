"""Histories and segments of real transitions, drawn by index in one gather (M3PO section 4; L2A)."""

from __future__ import annotations

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from mbrl_lightning.beliefs.history import HistoryInputs
from mbrl_lightning.data.buffer import TaskBuffer


class Histories:
    """The windows of all transitions of a buffer. A pair is a function of its own transition, so a window is L row numbers.

    Args:
        real: transitions; an episode's steps lie `stride` rows apart.
        inputs: what a pair looks like.
        length: L.
        device: where the networks are.
    """

    @torch.no_grad()
    def __init__(
        self, real: TaskBuffer, inputs: HistoryInputs, length: int, device: torch.device | str = "cpu"
    ) -> None:
        data = real.transitions().to(device)
        observation, following = data["observation"], data["next", "observation"]
        self.length, self.capacity = length, len(data)
        self.pairs = inputs.pair(observation, data["action"], following)
        self.current, self.following = inputs.current(observation), inputs.current(following)
        self.reward, self.terminated = data["next", "reward"], data["next", "terminated"].float()
        self.observation, self.action, self.next_observation = observation, data["action"], following
        self.episode, self.age, self.stride = data["episode"], data["age"], data["stride"]
        self.back = torch.arange(length, -1, -1, device=device)

    def __len__(self) -> int:
        return self.capacity

    def window(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The pairs up to and including those of `rows` `[N]`: `[N, L + 1, X]`, and which are real `[N, L + 1]`.

        The first L are the history of the transition's observation, the last L that of its next observation. None is of
        another episode; what would be is zero.
        """
        index = (rows.unsqueeze(1) - self.stride[rows].unsqueeze(1) * self.back) % self.capacity
        # a row number from before the buffer's start, or since overwritten, belongs to another episode or another moment
        mask = self.episode[index] == self.episode[rows].unsqueeze(1)
        mask &= self.age[index] == self.age[rows].unsqueeze(1) - self.back
        return self.pairs[index] * mask.unsqueeze(-1), mask

    def columns(self, rows: Tensor) -> TensorDict:
        """What `transition` makes a SAC batch of, batch `[N]`."""
        pairs, mask = self.window(rows)
        return columns(
            pairs,
            mask,
            self.current[rows],
            self.following[rows],
            self.action[rows],
            self.reward[rows],
            self.terminated[rows],
        )

    def before(self, rows: Tensor) -> TensorDict:
        """Batch `[N]`: the history `inputs` before each transition's action, and its raw `observation`."""
        pairs, mask = self.window(rows)
        inputs = {"pairs": pairs[:, :-1], "mask": mask[:, :-1], "current": self.current[rows]}
        return TensorDict({"inputs": inputs, "observation": self.observation[rows]}, batch_size=[len(rows)])

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Row numbers `[count]`, uniform, with replacement."""
        return torch.randint(self.capacity, (count,), generator=generator).to(self.back.device)


class Segments:
    """Stretches of real episodes, cut in two: M steps before a row, and K steps from it on (L2A; Nagabandi et al. 2019).

    A step of another episode, or of none, is masked: there may be fewer than M before a row, and fewer than K after it.

    Args:
        data: transitions `[N]` with `episode`, `age` and `stride`; an episode's steps lie `stride` rows apart.
        inputs: what a model takes of each transition, `[N, X]`.
        target: what it is to give, `[N, Y]`.
        past: M.
        future: K, at least 1.
    """

    def __init__(self, data: TensorDictBase, inputs: Tensor, target: Tensor, past: int, future: int) -> None:
        self.inputs, self.target, self.past, self.future = inputs, target, past, future
        device = inputs.device
        self.episode, self.age, self.stride = (data[key].to(device) for key in ("episode", "age", "stride"))
        self.reach = torch.arange(-past, future, device=device)

    def __len__(self) -> int:
        return len(self.inputs)

    def at(self, rows: Tensor) -> TensorDict:
        """The segments cut before `rows` `[B]`: batch `[B]`, each of `past` and `future` with `inputs`, `target`, `mask`."""
        index = (rows.unsqueeze(1) + self.stride[rows].unsqueeze(1) * self.reach) % len(self)
        # a row number beyond the buffer's ends, or since overwritten, belongs to another episode or another moment
        mask = self.episode[index] == self.episode[rows].unsqueeze(1)
        mask &= self.age[index] == self.age[rows].unsqueeze(1) + self.reach
        columns = {"inputs": self.inputs[index], "target": self.target[index], "mask": mask}
        parts = {name: value.split([self.past, self.future], 1) for name, value in columns.items()}
        halves = [
            TensorDict({name: part[i] for name, part in parts.items()}, batch_size=mask.shape[:1]) for i in (0, 1)
        ]
        return TensorDict({"past": halves[0], "future": halves[1]}, batch_size=mask.shape[:1])

    def draw(self, count: int, generator: torch.Generator) -> TensorDict:
        """Batch `[count]` of segments cut before random rows, uniform, with replacement."""
        return self.at(torch.randint(len(self), (count,), generator=generator).to(self.reach.device))


def columns(
    pairs: Tensor,
    mask: Tensor,
    current: Tensor,
    following: Tensor,
    action: Tensor,
    reward: Tensor,
    terminated: Tensor,
) -> TensorDict:
    """Transitions between histories at rest, batch `[N]`: each pair is held once.

    Args:
        pairs: `[N, L + 1, X]`.
        mask: `[N, L + 1]`.
        current: network inputs of the observation `[N, F]`.
        following: the same of the next observation.
        action: `[N, A]`.
        reward: `[N, 1]`.
        terminated: `[N, 1]`, 0 or 1.
    """
    names = ("pairs", "mask", "current", "following", "action", "reward", "terminated")
    values = (pairs, mask, current, following, action, reward, terminated)
    return TensorDict(dict(zip(names, values, strict=True)), batch_size=[len(pairs)])


def transition(stored: TensorDictBase) -> TensorDict:
    """Batch `[N]` for SAC of `columns`: `inputs`, `action`, `next.inputs`, `next.reward`, `next.terminated`; no copies."""
    pairs, mask, rows = stored["pairs"], stored["mask"], stored.batch_size
    before = {"pairs": pairs[:, :-1], "mask": mask[:, :-1], "current": stored["current"]}
    after = {"pairs": pairs[:, 1:], "mask": mask[:, 1:], "current": stored["following"]}
    outcome = {"inputs": after, "reward": stored["reward"], "terminated": stored["terminated"]}
    return TensorDict({"inputs": before, "action": stored["action"], "next": outcome}, batch_size=rows)
