"""Advantages by a linear baseline that is fitted to the very batch it serves (Duan et al. 2016; MB-MPO section A.3)."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.objectives.value.functional import generalized_advantage_estimate


def ages(done: Tensor) -> Tensor:
    """Steps since the episode began, `[..., T]`, for ends of episodes `done` `[..., T]`; the first step begins one."""
    now = torch.arange(done.shape[-1], device=done.device).expand(done.shape)
    after = torch.zeros_like(now)
    after[..., 1:] = torch.where(done[..., :-1], now[..., 1:], 0)
    return now - after.cummax(-1).values


def baseline_features(inputs: Tensor, age: Tensor) -> Tensor:
    """`[x, x^2, t, t^2, t^3, 1]` in float64, x clipped to +-10 and t in hundreds of steps: `[..., F], [...] -> [..., 2F + 4]`."""
    x, t = inputs.double().clamp(-10, 10), age.double().unsqueeze(-1) / 100
    return torch.cat([x, x.square(), t, t.square(), t**3, torch.ones_like(t)], -1)


def fit_ridge(features: Tensor, returns: Tensor, ridge: float = 1e-5, tries: int = 5) -> Tensor:
    """Weights `[M, D]` of M ridge regressions of returns `[M, N]` on features `[M, N, D]`.

    The penalty grows tenfold while a solution is not finite; what is left then is no baseline, weights of 0.
    """
    gram, moment = features.mT @ features, features.mT @ returns.unsqueeze(-1)
    identity = torch.eye(features.shape[-1], dtype=features.dtype, device=features.device)
    for attempt in range(tries):
        weights = torch.linalg.solve_ex(gram + ridge * 10**attempt * identity, moment)[0].squeeze(-1)
        if bool(torch.isfinite(weights).all()):
            return weights
    return torch.zeros_like(moment.squeeze(-1))


@torch.no_grad()
def advantages(
    inputs: Tensor, following: TensorDictBase, gamma: float, lam: float, age: Tensor | None = None
) -> Tensor:
    """Generalised advantages of M tasks, standardised task by task.

    Episodes are of finite length, and the baseline is told the time: nothing is expected after the last step of an episode
    or of the batch.

    Args:
        inputs: what the policy saw, `[M, B, T, F]`.
        following: batch `[M, B, T]` with `reward` and `done`, `[..., 1]`.
        gamma: discount.
        lam: lambda; 1 is the return minus the baseline.
        age: steps since the episode began, `[M, B, T]`; None counts from the first step and from ends of episodes.

    Returns:
        `[M, B, T]`.
    """
    done, reward = following["done"].clone(), following["reward"].double()
    age = ages(done.squeeze(-1)) if age is None else age
    done[..., -1, :] = True
    nothing = torch.zeros_like(reward)
    totals, _ = generalized_advantage_estimate(gamma, 1.0, nothing, nothing, reward, done, done)
    features = baseline_features(inputs, age)
    tasks = len(inputs)
    weights = fit_ridge(features.reshape(tasks, -1, features.shape[-1]), totals.reshape(tasks, -1))
    value = torch.einsum("mbtd,md->mbt", features, weights).unsqueeze(-1)
    found = totals - value  # what the estimate telescopes to with lambda = 1
    if lam < 1:
        after = torch.zeros_like(value)
        after[..., :-1, :] = value[..., 1:, :]
        found, _ = generalized_advantage_estimate(gamma, lam, value, after, reward, done, done)
    flat = found.reshape(tasks, -1)
    spread = flat.std(1, correction=0, keepdim=True).clamp_min(1e-8)
    return ((flat - flat.mean(1, keepdim=True)) / spread).view(done.shape[:-1]).to(inputs.dtype)
