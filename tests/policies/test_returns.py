"""Advantages with a linear baseline: the regression, and the estimate in closed form."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from mbrl_lightning.policies.returns import advantages, baseline_features, fit_baseline


def rows(reward: torch.Tensor, done: torch.Tensor | None = None, age: torch.Tensor | None = None) -> TensorDict:
    """Rows that end with their episodes, if nothing else is said."""
    if done is None:
        done = torch.zeros_like(reward, dtype=torch.bool)
        done[..., -1] = True
    age = torch.arange(reward.shape[-1]).expand(reward.shape) if age is None else age
    after = {"reward": reward.unsqueeze(-1), "done": done.unsqueeze(-1)}
    return TensorDict({"age": age, "next": after}, batch_size=reward.shape)


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
    nothing = torch.zeros_like(features)
    torch.testing.assert_close(fit_baseline(features, nothing, returns), weights, rtol=0, atol=1e-5)
    same = torch.ones(1, 5, 4, dtype=torch.float64)
    assert torch.isfinite(fit_baseline(same, torch.zeros_like(same), same[..., 0])).all()


def test_returns_that_are_not_finite_have_no_baseline():
    features = torch.ones(1, 5, 2).double()
    assert (fit_baseline(features, 0 * features, torch.full((1, 5), torch.inf).double()) == 0).all()


@pytest.mark.parametrize("lam", [1.0, 0.95, 0.0])
def test_the_estimate_equals_the_sum_over_the_rest_of_the_episode(lam):
    torch.manual_seed(0)
    inputs, reward = torch.randn(2, 3, 12, 2), torch.randn(2, 3, 12)
    done = torch.zeros(2, 3, 12, dtype=torch.bool)
    done[:, :, 5] = done[:, :2, -1] = True  # the last row is cut
    age, last = torch.tensor([0, 1, 2, 3, 4, 5] * 2).expand(2, 3, -1), torch.randn(2, 3, 2)
    found = advantages(inputs, last, rows(reward, done, age), 0.9, lam)
    features, cut = baseline_features(inputs, age), baseline_features(last, age[..., -1] + 1)
    earned, later = torch.zeros(2, 3, 13, dtype=torch.float64), torch.zeros(2, 3, 13, features.shape[-1]).double()
    later[:, :, 12] = cut
    for t in reversed(range(12)):
        goes_on = 0.9 * ~done[:, :, t]
        earned[:, :, t] = reward[:, :, t] + goes_on * earned[:, :, t + 1]
        later[:, :, t] = goes_on.unsqueeze(-1) * later[:, :, t + 1]
    weights = fit_baseline(features.flatten(1, 2), later[:, :, :12].flatten(1, 2), earned[:, :, :12].flatten(1))
    value = torch.einsum("mbtd,md->mbt", torch.cat([features, cut.unsqueeze(2)], 2), weights)
    expected = torch.zeros_like(value)
    for t in reversed(range(12)):
        goes_on = 0.9 * ~done[:, :, t]
        delta = reward[:, :, t] + goes_on * value[:, :, t + 1] - value[:, :, t]
        expected[:, :, t] = delta + lam * goes_on * expected[:, :, t + 1]
    torch.testing.assert_close(found, standardised(expected[:, :, :12]).float(), rtol=1e-4, atol=1e-5)


def test_a_cut_episode_is_worth_what_the_baseline_expects_of_its_rest():
    """Reward 1 a step, V(age) free: V(2) = 2 and V(3) = 1 as one row saw, V(1) = (3 + 1 + 3) / 3, V(0) = (4 + 2 + 4) / 3."""
    age = torch.tensor([[0, 1, 2, 3], [0, 1, 0, 1]])
    done = torch.tensor([[0, 0, 0, 1], [0, 1, 0, 0]], dtype=torch.bool)  # an end at the horizon; a fall, then a cut
    seen = torch.nn.functional.one_hot(torch.cat([age, age[:, -1:] + 1], 1), 5).float().unsqueeze(0)
    data = rows(torch.ones(1, 2, 4), done.unsqueeze(0), age.unsqueeze(0))
    found = advantages(seen[:, :, :4], seen[:, :, 4], data, 1.0, 1.0)[0]
    expected = torch.tensor([[2.0, 2.0, 0.0, 0.0], [-4.0, -4.0, 2.0, 2.0]]) / 3
    torch.testing.assert_close(found, expected / expected.std(correction=0), rtol=0, atol=1e-3)


def test_late_steps_of_bodies_that_fall_are_no_worse_than_early_ones():
    """Falls at random, whatever was done: no part of the rows has an advantage. Cut to nothing, the last quarter had -.62 sd."""
    draw = torch.Generator().manual_seed(0)
    done = torch.rand(1, 200, 100, generator=draw) < 0.03
    begun = torch.zeros(1, 200, 100, dtype=torch.long)
    begun[..., 1:] = torch.where(done[..., :-1], torch.arange(1, 100), 0)
    data = rows(torch.ones(1, 200, 100), done, torch.arange(100) - begun.cummax(-1).values)
    seen = torch.zeros(1, 200, 100, 1)
    found = advantages(seen, seen[..., -1, :], data, 0.99, 1.0)
    assert all(abs(float(part.mean())) < 0.1 for part in found.split(25, -1))


def test_tasks_do_not_see_each_other():
    torch.manual_seed(0)
    inputs, reward = torch.randn(3, 2, 10, 2), torch.randn(3, 2, 10)
    last, data = torch.randn(3, 2, 2), rows(reward)
    together = advantages(inputs, last, data, 0.99, 1.0)
    alone = advantages(inputs[1:2], last[1:2], data[1:2], 0.99, 1.0)
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-6)
    torch.testing.assert_close(together.flatten(1).std(1, correction=0), torch.ones(3))
