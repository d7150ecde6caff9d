"""What is measured where the task is hidden and may switch while the agent runs: pure functions of real episodes."""

from __future__ import annotations

import math

import torch
from tensordict import TensorDict
from torch import Tensor

from mbrl_lightning.data.buffer import TaskBuffer
from mbrl_lightning.data.windows import Histories
from mbrl_lightning.models.measures import model_nll, share_of_variance
from mbrl_lightning.models.recurrent import HistoryDynamics

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
    """Mean reward per step, by hidden task and by time since the last switch.

    Args:
        episodes: evaluation episodes `[B, T]` with `hidden` `[B, T, P]`.
        parameter: name of the first parameter; grouped by where it takes at most four values.

    Returns:
        `reward/<parameter>=<value>`, `reward/before_switch`, `reward/since_<a>_<b>`; without those that never happened.
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
    """Rewards after every switch, step by step.

    Args:
        episodes: evaluation episodes `[B, T]` with `hidden` `[B, T, P]`.
        steps: how many after each switch, H.

    Returns:
        `[W, H]` for W switches, NaN where the next one or the episode's end came first, and the tasks `[W, P]` switched to.
    """
    since, valid = since_switch(episodes["hidden"]), episodes["valid"]
    began = (since == 0) & valid
    number = began.flatten().cumsum(0).view(since.shape) - 1
    rows = (since >= 0) & (since < steps) & valid
    rewards = torch.full((int(began.sum()), steps), torch.nan)
    rewards[number[rows], since[rows]] = episodes["next", "reward"].squeeze(-1)[rows].float()
    return rewards, episodes["hidden"][began]


@torch.no_grad()
def history_errors(dynamics: HistoryDynamics, episodes: TensorDict, length: int, generator: torch.Generator) -> dict:
    """One-step errors of a history-conditioned model on real episodes, with their own histories and with others'.

    Args:
        dynamics: the model.
        episodes: `[B, T]`, with `hidden` where the family switches.
        length: L.
        generator: draws the rows looked at (at most 4,000) and whose history they get.

    Returns:
        Numbers: `nmse` and `null_nmse` (see `share_of_variance`),
        `wrong_nmse` with another row's history, `reward_nmse` (the last output, the reward where it is learned), `nll` (of
        standardised targets; see `model_nll`) and, for a hidden direction, `slope` (see `reward_slope`).
    """
    spec, device = dynamics.spec, dynamics.device
    real = TaskBuffer(1, episodes.numel())
    real.extend(episodes, torch.zeros(len(episodes), dtype=torch.long), exploratory=False)
    histories = Histories(real, dynamics.inputs, length, device)
    rows = torch.randperm(len(histories), generator=generator)[:4000].to(device)
    batch = histories.before(rows).set("action", histories.action[rows])
    observation, following = histories.observation[rows], histories.next_observation[rows]
    change = spec.change(observation, following)
    variance = change.var(0, correction=0)

    def error(inputs: TensorDict) -> Tensor:
        predicted = dynamics.predict(observation, inputs, batch["action"]).mean(0)
        return (spec.change(observation, predicted) - change).square()

    right, wrong = batch["inputs"], batch["inputs"].clone(False)
    for name in ("pairs", "mask"):
        wrong[name] = right[name].roll(len(rows) // 2, 0)
    errors = error(right)
    nll, _ = dynamics.nll(batch.set("target", dynamics.targets(observation, following)))
    log_prob = -(nll + 0.5 * math.log(2 * math.pi)).sum(-1)
    out = {
        "nmse": float(share_of_variance(errors, variance).mean()),
        "wrong_nmse": float(share_of_variance(error(wrong), variance).mean()),
        "null_nmse": float(share_of_variance(change.square(), variance).mean()),
        "reward_nmse": float(share_of_variance(errors[:, -1:], variance[-1:]).mean()),
        "nll": model_nll(log_prob),
    }
    if "hidden" in episodes.keys():  # noqa: SIM118 - a TensorDict has no `in`
        hidden = episodes["hidden"][..., 0][episodes["valid"]].to(device)[rows]
        if set(hidden.unique().tolist()) == {-1.0, 1.0}:
            out["slope"] = float(reward_slope(dynamics, batch, hidden).min())
    return out


@torch.no_grad()
def reward_slope(dynamics: HistoryDynamics, batch: TensorDict, direction: Tensor) -> Tensor:
    """Correlation of what each head expects to gain by acting forwards with the hidden direction, `[E]`.

    The gain is the reward predicted for +1 in the first action entry less that for -1. A model may predict well by
    persistence and still have no slope, and imagination then teaches no direction.

    Args:
        dynamics: a model of a family whose reward is the last entry of the next observation.
        batch: batch `[N]` with `inputs`, `observation`, `action`.
        direction: hidden direction of each row `[N]`.
    """
    observation, action = batch["observation"], batch["action"].clone()
    rewards = []
    for sign in (1.0, -1.0):
        action[:, 0] = sign
        following = dynamics.predict(observation, batch["inputs"], action)
        rewards.append(dynamics.spec.reward(observation, action, following))
    slope = rewards[0] - rewards[1]
    both = torch.cat([direction.to(slope).unsqueeze(0), slope])
    return torch.corrcoef(both)[0, 1:]
