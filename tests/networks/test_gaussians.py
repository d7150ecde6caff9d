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
    torch.testing.assert_close(
        gaussians.log_prob(value, loc, scale), Independent(Normal(loc, scale), 1).log_prob(value)
    )


def test_log_prob_broadcasts_a_plain_number():
    loc, _ = gaussian(0)
    expected = Independent(Normal(loc, torch.full_like(loc, 0.3)), 1).log_prob(loc + 1)
    torch.testing.assert_close(gaussians.log_prob(loc + 1, loc, 0.3), expected)
    torch.testing.assert_close(gaussians.log_prob(loc + 1, loc, torch.full((5,), 0.3)), expected)


def test_kl_divergence_and_its_direction():
    p, q = gaussian(2), gaussian(3)
    expected = kl_divergence(Independent(Normal(*p), 1), Independent(Normal(*q), 1))
    torch.testing.assert_close(gaussians.kl_divergence(*p, *q), expected)


def test_kl_is_not_negative_and_zero_for_equals():
    p, q = gaussian(4), gaussian(5)
    assert (gaussians.kl_divergence(*p, *q) > 0).all()
    assert gaussians.kl_divergence(*p, *p).abs().max() == 0
    near = (p[0].float(), p[1].float() * (1 + 1e-4))
    assert (gaussians.kl_divergence(p[0].float(), p[1].float(), *near) > -1e-6).all()


def test_kl_reaches_both_sides_with_gradients():
    (loc, scale), (other, width) = gaussian(6), gaussian(7)
    leaves = [x.clone().requires_grad_() for x in (loc, scale, other, width)]
    gaussians.kl_divergence(*leaves).sum().backward()
    assert all(leaf.grad.abs().min() > 0 for leaf in leaves)


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
