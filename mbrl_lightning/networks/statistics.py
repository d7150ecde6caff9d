"""Statistics of rows that grow: those of all are made of those of their parts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def moments(data: Tensor) -> Tensor:
    """Of `data` `[..., D]` in float64: how many rows, their mean, variance and mean square, `[4, D]`."""
    rows = data.reshape(-1, data.shape[-1]).double()
    variance = rows.std(0).square() if len(rows) > 1 else torch.zeros_like(rows[0])
    return torch.stack([torch.full_like(variance, len(rows)), rows.mean(0), variance, rows.square().mean(0)])


def joined(parts: Sequence[Tensor]) -> Tensor:
    """The `moments` of all data that `parts` are those of (Chan et al. 1979); of one part it is that part to the last bit."""
    rows, mean, variance, square = torch.stack(list(parts)).unbind(1)
    count = rows.sum(0)
    share, free = rows / count, (count - 1).clamp_min(1)
    whole = (share * mean).sum(0)
    variance = ((rows - 1) / free * variance + rows / free * (mean - whole).square()).sum(0)
    return torch.stack([count, whole, variance, (share * square).sum(0)])
