"""Gradient steps on (mu, log sigma): against a posterior known in closed form."""

from __future__ import annotations

import math

import pytest
import torch

from mbrl_lightning.beliefs.variational import from_prior, infer, prior, sigma_points

TASKS, NOISE = 3, 0.5


def conjugate(data: torch.Tensor):
    """Negative ELBO over n of y = z + noise for data `[M, n]`, its expectation in sigma points."""

    def losses(q):
        misses = (data.unsqueeze(0) - sigma_points(q)) / NOISE
        return 0.5 * misses.square().mean(0).mean(1) + from_prior(q) / data.shape[1]

    return losses


def begun(latent: int = 1):
    return prior(TASKS, latent, torch.device("cpu"))


ALL = torch.ones(TASKS, dtype=torch.bool)


def test_sigma_points_have_the_mean_and_the_covariance_of_q():
    q = torch.randn(TASKS, 2, 3, generator=torch.Generator().manual_seed(0))
    points, loc = sigma_points(q), q[:, 0]
    torch.testing.assert_close(points.mean(0), loc)
    away = points - loc
    covariance = torch.einsum("kma,kmb->mab", away, away) / len(points)
    torch.testing.assert_close(covariance, torch.diag_embed((2 * q[:, 1]).exp()))


@pytest.mark.parametrize("count", [1, 10, 100])
def test_it_finds_the_posterior_that_is_known(count):
    """Prior N(0, 1): precision 1 + n / noise^2, and a mean that the prior pulls to 0."""
    data = 0.8 + NOISE * torch.randn(TASKS, count, generator=torch.Generator().manual_seed(1))
    found = infer(begun(), conjugate(data), ALL, 800, 0.02)
    precision = 1 + count / NOISE**2
    torch.testing.assert_close(found["loc"][:, 0], data.sum(1) / NOISE**2 / precision, atol=5e-3, rtol=0)
    torch.testing.assert_close(found["scale"], torch.full((TASKS, 1), precision**-0.5), atol=5e-3, rtol=0)
    assert torch.equal(found["latent"], found["loc"])


def test_the_prior_is_where_one_begins_and_stays_without_data():
    start = begun(2)
    assert torch.equal(from_prior(start["q"]), torch.zeros(TASKS))
    assert torch.equal(infer(start, from_prior, ALL, 5, 0.1)["q"], start["q"])
    q = torch.tensor([[[0.3, -1.0], [0.2, -0.5]]])
    by_hand = sum(0.5 * (math.exp(2 * s) + m * m - 1 - 2 * s) for m, s in ((0.3, 0.2), (-1.0, -0.5)))
    assert float(from_prior(q)) == pytest.approx(by_hand, rel=1e-5)


def test_it_goes_on_where_it_stopped_and_moves_only_what_may_move():
    losses, start = conjugate(torch.ones(TASKS, 4)), begun()
    moving = torch.tensor([True, False, True])
    whole = infer(start, losses, moving, 7, 0.1)
    parts = infer(infer(start, losses, moving, 3, 0.1), losses, moving, 4, 0.1)
    for key in ("q", "moments", "steps", "loc", "scale"):
        torch.testing.assert_close(parts[key], whole[key])
    assert torch.equal(whole["q"][1], start["q"][1])
    assert whole["steps"].tolist() == [7, 0, 7]
    assert not start["q"].any(), "a belief that was handed in is left as it is"
