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
    """Generalised advantages and value targets, `[..., T, 1]` both, like rewards, ends of episodes and values of the states.

    `last` is the value of the states after the last step, `[..., 1]`; nothing if that step was an end.
    """
    after = torch.cat([value[..., 1:, :], last.unsqueeze(-2)], -2)
    return generalized_advantage_estimate(gamma, lam, value, after, reward, done, done)


def baseline_features(inputs: Tensor, age: Tensor) -> Tensor:
    """`[x, x^2, t, t^2, t^3, 1]` in float64, x clipped to +-10 and t in hundreds of steps: `[..., F], [...] -> [..., 2F + 4]`."""
    x, t = inputs.double().clamp(-10, 10), age.double().unsqueeze(-1) / 100
    return torch.cat([x, x.square(), t, t.square(), t**3, torch.ones_like(t)], -1)


def fit_baseline(features: Tensor, later: Tensor, returns: Tensor) -> Tensor:
    """Weights `[M, D]` of M linear baselines, by ridge regression of `returns + later w` on features.

    The penalty grows tenfold while a solution is not finite; what is left then is no baseline, weights of 0.

    Features of the states are `[M, N, D]`, and so are those `later`, discounted, of the state in which each one's episode was cut
    (0 where it ended); `returns` are what was earned until then, `[M, N]`.
    """
    gram, moment = features.mT @ (features - later), features.mT @ returns.unsqueeze(-1)
    identity = torch.eye(features.shape[-1], dtype=features.dtype, device=features.device)
    for attempt in range(5):
        weights = torch.linalg.solve_ex(gram + 1e-5 * 10**attempt * identity, moment)[0].squeeze(-1)
        if bool(torch.isfinite(weights).all()):
            return weights
    return torch.zeros_like(moment.squeeze(-1))


@torch.no_grad()
def advantages(inputs: Tensor, last: Tensor, data: TensorDictBase, gamma: float, lam: float) -> Tensor:
    """Generalised advantages `[M, B, T]` over a linear baseline fitted to the very batch, standardised task by task.

    Source: Duan et al. 2016; MB-MPO section A.3. Without the rest of the episodes that are cut at the end of a row, late steps
    of bodies that fall (whose rows hold a new episode then) would seem bad whatever was done.

    `inputs` are what the policy saw, `[M, B, T, F]`, `last` what it would have seen after the last step, `[M, B, F]`; the data
    `[M, B, T]` have `age`, and under `next` `reward` and `done`, `[..., 1]`. With `lam` = 1 it is the return minus the baseline.
    """
    done, reward, age, tasks = data["next", "done"], data["next", "reward"].double(), data["age"], len(inputs)
    nothing = torch.zeros_like(reward)
    earned, _ = gae(reward, done, nothing, nothing[..., 0, :], gamma, 1.0)
    features, cut = baseline_features(inputs, age), baseline_features(last, age[..., -1] + 1)
    ended = done.flip(-2).cummax(-2).values.flip(-2)
    steps = torch.arange(done.shape[-2], 0, -1, device=done.device, dtype=reward.dtype).unsqueeze(-1)
    later = torch.where(ended, 0.0, gamma**steps) * cut.unsqueeze(-2)
    weights = fit_baseline(features.flatten(1, 2), later.flatten(1, 2), earned.reshape(tasks, -1))
    value, rest = (torch.einsum("m...d,md->m...", x, weights).unsqueeze(-1) for x in (features, cut))
    found = gae(reward, done, value, rest, gamma, lam)[0].reshape(tasks, -1)
    spread = found.std(1, correction=0, keepdim=True).clamp_min(1e-8)
    return ((found - found.mean(1, keepdim=True)) / spread).view_as(age).to(inputs.dtype)
