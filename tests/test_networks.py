"""Stacks of networks against each copy alone; normaliser statistics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mbrl_lightning.networks import ACTIVATIONS, Normalizer, StackedMLP, StackedRBF


def one_by_one(net: StackedMLP, x: torch.Tensor, activation: str) -> torch.Tensor:
    """The same networks as a loop over copies and layers."""
    linears = [layer for layer in net if hasattr(layer, "weight")]
    outputs = []
    for c in range(len(x)):
        h = x[c]
        for i, layer in enumerate(linears):
            h = F.linear(h, layer.weight[c].T, layer.bias[c, 0])
            if i < len(linears) - 1:
                h = ACTIVATIONS[activation]()(h)
        outputs.append(h)
    return torch.stack(outputs)


@pytest.mark.parametrize("activation", ["relu", "tanh", "silu"])
def test_stacked_mlp_equals_each_network_alone(activation):
    net, x = StackedMLP(3, [4, 8, 8, 2], activation), torch.randn(3, 7, 4)
    torch.testing.assert_close(net(x), one_by_one(net, x, activation))


def test_slice_of_copies_is_those_copies():
    net, x = StackedMLP(4, [3, 5, 2]), torch.randn(4, 6, 3)
    torch.testing.assert_close(net(x[1:3], slice(1, 3)), net(x)[1:3])


def test_copies_start_from_different_weights():
    net = StackedMLP(2, [3, 5, 2])
    assert not torch.equal(net[0].weight[0], net[0].weight[1])


def test_gradient_of_one_copy_does_not_reach_another():
    net = StackedMLP(3, [2, 4, 1])
    net(torch.randn(3, 5, 2))[1].sum().backward()
    gradient = net[0].weight.grad.flatten(1).abs().sum(1)
    assert gradient[1] > 0
    assert gradient[[0, 2]].tolist() == [0, 0]


def test_scale_output_shrinks_the_last_layer_only():
    torch.manual_seed(0)
    net, x = StackedMLP(1, [3, 8, 2]), torch.randn(1, 9, 3)
    hidden = net[0].weight.clone()
    before = net(x) - net[-1].bias
    after = net.scale_output(0.1)(x)
    torch.testing.assert_close(after, 0.1 * before)
    assert torch.equal(net[0].weight, hidden)


def test_rbf_is_the_sum_of_gaussian_units():
    net, x = StackedRBF(2, 3, 5, 1).double(), torch.randn(2, 4, 3, dtype=torch.float64)
    with torch.no_grad():
        net.log_scales.normal_()  # one width for each input dimension
    expected = torch.zeros(2, 4, 1, dtype=torch.float64)
    for c in range(2):
        for n in range(4):
            for unit in range(5):
                distance = ((x[c, n] - net.centers[c, unit]) ** 2 / net.log_scales[c, 0].exp()).sum()
                expected[c, n] += torch.exp(-0.5 * distance) * net.weight[c, unit]
    torch.testing.assert_close(net(x), expected)
    torch.testing.assert_close(net(x[1:], slice(1, 2)), expected[1:])


def test_normalizer_standardises_and_inverts():
    data = torch.randn(5, 100, 3) * torch.tensor([1.0, 10.0, 0.01]) + torch.tensor([0.0, 5.0, -2.0])
    norm = Normalizer(3)
    norm.fit(data)
    out = norm(data).flatten(0, 1)
    torch.testing.assert_close(out.mean(0), torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(out.std(0), torch.ones(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(norm.inverse(norm(data)), data)


def test_statistics_are_taken_in_float64():
    # around 1e6 float32 has steps of 0.06: a mean taken in it is wrong in the 7th digit, the deviation in the first
    data = (1e6 + torch.randn(20_000, 2)).float()
    norm = Normalizer(2)
    norm.fit(data)
    reference = data.numpy().astype(np.float64)
    np.testing.assert_allclose(norm.mean.numpy(), reference.mean(0), rtol=1e-13)
    np.testing.assert_allclose(norm.std.numpy(), reference.std(0, ddof=1), rtol=1e-9)
    assert norm.mean.dtype == norm.std.dtype == torch.float64


def test_constant_column_has_deviation_one():
    data = torch.randn(50, 2)
    data[:, 1] = 7.0
    norm = Normalizer(2)
    norm.fit(data)
    assert float(norm.std[1]) == 1.0
    assert norm(data)[:, 1].abs().max() == 0
    assert torch.isfinite(norm(data)).all()


def test_a_single_row_leaves_deviations_at_one():
    norm = Normalizer(2)
    norm.fit(torch.tensor([[3.0, 4.0]]))
    assert norm.std.tolist() == [1.0, 1.0]
    assert norm(torch.tensor([[3.0, 5.0]])).tolist() == [[0.0, 1.0]]


def test_normalizer_travels_with_the_state():
    norm, other = Normalizer(2), Normalizer(2)
    norm.fit(torch.randn(30, 2) * 4 + 1)
    other.load_state_dict(norm.state_dict())
    x = torch.randn(4, 2)
    assert torch.equal(norm(x), other(x))
    assert torch.equal(norm.inverse(x), other.inverse(x))
