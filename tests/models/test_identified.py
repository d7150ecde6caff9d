"""A context vector that is found by gradient in a model."""

from __future__ import annotations

import pytest
import torch
from fakes import generator, plain_spec
from tensordict import TensorDict

from mbrl_lightning.config.methods import MIERConfig
from mbrl_lightning.config.schema import DynamicsConfig
from mbrl_lightning.models.identified import IdentifiedDynamics


def model(members: int = 1, inner_lr: float = 1.0, steps: int = 1) -> IdentifiedDynamics:
    torch.manual_seed(0)
    cfg = DynamicsConfig(latent_dim=2, hidden=8, layers=0, members=members, activation="tanh")
    return IdentifiedDynamics(plain_spec(), cfg, MIERConfig(inner_lr=inner_lr, inner_steps=steps))


def rows(tasks: int = 3, count: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    draws = generator(1)
    return torch.randn(tasks, count, 5, generator=draws), torch.randn(tasks, count, 3, generator=draws)


@pytest.mark.parametrize("members", [1, 2])
def test_a_step_goes_down_the_gradient_of_the_tasks_own_error(members):
    net, (x, y) = model(members), rows()
    prior = net.prior.expand(3, -1).clone().detach().requires_grad_()
    (slope,) = torch.autograd.grad(net.errors(x, y, prior).sum(), prior)
    with torch.no_grad():
        torch.testing.assert_close(net.identify(x, y), prior - slope)


def test_other_tasks_and_the_order_of_a_context_do_not_matter_and_nothing_seen_is_the_prior():
    net, (x, y) = model(steps=2), rows()
    with torch.no_grad():
        alone, turned = net.identify(x[1:2], y[1:2]), net.identify(x.flip(1), y.flip(1))
        torch.testing.assert_close(net.identify(x, y)[1:2], alone)
        torch.testing.assert_close(turned, net.identify(x, y))
        assert torch.equal(net.identify(x[:, :0], y[:, :0]), net.prior.expand(3, -1))


def test_the_loss_teaches_prior_step_size_and_weights_through_the_step():
    net, (x, y) = model(), rows()
    observation, action = x.split([3, 2], -1)
    part = {"observation": observation, "action": action, "next": {"observation": observation + y}}
    part = TensorDict(part, batch_size=[3, 6])
    net.training_step(TensorDict({"context": part[:, :2], "target": part[:, 2:]}, batch_size=[3]))["loss"].backward()
    assert all(bool(p.grad.abs().sum() > 0) for p in (net.prior, net.inner.sizes, *net.decoder.parameters()))
    with torch.no_grad():  # by differences
        batch, size = TensorDict({"context": part[:, :2], "target": part[:, 2:]}, batch_size=[3]), net.inner.sizes
        slope = size.grad.clone()
        losses = [float(net.training_step(batch)["loss"]) for step in (1e-2, -2e-2) if size.add_(step) is not None]
    assert (losses[0] - losses[1]) / 2e-2 == pytest.approx(float(slope), rel=0.1)
