"""The formulas against torch.distributions and TorchRL."""

from __future__ import annotations

import torch
from torch.distributions import Independent, Normal, kl_divergence
from torchrl.modules import TanhNormal

from mbrl_lightning.networks import gaussians


def gaussian(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    loc = torch.randn(200, 5, generator=generator, dtype=torch.float64)
    return loc, torch.randn(200, 5, generator=generator, dtype=torch.float64).exp()


def test_log_prob():
    (loc, scale), (value, _) = gaussian(0), gaussian(1)
    for width in (scale, torch.full((5,), 0.3, dtype=torch.float64)):
        expected = Independent(Normal(loc, width.expand_as(loc)), 1).log_prob(value)
        torch.testing.assert_close(gaussians.log_prob(value, loc, width), expected)


def test_kl_divergence_its_direction_and_that_of_equals():
    p, q = gaussian(2), gaussian(3)
    expected = kl_divergence(Independent(Normal(*p), 1), Independent(Normal(*q), 1))
    torch.testing.assert_close(gaussians.kl_divergence(*p, *q), expected)
    assert gaussians.kl_divergence(*p, *p).abs().max() == 0
    loc, scale = p[0].float(), p[1].float()
    assert (gaussians.kl_divergence(loc, scale, loc, scale * (1 + 1e-4)) > -1e-6).all()


def test_squashed_sample_has_the_density_and_gradients_of_torchrls_tanh_normal():
    (loc, scale), (noise, _) = gaussian(0), gaussian(1)
    parts = []
    for ours in (True, False):
        mean, log_scale = loc.clone().requires_grad_(), scale.log().requires_grad_()
        if ours:
            action, density = gaussians.squashed_sample(mean, log_scale, noise)
        else:
            action = torch.tanh(mean + log_scale.exp() * noise)
            density = TanhNormal(mean, log_scale.exp(), event_dims=1).log_prob(action)
        (action.sum() + density.sum()).backward()
        parts.append((action, density, mean.grad, log_scale.grad))
    narrow = (parts[0][0].abs() < 0.999).all(-1)  # TorchRL inverts the tanh, which loses digits near its ends
    assert narrow.sum() > 20
    for ours, theirs in zip(*parts, strict=True):
        torch.testing.assert_close(ours[narrow], theirs[narrow], rtol=1e-6, atol=1e-6)


def test_squashed_density_where_the_tanh_has_saturated():
    loc = torch.tensor([[20.0], [-300.0]], requires_grad=True)
    action, density = gaussians.squashed_sample(loc, torch.zeros(2, 1), torch.zeros(2, 1))
    assert action.tolist() == [[1.0], [-1.0]]
    # log(1 - tanh(u)^2) is log 4 - 2 |u| far out
    expected = Normal(0.0, 1.0).log_prob(torch.tensor(0.0)) - (torch.tensor([4.0, 4.0]).log() - 2 * loc[:, 0].abs())
    torch.testing.assert_close(density, expected)
    density.sum().backward()
    torch.testing.assert_close(loc.grad[:, 0], torch.tensor([2.0, -2.0]))
