"""Factored inner steps: the numbers of `GradientAdaptation`, without its weights."""

import pytest
import torch

from mbrl_lightning.beliefs.factored import FactoredAdaptation, evaluate_changed, written
from mbrl_lightning.beliefs.gradient import GradientAdaptation, repeat
from mbrl_lightning.networks import StackedMLP

TASKS, MEMBERS, PAST, ROWS = 4, 2, 5, 3


def problem(activation: str = "tanh"):
    torch.manual_seed(0)
    net = StackedMLP(MEMBERS, [3, 7, 6, 2], activation).double()
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 0, 1, 1], [0, 0, 0, 0, 0], [0, 1, 1, 1, 1]]).double()
    inputs, target = torch.randn(TASKS, PAST, 3).double(), torch.randn(TASKS, PAST, 2).double()
    return net, inputs, target, mask / PAST, torch.randn(TASKS, MEMBERS, ROWS, 3).double()


def by_weights(net, inputs, target, weight, asked, size, steps, adapts):
    """The same with a weight matrix for each task."""
    start = [*net.named_parameters(), ("gain", torch.ones(MEMBERS, 1, 3).double())]
    chosen = {"all": slice(None), "weights": slice(0, -1), "gains": slice(-1, None)}[adapts]
    adaptation = GradientAdaptation([name for name, _ in start[chosen]], size, steps).double()

    def run(parameters, blocks):
        own = {name: value.flatten(0, 1) for name, value in parameters.items() if name != "gain"}
        blocks = blocks * parameters["gain"]
        return torch.func.functional_call(net, own, (blocks.flatten(0, 1),)).unflatten(0, blocks.shape[:2])

    def losses(parameters):
        out = run(parameters, inputs.unsqueeze(1).expand(-1, MEMBERS, -1, -1))
        return ((out - target.unsqueeze(1)).square().mean(-1) * weight.unsqueeze(1)).sum((1, 2))

    return run(adaptation(losses, repeat(start, TASKS)), asked)


@pytest.mark.parametrize("adapts", ["all", "weights", "gains"])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("steps", [1, 3])
def test_equals_steps_on_the_weights(activation, steps, adapts):
    net, inputs, target, weight, asked = problem(activation)
    inner, none = FactoredAdaptation(3, 0.3, steps, adapts=adapts).double(), FactoredAdaptation(3, 0.0)
    mine = evaluate_changed(net, asked, inner(net, inputs, target, weight))
    other = by_weights(net, inputs, target, weight, asked, 0.3, steps, adapts)
    torch.testing.assert_close(mine, other)
    assert (mine - evaluate_changed(net, asked, none(net, inputs, target, weight))).abs().max() > 1e-3
    gradients = [torch.autograd.grad(out.square().sum(), list(net.parameters())) for out in (mine, other)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_gradient_in_the_sizes_is_that_of_finite_differences():
    net, inputs, target, weight, asked = problem()
    inner = FactoredAdaptation(3, 0.2, 2, learned=True, adapts="all").double()

    def value():
        return evaluate_changed(net, asked, inner(net, inputs, target, weight)).square().sum()

    gradients = torch.autograd.grad(value(), [inner.sizes, inner.gain_size])
    places = [(inner.sizes, gradients[0], (layer, kind)) for layer in range(3) for kind in range(2)]
    for sizes, gradient, place in [*places, (inner.gain_size, gradients[1], ())]:
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                sizes[place] += sign * 1e-6
                ends.append(float(value()))
                sizes[place] -= sign * 1e-6
        assert float(gradient[place]) == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-5)


@pytest.mark.parametrize("adapts", ["all", "weights", "gains"])
def test_nothing_to_adapt_to_changes_nothing(adapts):
    net, inputs, target, weight, asked = problem()
    change = FactoredAdaptation(3, 0.3, adapts=adapts)(net, inputs, target, weight)
    adapted = evaluate_changed(net, asked, change)
    plain = net(asked.transpose(0, 1).flatten(1, 2)).unflatten(1, (TASKS, ROWS)).transpose(0, 1)
    same = torch.isclose(adapted, plain, rtol=1e-12, atol=1e-14).flatten(1).all(1)
    assert same.tolist() == [False, False, True, False]  # the third task's rows are all masked


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("adapts", ["all", "weights", "gains"])
def test_weights_written_down_members_asked_for_and_no_graph_say_the_same(adapts, steps):
    net, inputs, target, weight, asked = problem()
    inner = FactoredAdaptation(3, 0.3, steps, adapts=adapts)
    change = inner(net, inputs, target, weight)
    with torch.no_grad():
        bare = inner(net, inputs, target, weight)
    assert not any(value.requires_grad for value in bare.values(include_nested=True, leaves_only=True))
    whole = evaluate_changed(net, asked, change)
    for form in (change, written(net, change), bare):
        torch.testing.assert_close(evaluate_changed(net, asked, form), whole)
        torch.testing.assert_close(evaluate_changed(net, asked[:, 1:], form, slice(1, 2)), whole[:, 1:])
