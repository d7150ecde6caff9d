"""Natural gradients by Kronecker factors."""

from __future__ import annotations

import pytest
import torch
from fakes import generator

from mbrl_lightning.networks import StackedMLP
from mbrl_lightning.policies.kronecker import KroneckerFactored


def one_rank(value):
    return value


def line(log_std=None, **changes) -> tuple[StackedMLP, KroneckerFactored]:
    """A straight line y = w x + b with E[a a^T] = 1 for a = (x, 1), and slopes of 2: F = 4."""
    net = StackedMLP(1, [1, 1])
    settings = {"lr": 1.0, "delta": 0.05, "damping": 0.0, "decay": 0.5} | changes
    optimizer = KroneckerFactored(net, log_std=log_std, **settings)
    optimizer.observe(torch.tensor([[1.0], [-1.0]]), torch.tensor([[2.0], [-2.0]]), one_rank)
    net[0].weight.grad, net[0].bias.grad = torch.tensor([[[3.0]]]), torch.tensor([[[1.0]]])
    return net, optimizer


@pytest.mark.parametrize(("lr", "share"), [(1.0, 0.2), (0.1, 0.1)])  # (0.05 x 2 / 2.5)^0.5, and less where lr says so
def test_a_step_by_hand(lr, share):
    net, optimizer = line(lr=lr)
    before = net[0].weight.item(), net[0].bias.item()
    optimizer.step()  # F^-1 g = (3, 1) / 4, whose curvature is 9 / 4 + 1 / 4
    assert net[0].weight.item() == pytest.approx(before[0] - share * 0.75)
    assert net[0].bias.item() == pytest.approx(before[1] - share * 0.25)


def test_log_deviations_have_a_fisher_matrix_of_two():
    log_std = torch.nn.Parameter(torch.zeros(1, 1, 1))
    _, optimizer = line(log_std)
    log_std.grad = torch.full((1, 1, 1), 1.0)
    optimizer.step()
    assert log_std.item() == pytest.approx(-((0.1 / (2.5 + 0.5)) ** 0.5) * 0.5)


def test_factors_are_running_means():
    net, optimizer = line()
    optimizer.observe(torch.tensor([[3.0], [-3.0]]), torch.tensor([[4.0], [-4.0]]), one_rank)
    state = optimizer.state[net[0].weight]
    assert state["inputs"].tolist() == [[5.0, 0.0], [0.0, 1.0]]
    assert state["slopes"].tolist() == [[10.0]]


def test_the_divergence_of_a_step_is_what_is_allowed():
    net, draws = StackedMLP(1, [4, 32, 32, 2], "tanh"), generator()
    optimizer = KroneckerFactored(net, lr=1e9, delta=0.002, damping=1e-3, decay=0.9)
    x, weight = torch.randn(2000, 4, generator=draws), torch.randn(2000, 2, generator=draws)
    optimizer.observe(x, torch.randn(2000, 2, generator=draws), one_rank)  # a Gaussian of deviation 1
    before = net(x.unsqueeze(0))
    (before[0] * weight).mean().backward()
    optimizer.step()
    moved = (net(x.unsqueeze(0)) - before).detach().square().sum(-1).mean() / 2
    assert 0.001 < float(moved) < 0.004
