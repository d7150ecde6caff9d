"""Transitions between decisions: what a policy learns from whose choices are kept for several real steps."""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import Tensor

from mbrl_lightning.data.buffer import TaskBuffer
from mbrl_lightning.data.ring import Ring
from mbrl_lightning.data.windows import PLACES, around


class Decisions:
    """The decisions of all real steps read so far: rewards are summed until the next one, or the end of the episode.

    One that the time limit cuts short says nothing about what follows and is left out.

    Args:
        real: transitions with `command` where feedback makes actions of them; an episode's steps lie `stride` rows apart.
        hold: steps of a decision.
    """

    def __init__(self, real: TaskBuffer, hold: int) -> None:
        self.real, self.hold = real, hold
        self.seen = max(real.num_steps - len(real), 0)  # steps read, as numbers that never come back
        self.open = torch.zeros(0, dtype=torch.long)  # begun, not yet over
        self.rows = Ring()
        self.read()

    def read(self) -> None:
        """Read on to the end of the real data."""
        data, total, reach = self.real.transitions(), self.real.num_steps, torch.arange(self.hold)
        fresh = torch.arange(self.seen, total)
        begun = torch.cat([self.open, fresh[data["age"][fresh % len(data)] % self.hold == 0]])
        start = begun % len(data)
        there = begun.unsqueeze(1) + data["stride"][start].unsqueeze(1) * reach < total
        at, own = around([data[name] for name in PLACES], start, reach)
        own &= there
        ended = data["next", "terminated"][at].squeeze(-1) & own
        over = own.all(1) | ended.any(1)
        self.open, self.seen = begun[~over & (own == there).all(1)], total
        at, own, ended, start = at[over], own[over], ended[over], start[over]
        last = at.gather(1, own.sum(1, keepdim=True) - 1).squeeze(1)
        reward = data["next", "reward"][at].squeeze(-1).float() * own
        new = {
            "observation": data["observation"][start],
            "command": data.get("command", data["action"])[start],
            "following": data["next", "observation"][last],
            "reward": reward.sum(1, keepdim=True),
            "terminated": ended.any(1, keepdim=True).float(),
            "task": data["task"][start],
        }
        self.rows.append(TensorDict(new, batch_size=[len(start)]))

    def draw(self, count: int, latents: Tensor, generator: torch.Generator) -> TensorDict:
        """Decisions `[count]`, uniform, with replacement, and the `latent` of each one's task.

        Args:
            count: how many.
            latents: of every task in the buffer, `[tasks, Z]`.
            generator: draws them.
        """
        drawn = self.rows.draw(count, generator)
        return drawn.set("latent", latents[drawn.pop("task")])
