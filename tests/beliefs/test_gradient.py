"""Inner gradient steps: against closed forms, finite differences in float64, and one task at a time."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mbrl_lightning.beliefs.gradient import GradientAdaptation, per_task, repeat
from mbrl_lightning.networks import StackedMLP

TASKS = 3


def quadratic(target: torch.Tensor):
    """L_m = |w_m - target_m|^2 / 2, whose step is a step towards the target."""
    return lambda parameters: 0.5 * (parameters["w"] - target).square().sum(1)


@pytest.fixture
def setting():
    """A stacked network in float64, one batch a task, and losses of a regression."""
    torch.manual_seed(0)
    net = StackedMLP(1, [2, 5, 1], "tanh").double()
    x, y = torch.randn(TASKS, 7, 2).double(), torch.randn(TASKS, 7, 1).double()

    def losses(parameters):
        return (torch.func.functional_call(net, parameters, (x,)) - y).square().mean((1, 2))

    return net, losses, (x, y)


def outer(net: nn.Module, adaptation: GradientAdaptation, losses, vector: torch.Tensor | None = None) -> torch.Tensor:
    """Mean loss after adapting, at the net's parameters plus `vector`."""
    own, used = dict(net.named_parameters()), 0
    if vector is not None:
        for name, value in own.items():
            own[name] = value + vector[used : used + value.numel()].view_as(value)
            used += value.numel()
    return losses(adaptation(losses, repeat(own.items(), TASKS, stacked=True))).mean()


def test_a_step_on_a_quadratic_goes_its_share_of_the_way():
    start, target = torch.zeros(2, 3), torch.tensor([[1.0, 2.0, 3.0], [-1.0, 0.0, 4.0]])
    for steps in (1, 2, 3):
        adapted = GradientAdaptation(["w"], 0.25, steps)(quadratic(target), {"w": start})
        torch.testing.assert_close(adapted["w"], (1 - 0.75**steps) * target)


def test_each_step_may_have_its_own_data():
    one, two = torch.ones(1, 2), -torch.ones(1, 2)
    adaptation = GradientAdaptation(["w"], 0.5, 2)
    adapted = adaptation([quadratic(one), quadratic(two)], {"w": torch.zeros(1, 2)})
    torch.testing.assert_close(adapted["w"], torch.full((1, 2), -0.25))
    with pytest.raises(ValueError, match="1 losses for 2 inner steps"):
        adaptation([quadratic(one)], {"w": torch.zeros(1, 2)})


@pytest.mark.parametrize("options", [{"size": 0.0}, {"size": 0.3, "steps": 0}])
def test_no_step_is_no_adaptation_even_where_the_gradient_is_not_a_number(options):
    start = {"w": torch.randn(2, 3)}
    adapted = GradientAdaptation(["w"], **options)(lambda p: (p["w"] * torch.nan).sum(1), start)
    assert adapted["w"] is start["w"]


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("first_order", [False, True])
def test_the_gradient_through_the_steps_equals_finite_differences(setting, steps, first_order):
    net, losses, _ = setting
    adaptation = GradientAdaptation(list(dict(net.named_parameters())), 0.2, steps, first_order=first_order).double()
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(outer(net, adaptation, losses), net.parameters())])
    direction = torch.randn_like(gradient)
    with torch.no_grad():
        up, down = (outer(net, adaptation, losses, sign * 1e-5 * direction) for sign in (1, -1))
    error = abs(float((up - down) / 2e-5 / (gradient @ direction)) - 1)
    assert error < 1e-7 if not first_order else error > 1e-3  # the first-order gradient leaves something out


def test_a_learned_step_size_has_the_gradient_of_finite_differences(setting):
    net, losses, _ = setting
    names = list(dict(net.named_parameters()))
    adaptation = GradientAdaptation(names, 0.1, 2, learned=True).double()
    (gradient,) = torch.autograd.grad(outer(net, adaptation, losses), [adaptation.sizes])
    for index in range(len(names)):
        values = []
        for sign in (1, -1):
            moved = GradientAdaptation(names, 0.1, 2, learned=True).double()
            moved.sizes.data[index] += sign * 1e-5
            values.append(float(outer(net, moved, losses).detach()))
        assert float(gradient[index]) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-6)
    assert not list(GradientAdaptation(names, 0.1).parameters())


