"""Stacks of networks against each copy alone; normaliser statistics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mbrl_lightning.networks import ACTIVATIONS, Normalizer, StackedGRU, StackedMLP, StackedRBF, read_windows


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


def test_copies_start_apart_and_get_gradients_of_their_own():
    net = StackedMLP(3, [2, 4, 1])
    assert not torch.equal(net[0].weight[0], net[0].weight[1])
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


def test_frozen_weights_get_no_gradient_but_the_input_does():
    net, x = StackedMLP(2, [3, 5, 2]), torch.randn(2, 6, 3, requires_grad=True)
    out = net(x, frozen=True)
    assert torch.equal(out, net(x))
    out.sum().backward()
    assert all(p.grad is None for p in net.parameters())
    frozen, x.grad = x.grad, None
    net(x).sum().backward()
    torch.testing.assert_close(frozen, x.grad)


def torch_gru(gru: StackedGRU, copy: int) -> torch.nn.GRU:
    """PyTorch's own unit with the weights of one copy."""
    own = torch.nn.GRU(gru.weight_input.shape[1], gru.hidden, batch_first=True).to(gru.weight_input.dtype)
    state = {
        "weight_ih_l0": gru.weight_input[copy].T,
        "weight_hh_l0": gru.weight_hidden[copy].T,
        "bias_ih_l0": gru.bias_input[copy, 0],
        "bias_hh_l0": gru.bias_hidden[copy, 0],
    }
    own.load_state_dict({name: value.detach() for name, value in state.items()})
    return own


@pytest.mark.parametrize("shared", [False, True])
def test_stacked_gru_equals_each_unit_alone_in_values_and_gradients(shared):
    torch.manual_seed(0)
    gru = StackedGRU(3, 4, 5).double()
    x = torch.randn(1 if shared else 3, 7, 6, 4, dtype=torch.float64, requires_grad=True)
    out, weight = gru(x), torch.randn(3, 7, 5, dtype=torch.float64)
    (out * weight).sum().backward()
    assert sum(p.numel() for p in gru.parameters()) == 3 * 3 * (5 * 4 + 5 * 5 + 2 * 5)
    inputs = []
    for copy in range(3):
        own, window = torch_gru(gru, copy), x.detach()[0 if shared else copy].clone().requires_grad_()
        _, last = own(window)
        torch.testing.assert_close(out[copy], last[0])
        (last[0] * weight[copy]).sum().backward()
        torch.testing.assert_close(gru.weight_input.grad[copy], own.weight_ih_l0.grad.T)
        torch.testing.assert_close(gru.weight_hidden.grad[copy], own.weight_hh_l0.grad.T)
        torch.testing.assert_close(gru.bias_input.grad[copy, 0], own.bias_ih_l0.grad)
        torch.testing.assert_close(gru.bias_hidden.grad[copy, 0], own.bias_hh_l0.grad)
        inputs.append(window.grad)
    torch.testing.assert_close(x.grad, sum(inputs).unsqueeze(0) if shared else torch.stack(inputs))


@pytest.mark.parametrize("length", [0, 1, 4])
def test_padding_on_the_left_is_a_shorter_window(length):
    torch.manual_seed(0)
    gru, x = StackedGRU(2, 3, 5), torch.randn(1, 6, 4, 3)  # what is padded is not zero, and must not matter
    mask = (torch.arange(4) >= 4 - length).expand(6, 4)
    weight = torch.randn(2, 6, 5)
    gradients = []
    for out in (gru(x, mask), gru(x[:, :, 4 - length :])):
        gru.zero_grad()
        (out * weight).sum().backward()
        gradients.append((out, *(p.grad for p in gru.parameters())))
    for padded, short in zip(*gradients, strict=True):
        torch.testing.assert_close(padded, short)
    assert bool(gradients[0][1].any()) == (length > 0)


def test_each_row_has_its_own_mask_and_a_masked_step_keeps_the_state_exactly():
    torch.manual_seed(0)
    gru, x = StackedGRU(2, 3, 5), torch.randn(1, 50, 6, 3)
    mask = torch.rand(50, 6) < 0.5
    out = gru(x, mask)
    for row, kept in enumerate(mask):
        torch.testing.assert_close(out[:, row], gru(x[:, row : row + 1, kept])[:, 0])
    each = torch.stack([mask, ~mask])
    torch.testing.assert_close(gru(x, each)[0], out[0])
    torch.testing.assert_close(gru(x, each)[1], gru(x, ~mask)[1])
    last = torch.ones(50, 7, dtype=torch.bool)
    last[:, 6] = False
    assert torch.equal(gru(torch.cat([x, x[:, :, :1]], 2), last), gru(x))


