"""Diagonal Gaussians: the two formulas that every latent model needs."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def log_prob(value: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """Log density of a diagonal Gaussian, summed over the last dimension.

    Args:
        value: `[..., D]`.
        loc: means, broadcastable to `[..., D]`.
        scale: standard deviations > 0, broadcastable to `[..., D]`.

    Returns:
        `[...]`.
    """
    scale = torch.as_tensor(scale, dtype=value.dtype, device=value.device)
    deviations = (value - loc) / scale
    return -(0.5 * deviations.square() + scale.log() + 0.5 * math.log(2 * math.pi)).sum(-1)


def kl_divergence(loc_p: Tensor, scale_p: Tensor, loc_q: Tensor, scale_q: Tensor) -> Tensor:
    """KL(p || q) of diagonal Gaussians, summed over the last dimension (GSSM Eq. 7 has p = q(z_t), q = q(z_c)).

    Args:
        loc_p: `[..., Z]`.
        scale_p: `[..., Z]`, > 0.
        loc_q: broadcastable to `[..., Z]`.
        scale_q: broadcastable to `[..., Z]`, > 0.

    Returns:
        `[...]`, >= 0.
    """
    ratio = (scale_p / scale_q).square()
    return 0.5 * (ratio + ((loc_p - loc_q) / scale_q).square() - 1 - ratio.log()).sum(-1)
