"""The ELBO of free Gaussians: its weights, its two forms, and the likelihood of a probabilistic ensemble."""

from __future__ import annotations

import math

import pytest
import torch
from fakes import plain_spec
from tensordict import TensorDict
from torch.distributions import Normal
from torch.nn.functional import softplus

from mbrl_lightning.beliefs.variational import from_prior
from mbrl_lightning.config.schema import DynamicsConfig
from mbrl_lightning.models.variational import LOG_VAR, ProbabilisticVariationalDynamics, VariationalDynamics

KINDS = [VariationalDynamics, ProbabilisticVariationalDynamics]


def model(kind=VariationalDynamics, **changes):
    torch.manual_seed(0)
    cfg = DynamicsConfig(**({"latent_dim": 2, "hidden": 8, "layers": 1, "members": 2, "scale": 0.5} | changes))
    made = kind(plain_spec(), cfg, latent_lr=0.01)
    with torch.no_grad():
        made.table[:3].normal_()
    return made


def batch(rows: int = 6, count: float = 30.0) -> TensorDict:
    draws = torch.Generator().manual_seed(1)
    observation, action, following = (torch.randn(3, rows, n, generator=draws) for n in (3, 2, 3))
    target = {"observation": observation, "action": action, "next": {"observation": following}}
    told = {"index": torch.arange(3), "count": torch.full((3,), count), "noise": torch.zeros(3, rows, 2)}
    return TensorDict(told | {"target": target}, batch_size=[3])


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_stands_for_all_transitions_of_a_task(kind):
    """The mean over a batch beside KL / n: times n it is the likelihood of n transitions and one KL, not a KL for each."""
    dynamics = model(kind)
    kl = from_prior(dynamics.table[:3]).mean()
    few, many = (dynamics.training_step(batch(count=n)) for n in (10.0, 1000.0))
    torch.testing.assert_close(few["loss"] - many["loss"], kl / 10 - kl / 1000)
    torch.testing.assert_close(few["loss_likelihood"], many["loss_likelihood"])


@pytest.mark.parametrize("kind", KINDS)
def test_without_kl_and_with_a_known_latent_it_is_supervised(kind):
    dynamics, data = model(kind, kl_weight=0.0, members=1), batch()
    target = data["target"]
    x = dynamics.inputs(target["observation"], target["action"])
    code = dynamics.table[:3, 0].unsqueeze(1).expand(-1, 6, -1)
    expected = dynamics.row_losses(x, code, dynamics.targets(target)).mean()
    torch.testing.assert_close(dynamics.training_step(data)["loss"], expected)


@pytest.mark.parametrize("kind", KINDS)
def test_evidence_is_the_same_elbo_and_masked_rows_do_not_count(kind):
    """For a q so narrow that its points coincide; and of the gradient nothing reaches another task."""
    dynamics, data = model(kind), batch()
    q = dynamics.table[:3].detach().clone()
    q[:, 1] = -12.0
    target, mask = data["target"], torch.ones(3, 6, dtype=torch.bool)
    inputs, y = dynamics.inputs(target["observation"], target["action"]), dynamics.targets(target)
    twice = [part.repeat(1, 2, 1) for part in (inputs, y)]  # each row by both members
    code = q[:, :1].expand(-1, 12, -1)
    expected = dynamics.row_losses(twice[0], code, twice[1]).mean(1) + from_prior(q) / 6
    torch.testing.assert_close(dynamics.evidence(q, inputs, y, mask), expected, rtol=1e-4, atol=1e-4)
    mask[0, 4:] = False
    fewer = dynamics.evidence(q[:1], inputs[:1, :4], y[:1, :4], mask[:1, :4])
    torch.testing.assert_close(dynamics.evidence(q, inputs, y, mask)[:1], fewer, rtol=1e-4, atol=1e-4)
    nothing = dynamics.evidence(torch.zeros(3, 2, 2), inputs, y, torch.zeros_like(mask))
    assert torch.equal(nothing, torch.zeros(3))


def test_probabilistic_members_know_their_noise():
    dynamics = model(ProbabilisticVariationalDynamics, members=1)
    x, code, y = torch.randn(3, 4, 5), torch.randn(3, 4, 2), torch.randn(3, 4, 3)
    out = dynamics.evaluate(torch.cat([x, code], -1).unsqueeze(1), slice(None), None).squeeze(1)
    loc, log_var = out.chunk(2, -1)
    torch.testing.assert_close(dynamics.decode(x, code), loc)
    low, high = LOG_VAR
    bounded = low + softplus(high - softplus(high - log_var) - low)  # softly
    assert (bounded - log_var).abs().max() < 0.5
    found = -Normal(loc, (0.5 * bounded).exp()).log_prob(y).sum(-1) - 1.5 * math.log(2 * math.pi)
    torch.testing.assert_close(dynamics.row_losses(x, code, y), found)


def test_latents_learn_at_their_own_rate_and_noise_widens_a_code():
    dynamics = model()
    groups = dynamics.configure_optimizers().param_groups
    assert [(len(group["params"]), group["lr"]) for group in groups][1] == (1, 0.01)
    belief = TensorDict({"latent": torch.ones(2, 2), "scale": torch.full((2, 2), 0.5)}, batch_size=[2])
    x = torch.zeros(2, 4, 5)
    assert torch.equal(dynamics.code(x, belief), torch.ones(2, 4, 2))
    assert torch.equal(dynamics.code(x, belief, torch.ones(2, 4, 2)), torch.full((2, 4, 2), 1.5))
