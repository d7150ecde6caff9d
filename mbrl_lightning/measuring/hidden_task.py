"""What is measured where the task is hidden and may switch while the agent runs: pure functions of real episodes."""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import Tensor

SINCE = ((0, 10), (10, 25), (25, 100_000))
"""Steps since a switch, by which rewards are grouped."""


def since_switch(hidden: Tensor) -> Tensor:
    """Steps since the last switch `[B, T]` of tasks `[B, T, P]`; -1 before the first one of an episode."""
    switched = torch.zeros(hidden.shape[:2], dtype=torch.bool)
    switched[:, 1:] = (hidden[:, 1:] != hidden[:, :-1]).any(-1)
    steps = torch.arange(hidden.shape[1]).expand_as(switched)
    last = torch.where(switched, steps, -1).cummax(1).values
    return torch.where(last >= 0, steps - last, -1)


def rewards_by_task(episodes: TensorDict, parameter: str) -> dict[str, float]:
    """Mean reward per step of evaluation episodes `[B, T]` with `hidden` `[B, T, P]`, by task and by time since a switch.

    `reward/before_switch`, `reward/since_<a>_<b>` and, of the first `parameter` where it takes at most four values,
    `reward/<parameter>=<value>`; without those that never happened.
    """
    reward, valid, hidden = episodes["next", "reward"].squeeze(-1), episodes["valid"], episodes["hidden"]
    values, since = hidden[..., 0].unique(), since_switch(hidden)
    groups = {"before_switch": since < 0}
    groups |= {f"since_{low}_{high if high < 1000 else 'on'}": (since >= low) & (since < high) for low, high in SINCE}
    if len(values) <= 4:
        groups |= {f"{parameter}={value:g}": hidden[..., 0] == value for value in values.tolist()}
    kept = {name: rows & valid for name, rows in groups.items()}
    return {f"reward/{name}": float(reward[rows].mean()) for name, rows in kept.items() if bool(rows.any())}


def after_switches(episodes: TensorDict, steps: int) -> tuple[Tensor, Tensor]:
    """Rewards `[W, H]` of H = `steps` after each of W switches in evaluation episodes `[B, T]`, and the tasks `[W, P]` then.

    NaN where the next switch or the episode's end came first.
    """
    since, valid = since_switch(episodes["hidden"]), episodes["valid"]
    began = (since == 0) & valid
    number = began.flatten().cumsum(0).view(since.shape) - 1
    rows = (since >= 0) & (since < steps) & valid
    rewards = torch.full((int(began.sum()), steps), torch.nan)
    rewards[number[rows], since[rows]] = episodes["next", "reward"].squeeze(-1)[rows].float()
    return rewards, episodes["hidden"][began]
