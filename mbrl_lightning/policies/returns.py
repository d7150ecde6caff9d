"""What the rest of an episode is expected to bring, for all policy gradients alike (PPO, TRPO, MB-MPO).

Policies are judged by the return of an episode of finite length, so the horizon is an end as much as a termination is: nothing
is earned after either. Values are told how old the episode is and can foresee it; a value that cannot would call the same
state good early and bad late, and one that counted on more than the horizon would drive a policy of short episodes by what
they never bring (Pardo et al. 2018). Where the data end in mid-episode, as rows do, the value of the last state stands for
the rest.
"""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.objectives.value.functional import generalized_advantage_estimate


def gae(reward: Tensor, done: Tensor, value: Tensor, last: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantages and value targets, `[..., T, 1]` both.

    Args:
        reward: `[..., T, 1]`.
        done: ends of episodes, whatever ended them, `[..., T, 1]`.
        value: of the states, `[..., T, 1]`.
        last: value of the states after the last step, `[..., 1]`; nothing if that step was an end.
        gamma: discount.
        lam: lambda.
    """
    after = torch.cat([value[..., 1:, :], last.unsqueeze(-2)], -2)
    return generalized_advantage_estimate(gamma, lam, value, after, reward, done, done)


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
def advantages(inputs: Tensor, following: TensorDictBase, gamma: float, lam: float, age: Tensor) -> Tensor:
    """Generalised advantages of M tasks, standardised task by task.

    Episodes are of finite length, and the baseline is told the time: nothing is expected after the last step of an episode
    or of the batch.

    Args:
        inputs: what the policy saw, `[M, B, T, F]`.
        following: batch `[M, B, T]` with `reward` and `done`, `[..., 1]`.
        gamma: discount.
        lam: lambda; 1 is the return minus the baseline.
        age: steps since the episode began, `[M, B, T]`.

    Returns:
        `[M, B, T]`.
    """
    done, reward = following["done"].clone(), following["reward"].double()
    done[..., -1, :] = True
    nothing = torch.zeros_like(reward)
    totals, _ = gae(reward, done, nothing, nothing[..., 0, :], gamma, 1.0)
    features = baseline_features(inputs, age)
    tasks = len(inputs)
    weights = fit_ridge(features.reshape(tasks, -1, features.shape[-1]), totals.reshape(tasks, -1))
    value = torch.einsum("mbtd,md->mbt", features, weights).unsqueeze(-1)
    found = totals - value  # what the estimate telescopes to with lambda = 1
    if lam < 1:
        found, _ = gae(reward, done, value, nothing[..., 0, :], gamma, lam)
    flat = found.reshape(tasks, -1)
    spread = flat.std(1, correction=0, keepdim=True).clamp_min(1e-8)
    return ((flat - flat.mean(1, keepdim=True)) / spread).view(done.shape[:-1]).to(inputs.dtype)