def test_any_module_adapts_by_vmap_as_its_stack_does(setting):
    net, losses, (x, y) = setting
    plain = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    with torch.no_grad():
        for layer, stacked in ((plain[0], net[0]), (plain[2], net[2])):
            layer.weight.copy_(stacked.weight[0].T)
            layer.bias.copy_(stacked.bias[0, 0])

    def loss(parameters, batch):
        return (torch.func.functional_call(plain, parameters, (batch[0],)) - batch[1]).square().mean()

    losses_of_any = per_task(loss, (x, y))
    one = GradientAdaptation(list(dict(plain.named_parameters())), 0.3, 2).double()
    many = GradientAdaptation(list(dict(net.named_parameters())), 0.3, 2).double()
    own = one(losses_of_any, repeat(plain.named_parameters(), TASKS))
    stacked = many(losses, repeat(net.named_parameters(), TASKS, stacked=True))
    torch.testing.assert_close(own["0.weight"].mT, stacked["0.weight"], rtol=0, atol=1e-13)
    mean = losses_of_any(own).mean()
    first = torch.autograd.grad(mean, list(plain.parameters()))
    second = torch.autograd.grad(losses(stacked).mean(), list(net.parameters()))
    torch.testing.assert_close(first[0].T, second[0][0], rtol=0, atol=1e-13)


def test_without_gradients_around_it_leaves_no_graph(setting):
    net, losses, _ = setting
    adaptation = GradientAdaptation(list(dict(net.named_parameters())), 0.3, 2).double()
    with torch.no_grad():
        adapted = adaptation(losses, repeat(net.named_parameters(), TASKS, stacked=True))
    traced = adaptation(losses, repeat(net.named_parameters(), TASKS, stacked=True))
    for name, value in adapted.items():
        assert not value.requires_grad
        assert torch.equal(value, traced[name])


def test_parameters_that_do_not_adapt_are_handed_through(setting):
    net, losses, _ = setting
    start = repeat(net.named_parameters(), TASKS, stacked=True)
    adapted = GradientAdaptation(["0.weight"], 0.3).double()(losses, start)
    assert adapted["0.bias"] is start["0.bias"]
    assert not torch.equal(adapted["0.weight"], start["0.weight"])
    with pytest.raises(ValueError, match="adapt"):
        GradientAdaptation(["0.weight"], 0.3).double().linearise(losses, start)


@pytest.mark.parametrize("steps", [1, 3])
def test_products_with_the_jacobian_equal_automatic_differentiation(setting, steps):
    net, losses, _ = setting
    names = list(dict(net.named_parameters()))
    adaptation = GradientAdaptation(names, 0.2, steps, learned=True).double()
    adaptation.sizes.data.mul_(torch.rand(len(names)) + 0.5)
    leaves = {n: p.expand(TASKS, *p.shape[1:]).clone().detach().requires_grad_() for n, p in net.named_parameters()}
    linear, adapted = adaptation.linearise(losses, leaves), adaptation(losses, leaves)
    vectors = {name: torch.randn_like(value) for name, value in leaves.items()}
    others = {name: torch.randn_like(value) for name, value in leaves.items()}
    pulled = torch.autograd.grad(list(adapted.values()), list(leaves.values()), list(vectors.values()))
    for (name, value), expected in zip(linear.pull(vectors).items(), pulled, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(linear.adapted[name], adapted[name].detach(), rtol=0, atol=1e-14)
    pushed = linear.push(others)  # u . (J v) = (J^T u) . v
    left = sum((pushed[name] * vectors[name]).sum() for name in names)
    right = sum((others[name] * p).sum() for name, p in zip(leaves, pulled, strict=True))
    torch.testing.assert_close(left, right, rtol=1e-9, atol=0)


def test_the_first_order_jacobian_is_the_identity(setting):
    net, losses, _ = setting
    adaptation = GradientAdaptation(list(dict(net.named_parameters())), 0.2, first_order=True).double()
    vectors = {name: torch.randn(TASKS, *p.shape[1:]) for name, p in net.named_parameters()}
    linear = adaptation.linearise(losses, repeat(net.named_parameters(), TASKS, stacked=True))
    for product in (linear.push(vectors), linear.pull(vectors)):
        assert all(product[name] is vectors[name] for name in vectors)
