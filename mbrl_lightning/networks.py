"""Networks and normalisers shared by every model and policy.

One shape serves three uses: a stack of C networks of equal size evaluated by one batched product. C is the number of
ensemble members of a model, of restarts of a policy search, or of tasks that each carry their own fine-tuned policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "silu": nn.SiLU}


class StackedLinear(nn.Module):
    """C affine maps in one batched product: `[C, N, inputs] -> [C, N, outputs]`."""

    def __init__(self, copies: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = max(inputs, 1) ** -0.5
        self.weight = nn.Parameter(torch.empty(copies, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(copies, 1, outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor, copies: slice = slice(None)) -> Tensor:
        """Map `[C, N, inputs]` to `[C, N, outputs]`, with all copies or a slice of them."""
        if copies == slice(None):  # two views less: a fifth of the time of a small layer
            return torch.baddbmm(self.bias, x, self.weight)
        return torch.baddbmm(self.bias[copies], x, self.weight[copies])


class StackedMLP(nn.Sequential):
    """C multilayer perceptrons of equal size, evaluated together.

    Args:
        copies: number of networks C.
        sizes: layer widths, inputs first, outputs last.
        activation: `relu`, `tanh` or `silu`, between layers.
    """

    def __init__(self, copies: int, sizes: Sequence[int], activation: str = "relu") -> None:
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [StackedLinear(copies, inputs, outputs), ACTIVATIONS[activation]()]
        super().__init__(*layers[:-1])
        self.copies, self.sizes = copies, tuple(sizes)

    def forward(self, x: Tensor, copies: slice = slice(None)) -> Tensor:
        """Map `[C, N, inputs]` to `[C, N, outputs]`, with all copies or a slice of them."""
        for layer in self:
            x = layer(x, copies) if isinstance(layer, StackedLinear) else layer(x)
        return x

    def scale_output(self, factor: float) -> StackedMLP:
        """Shrink the last layer, so that a policy starts near its mean action; returns itself."""
        last = self[-1]
        assert isinstance(last, StackedLinear)
        with torch.no_grad():
            last.weight.mul_(factor)
            last.bias.zero_()
        return self


class StackedRBF(nn.Module):
    """C radial-basis networks of deep PILCO (Gal et al. 2016): Gaussian units, linear output without bias.

    Args:
        copies: number of networks C.
        inputs: input width.
        units: number of Gaussian units.
        outputs: output width.
    """

    def __init__(self, copies: int, inputs: int, units: int, outputs: int) -> None:
        super().__init__()
        self.copies = copies
        self.centers = nn.Parameter(torch.randn(copies, units, inputs))
        self.log_scales = nn.Parameter(torch.ones(copies, 1, inputs))
        self.weight = nn.Parameter(torch.randn(copies, units, outputs) / units**0.5)

    def forward(self, x: Tensor, copies: slice = slice(None)) -> Tensor:
        """Map `[C, N, inputs]` to `[C, N, outputs]`; the squared distances are one product, never `[N, units, inputs]`."""
        precision = torch.exp(-0.5 * self.log_scales[copies])
        distances = torch.cdist(x * precision, self.centers[copies] * precision, compute_mode="use_mm_for_euclid_dist")
        return torch.exp(-0.5 * distances.square()) @ self.weight[copies]


class Normalizer(nn.Module):
    """Standardisation with statistics in float64; a deviation below `floor` counts as 1 (constant inputs).

    Args:
        size: width D of the data.
        floor: smallest deviation taken as real.
    """

    mean: Tensor
    std: Tensor
    loc: Tensor
    inverse_std: Tensor

    def __init__(self, size: int, floor: float = 1e-6) -> None:
        super().__init__()
        self.floor = floor
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("std", torch.ones(size, dtype=torch.float64))
        self.register_buffer("loc", torch.zeros(size))
        self.register_buffer("inverse_std", torch.ones(size))

    @torch.no_grad()
    def fit(self, data: Tensor) -> None:
        """Set the statistics to those of `data` `[..., D]`. With fewer than two rows the deviations stay 1."""
        rows = data.reshape(-1, data.shape[-1]).double()
        std = rows.std(0) if len(rows) > 1 else torch.ones_like(self.std)
        self.mean.copy_(rows.mean(0))
        self.std.copy_(torch.where(std > self.floor, std, torch.ones_like(std)))
        self.loc.copy_(self.mean)
        self.inverse_std.copy_(self.std.reciprocal())

    def forward(self, x: Tensor) -> Tensor:
        """Standardise `[..., D]`."""
        return (x - self.loc) * self.inverse_std

    def inverse(self, x: Tensor) -> Tensor:
        """Undo `forward`."""
        return x / self.inverse_std + self.loc