def test_windows_laid_out_step_by_step_and_reading_without_gradient_give_the_same():
    torch.manual_seed(0)
    gru, x = StackedGRU(2, 3, 5), torch.randn(1, 6, 4, 3)
    out = gru(x)
    turned = x.transpose(1, 2).contiguous().transpose(1, 2)
    assert not turned.is_contiguous()
    assert torch.equal(gru(turned), out)
    with torch.no_grad():
        assert torch.equal(gru(x), out)


@pytest.mark.parametrize("learned", [1, 2, 4])
def test_units_that_read_together_are_units_that_read_alone(learned):
    torch.manual_seed(0)
    units = [StackedGRU(copies, 3, 5).double() for copies in (2, 1, 2, 1)]
    x, mask = torch.randn(2, 6, 4, 3, dtype=torch.float64), torch.rand(2, 6, 4) < 0.7
    weight, gradients, outputs = torch.randn(6, 6, 5, dtype=torch.float64), [], []
    for together in (True, False):
        if together:
            states = read_windows(x, mask, units, learned)
        else:
            states = torch.cat([unit(x[n // 2 : n // 2 + 1], mask[n // 2]) for n, unit in enumerate(units)])
        outputs.append(states)
        (states * weight).sum().backward()
        gradients.append([[p.grad for p in unit.parameters()] for unit in units])
        for unit in units:
            unit.zero_grad(set_to_none=True)
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-12)
    for n, (got, wanted) in enumerate(zip(*gradients, strict=True)):
        assert all(g is None for g in got) or n < learned
        if n < learned:
            torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)


def test_gru_under_reduced_precision_reads_in_full():
    gru, x = StackedGRU(1, 3, 5), torch.randn(1, 6, 4, 3)
    full = gru(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(gru(x), full)
        gru(x.bfloat16()).sum().backward()
    assert gru.weight_input.grad.dtype == torch.float32


def test_normalizer_standardises_inverts_and_travels_with_the_state():
    data = torch.randn(5, 100, 3) * torch.tensor([1.0, 10.0, 0.01]) + torch.tensor([0.0, 5.0, -2.0])
    norm = Normalizer(3)
    norm.fit(data)
    out = norm(data).flatten(0, 1)
    torch.testing.assert_close(out.mean(0), torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(out.std(0), torch.ones(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(norm.inverse(norm(data)), data)
    other = Normalizer(3)
    other.load_state_dict(norm.state_dict())
    assert torch.equal(other(data), norm(data))
    assert torch.equal(other.inverse(data), norm.inverse(data))


def test_statistics_are_taken_in_float64():
    # around 1e6 float32 has steps of 0.06: a mean taken in it is wrong in the 7th digit, the deviation in the first
    data = (1e6 + torch.randn(20_000, 2)).float()
    norm = Normalizer(2)
    norm.fit(data)
    reference = data.numpy().astype(np.float64)
    np.testing.assert_allclose(norm.mean.numpy(), reference.mean(0), rtol=1e-13)
    np.testing.assert_allclose(norm.std.numpy(), reference.std(0, ddof=1), rtol=1e-9)
    assert norm.mean.dtype == norm.std.dtype == torch.float64


@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e9])
@pytest.mark.parametrize("other", [0.0, 7.0])
def test_constant_column_has_deviation_one_whatever_the_units(unit, other):
    plain = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) + torch.tensor([0.0, 0.0, 3.0])
    plain[:, 1] = other
    data = plain * torch.tensor([unit, unit, 1.0])  # the others in their own
    norm, first = Normalizer(3), Normalizer(3)
    norm.fit(data)
    first.fit(plain)
    assert float(norm.std[1]) == 1.0
    assert norm(data)[:, 1].abs().max() <= 1e-7 * unit * other
    torch.testing.assert_close(norm(data)[:, [0, 2]], first(plain)[:, [0, 2]])


def test_a_single_row_leaves_deviations_at_one():
    norm = Normalizer(2)
    norm.fit(torch.tensor([[3.0, 4.0]]))
    assert norm.std.tolist() == [1.0, 1.0]
    assert norm(torch.tensor([[3.0, 5.0]])).tolist() == [[0.0, 1.0]]
