"""Networks and normalisers of all models and policies.

A stack of C networks of equal size is one batched product: members of an ensemble, restarts of a search, policies of tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from mbrl_lightning.networks.statistics import moments

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "silu": nn.SiLU}
IN_PLACE: dict[type[nn.Module], Callable[[Tensor], Tensor]] = {
    nn.ReLU: torch.relu_,
    nn.Tanh: torch.tanh_,
    nn.SiLU: partial(nn.functional.silu, inplace=True),
}


def affine(bias: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """`x @ weight + bias`, batched; where no gradient is wanted the sum is made in place, which half of the time went to."""
    return torch.baddbmm(bias, x, weight) if torch.is_grad_enabled() else torch.bmm(x, weight).add_(bias)


class StackedLinear(nn.Module):
    """C affine maps in one batched product: `[C, N, inputs] -> [C, N, outputs]`."""

    def __init__(self, copies: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = max(inputs, 1) ** -0.5
        self.weight = nn.Parameter(torch.empty(copies, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(copies, 1, outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor, copies: slice = slice(None), frozen: bool = False) -> Tensor:
        """`[C, N, inputs] -> [C, N, outputs]` with all copies or a slice of them; `frozen` weights get no gradient."""
        weight, bias = (self.weight.detach(), self.bias.detach()) if frozen else (self.weight, self.bias)
        if copies == slice(None):  # two views less: a fifth of the time of a small layer
            return affine(bias, x, weight)
        return affine(bias[copies], x, weight[copies])


class StackedMLP(nn.Sequential):
    """C multilayer perceptrons of equal size; `sizes` are the widths of their layers, from inputs to outputs.

    With `layer_norm` what each hidden layer gives is standardised, row by row, before the activation.
    """

    def __init__(self, copies: int, sizes: Sequence[int], activation: str = "relu", layer_norm: bool = False) -> None:
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [StackedLinear(copies, inputs, outputs), ACTIVATIONS[activation]()]
        super().__init__(*layers[:-1])
        self.copies, self.sizes, self.layer_norm = copies, tuple(sizes), layer_norm

    def forward(self, x: Tensor, copies: slice = slice(None), frozen: bool = False) -> Tensor:
        """`[C, N, inputs] -> [C, N, outputs]` with all copies or a slice of them; `frozen` weights get no gradient."""
        *hidden, last = self.affine
        for layer in hidden:
            x = self._activated(layer(x, copies, frozen))
        return last(x, copies, frozen)

    @property
    def affine(self) -> list[StackedLinear]:
        """The layers that have weights, first to last."""
        return list(self)[::2]  # type: ignore[return-value]

    @property
    def activation(self) -> nn.Module:
        """Between layers; nothing where there is but one."""
        return self[1] if len(self) > 1 else nn.Identity()

    def evaluate(self, x: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """The same with weights of M other networks, by the names they have here: `[M, N, inputs] -> [M, N, outputs]`."""
        for index in range(0, len(self), 2):
            x = affine(parameters[f"{index}.bias"], x, parameters[f"{index}.weight"])
            x = self._activated(x) if index < len(self) - 1 else x
        return x

    def _activated(self, x: Tensor) -> Tensor:
        x = nn.functional.layer_norm(x, x.shape[-1:]) if self.layer_norm else x
        return self.activation(x) if torch.is_grad_enabled() else IN_PLACE[type(self.activation)](x)

    def scale_output(self, factor: float) -> StackedMLP:
        """Shrink the last layer, so that a policy starts near its mean action; returns itself."""
        with torch.no_grad():
            self.affine[-1].weight.mul_(factor)
            self.affine[-1].bias.zero_()
        return self


class StackedRBF(nn.Module):
    """C radial-basis networks of deep PILCO (Gal et al. 2016): Gaussian units, linear output without bias."""

    def __init__(self, copies: int, inputs: int, units: int, outputs: int) -> None:
        super().__init__()
        self.copies = copies
        self.centers = nn.Parameter(torch.randn(copies, units, inputs))
        self.log_scales = nn.Parameter(torch.ones(copies, 1, inputs))
        self.weight = nn.Parameter(torch.randn(copies, units, outputs) / units**0.5)

    def forward(self, x: Tensor, copies: slice = slice(None)) -> Tensor:
        """`[C, N, inputs] -> [C, N, outputs]`, with all copies or a slice of them."""
        return self.evaluate(x, {name: value[copies] for name, value in self.named_parameters()})

    def evaluate(self, x: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """See StackedMLP.evaluate; the squared distances are one product, never `[N, units, inputs]`."""
        precision, centers = torch.exp(-0.5 * parameters["log_scales"]), parameters["centers"]
        distances = torch.cdist(x * precision, centers * precision, compute_mode="use_mm_for_euclid_dist")
        return torch.exp(-0.5 * distances.square()) @ parameters["weight"]


class StackedGRU(nn.Module):
    """C gated recurrent units of equal size over windows (Cho et al. 2014; equations and sizes of `torch.nn.GRU`).

    A window is read in one call of `_Reading`, whose gradient is written by hand: with units this small a step costs what
    its operations cost to start, and autograd would record ten of them a step where four forward and two back suffice.
    """

    def __init__(self, copies: int, inputs: int, hidden: int) -> None:
        super().__init__()
        self.hidden, bound = hidden, hidden**-0.5
        self.weight_input = nn.Parameter(torch.empty(copies, inputs, 3 * hidden).uniform_(-bound, bound))
        self.weight_hidden = nn.Parameter(torch.empty(copies, hidden, 3 * hidden).uniform_(-bound, bound))
        self.bias_input = nn.Parameter(torch.empty(copies, 1, 3 * hidden).uniform_(-bound, bound))
        self.bias_hidden = nn.Parameter(torch.empty(copies, 1, 3 * hidden).uniform_(-bound, bound))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """State `[C, N, H]` after the last step of `x` `[C or 1, N, L, X]`, from a state of zeros.

        Steps where `mask` `[N, L]` or `[C, N, L]` is false leave the state as it is.
        """
        return read_windows(x, mask, [self], 1)

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """Of inputs and state, and their biases."""
        return self.weight_input, self.weight_hidden, self.bias_input, self.bias_hidden


def read_windows(x: Tensor, mask: Tensor | None, units: Sequence[StackedGRU], learned: int) -> Tensor:
    """States `[C, N, H]` of units of one width with C copies in all after G windows `[G, N, L, X]`, in as many steps as for one.

    C / G copies read each window, the first ones the first; of `mask` `[N, L]` or `[G, N, L]` see `StackedGRU.forward`. The first
    `learned` units get gradients.
    """
    weights = [weight for unit in units for weight in unit.weights]
    with torch.autocast(x.device.type, enabled=False):  # half precision has no place in a recurrence of 5 units
        learned = learned if torch.is_grad_enabled() else 0
        return _Reading.apply(x.to(weights[0].dtype), mask, learned, *weights)


class _Reading(torch.autograd.Function):
    """Windows read by C gated recurrent units; rows are innermost (`[C, H, L, N]`), so that gates are cut along an outer one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor | None, learned: int, *weights: Tensor) -> Tensor:
        w_in, w, b_in, b = (torch.cat(weights[kind::4]) if len(weights) > 4 else weights[kind] for kind in range(4))
        copies, units, (windows, rows, length, width) = len(w), w.shape[1], x.shape
        inputs = x.transpose(1, 2).reshape(windows, length * rows, width)  # no copy of a window that is time-major
        w_of, b_of = (part.mT.reshape(windows, -1, part.shape[1]) for part in (w_in, b_in))
        gates = torch.baddbmm(b_of, w_of, inputs.mT).view(copies, 3 * units, length, rows)
        if mask is not None:  # an infinite second gate keeps the state exactly, and has no gradient
            padding = ~mask.mT.reshape(-1, 1, 1, length, rows)
            gates.view(len(padding), -1, 3, units, *padding.shape[3:])[:, :, 1].masked_fill_(padding, torch.inf)
        both, new = gates[:, : 2 * units].unbind(2), gates[:, 2 * units :].unbind(2)
        reset, keep = gates[:, :units].unbind(2), gates[:, units : 2 * units].unbind(2)
        states = gates.new_empty(copies, units, length + 1, rows)
        product = gates.new_empty(copies, 3 * units, rows)  # one for all steps stays in the cache
        to_both, to_new = product.split([2 * units, units], 1)
        state, bias, weight = states.unbind(2), b.mT, w.mT
        state[0].zero_()
        for t in range(length):
            torch.baddbmm(bias, weight, state[t], out=product)
            both[t].add_(to_both).sigmoid_()
            new[t].addcmul_(reset[t], to_new).tanh_()
            torch.lerp(new[t], state[t], keep[t], out=state[t + 1])
        if learned:
            ctx.windows, ctx.frozen = windows, len(weights) - 4 * learned
            ctx.sizes = [len(weight) for weight in weights[: 4 * learned : 4]]
            own, each = slice(sum(ctx.sizes)), copies // windows
            first = inputs[: -(-own.stop // each)].unsqueeze(1).expand(-1, each, -1, -1)  # of one window a view
            ctx.save_for_backward(first.flatten(0, 1)[own], gates[own], states[own], w_in[own], w[own], b[own])
        return state[length].mT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, gates, states, w_in, w, b = ctx.saved_tensors
        copies, units, length, rows = len(w), w.shape[1], states.shape[2] - 1, states.shape[3]
        before = states[:, :, :-1].flatten(2)
        inner = torch.baddbmm(
            b[..., 2 * units :].mT, w[..., 2 * units :].mT, before
        )  # the state's share, before its gate
        flow = _slopes(gates, states, inner.unflatten(2, (length, rows)))  # becomes the gradients of what it names
        at, hidden, kept = flow.unbind(3), flow[:, :3].flatten(1, 2).unbind(2), flow[:, 4].unbind(2)
        turned = w.roll(units, 2)  # columns in the order of the first three slopes
        state = gradient[:copies].mT.unsqueeze(1)
        for t in range(length - 1, -1, -1):
            at[t].mul_(state)
            state = torch.baddbmm(kept[t], turned, hidden[t]).unsqueeze(1)
        to_input = flow[:, 1:4].reshape(copies, 3 * units, length * rows)
        to_state = flow[:, :3].reshape(copies, 3 * units, length * rows)
        w_in_grad = torch.bmm(to_input, inputs).mT
        w_grad = torch.bmm(to_state, before.mT).mT.roll(-units, 2)
        sums = flow[:, :4].sum((3, 4)).flatten(1).unsqueeze(1)
        b_in_grad, b_grad = sums[..., units:], sums[..., : 3 * units].roll(-units, 2)
        x_grad = None
        if ctx.needs_input_grad[0]:
            x_grad = torch.bmm(w_in, to_input).mT
            x_grad = x_grad.view(ctx.windows, -1, length, rows, x_grad.shape[-1]).sum(1).transpose(1, 2)
        gradients = (part.split(ctx.sizes) for part in (w_in_grad, w_grad, b_in_grad, b_grad))
        each = [gradient for unit in zip(*gradients, strict=True) for gradient in unit]
        return x_grad, None, None, *each, *[None] * ctx.frozen


def _slopes(gates: Tensor, states: Tensor, inner: Tensor) -> Tensor:
    """How much each moves the next state: the state's share of the new value, both gates, new value, state: `[C, 5, H, L, N]`."""
    copies, units, length, rows = states.shape[0], states.shape[1], states.shape[2] - 1, states.shape[3]
    reset, keep, new = gates.view(copies, 3, units, length, rows).unbind(1)
    slopes = gates.new_empty(copies, 5, units, length, rows)
    through, first, second, last, kept = slopes.unbind(1)
    change = 1 - keep
    torch.addcmul(change, change, new.square(), value=-1, out=last)
    torch.mul(last, reset, out=through)
    torch.mul(through, inner, out=first).addcmul_(first, reset, value=-1)
    torch.sub(states[:, :, :-1], new, out=second).mul_(keep).mul_(change)
    kept.copy_(keep)
    return slopes


def traced() -> bool:
    """Whether what is computed now becomes a graph (see `export`), in which nothing can depend on a value."""
    return get_proxy_mode() is not None


def any_row(rows: Tensor) -> bool:
    """Whether any of the rows, bool `[B]`, is true; where a graph is traced no value is known, and the answer is yes."""
    return traced() or bool(rows.any())


ROUNDING, NOISE = 4 * torch.finfo(torch.float32).eps, 1e-12
"""What varies: a column whose deviation is more than these shares of its own size and of the largest deviation beside it."""


class Normalizer(nn.Module):
    """Standardisation of D = `size` columns, statistics in float64; one that does not vary (see `NOISE`) has the deviation 1."""

    mean: Tensor
    std: Tensor
    loc: Tensor
    inverse_std: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("std", torch.ones(size, dtype=torch.float64))
        self.register_buffer("loc", torch.zeros(size))
        self.register_buffer("inverse_std", torch.ones(size))

    def fit(self, data: Tensor) -> None:
        """Set the statistics to those of `data` `[..., D]`; of fewer than two rows the deviations are 1."""
        self.take(moments(data))

    def take(self, moments: Tensor) -> None:
        """Set the statistics to those of the data that these are the `moments` of."""
        _, mean, variance, square = moments
        std, rms = variance.sqrt(), square.sqrt()
        self.mean.copy_(mean)
        varies = (std > ROUNDING * rms) & (std > NOISE * std.max())
        self.std.copy_(torch.where(varies, std, torch.ones_like(std)))
        self.loc.copy_(self.mean)
        self.inverse_std.copy_(self.std.reciprocal())

    def forward(self, x: Tensor) -> Tensor:
        """Standardise `[..., D]`."""
        return (x - self.loc) * self.inverse_std

    def inverse(self, x: Tensor) -> Tensor:
        """Undo `forward`."""
        return x / self.inverse_std + self.loc
