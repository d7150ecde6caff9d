"""Advantages with a linear baseline: ages, the ridge, and the estimate in closed form."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from mbrl_lightning.policies.returns import advantages, baseline_features, fit_ridge


def following(reward: torch.Tensor, done: torch.Tensor | None = None) -> TensorDict:
    done = torch.zeros_like(reward, dtype=torch.bool) if done is None else done
    return TensorDict({"reward": reward.unsqueeze(-1), "done": done.unsqueeze(-1)}, batch_size=reward.shape)


def standardised(value: torch.Tensor) -> torch.Tensor:
    flat = value.flatten(1)
    return ((flat - flat.mean(1, keepdim=True)) / flat.std(1, correction=0, keepdim=True)).view_as(value)


def test_features_are_the_papers():
    found = baseline_features(torch.tensor([[2.0, -50.0]]), torch.tensor([50]))
    assert found.dtype == torch.float64
    assert found.tolist() == [[2.0, -10.0, 4.0, 100.0, 0.5, 0.25, 0.125, 1.0]]


def test_the_ridge_finds_a_linear_function_of_every_task():
    torch.manual_seed(0)
    features, weights = torch.randn(3, 50, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    returns = (features @ weights.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(fit_ridge(features, returns), weights, rtol=0, atol=1e-5)
    assert torch.isfinite(
        fit_ridge(torch.ones(1, 5, 4, dtype=torch.float64), torch.ones(1, 5, dtype=torch.float64))
    ).all()


def test_returns_that_are_not_finite_have_no_baseline():
    assert (fit_ridge(torch.ones(1, 5, 2).double(), torch.full((1, 5), torch.inf).double()) == 0).all()


def test_a_reward_that_depends_on_time_alone_has_no_advantages():
    reward = torch.ones(1, 4, 30)  # the undiscounted return is 30 - t, which the baseline knows
    noise = 1e-3 * torch.randn(1, 4, 30, generator=torch.Generator().manual_seed(0))
    seen = torch.zeros(1, 4, 30, 2)
    age = torch.arange(30).expand(1, 4, -1)
    told, untold = (advantages(seen, following(r), 1.0, 1.0, age) for r in (reward + noise, reward))
    assert torch.isfinite(untold).all()
    # what is left is the noise: its own sum over the rest of the episode, less what a cubic in t explains
    rest = noise.flip(-1).cumsum(-1).flip(-1)
    assert float((told.flatten() * standardised(rest).flatten()).mean()) > 0.9


@pytest.mark.parametrize("lam", [1.0, 0.95, 0.0])
def test_the_estimate_equals_the_sum_over_the_rest_of_the_episode(lam):
    torch.manual_seed(0)
    inputs, reward = torch.randn(2, 3, 12, 2), torch.randn(2, 3, 12)
    done = torch.zeros(2, 3, 12, dtype=torch.bool)
    done[:, :, 5] = done[:, :, -1] = True
    age = torch.tensor([0, 1, 2, 3, 4, 5] * 2).expand(2, 3, -1)
    found = advantages(inputs, following(reward, done), 0.9, lam, age)
    features, totals = baseline_features(inputs, age), torch.zeros(2, 3, 12, dtype=torch.float64)
    for t in reversed(range(12)):
        after = torch.zeros(2, 3, dtype=torch.float64) if t in (5, 11) else totals[:, :, t + 1]
        totals[:, :, t] = reward[:, :, t] + 0.9 * after
    weights = fit_ridge(features.flatten(1, 2), totals.flatten(1))
    value = torch.einsum("mbtd,md->mbt", features, weights)
    expected = torch.zeros_like(value)
    for t in reversed(range(12)):
        ends = t in (5, 11)
        delta = reward[:, :, t] + (0 if ends else 0.9 * value[:, :, t + 1]) - value[:, :, t]
        expected[:, :, t] = delta + (0 if ends else 0.9 * lam * expected[:, :, t + 1])
    torch.testing.assert_close(found, standardised(expected).float(), rtol=1e-4, atol=1e-5)


def test_tasks_do_not_see_each_other():
    torch.manual_seed(0)
    inputs, reward = torch.randn(3, 2, 10, 2), torch.randn(3, 2, 10)
    age = torch.arange(10).expand(3, 2, -1)
    together = advantages(inputs, following(reward), 0.99, 1.0, age)
    alone = advantages(inputs[1:2], following(reward[1:2]), 0.99, 1.0, age[1:2])
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-6)
    torch.testing.assert_close(together.flatten(1).std(1, correction=0), torch.ones(3))
