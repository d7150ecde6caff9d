"""Diagonal Gaussians."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LOG_VAR = (-9.0, 1.0)


def soft_bounds(log_var: Tensor) -> Tensor:
    """Log-variances `[...]` of standardised targets kept within LOG_VAR by softplus, as in PETS (Chua et al. 2018)."""
    low, high = LOG_VAR
    return low + F.softplus(high - F.softplus(high - log_var) - low)


def log_prob(value: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """Log density of `value` `[..., D]`, summed over the last dimension; means and deviations broadcastable to it."""
    scale = torch.as_tensor(scale, dtype=value.dtype, device=value.device)
    deviations = (value - loc) / scale
    return -(0.5 * deviations.square() + scale.log() + 0.5 * math.log(2 * math.pi)).sum(-1)


def kl_divergence(loc_p: Tensor, scale_p: Tensor, loc_q: Tensor, scale_q: Tensor) -> Tensor:
    """KL(p || q), `[..., Z] -> [...]` (GSSM Eq. 7 has p = q(z_t), q = q(z_c))."""
    ratio = (scale_p / scale_q).square()
    return 0.5 * (ratio + ((loc_p - loc_q) / scale_q).square() - 1 - ratio.log()).sum(-1)


def squashed_sample(loc: Tensor, log_scale: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Sample of tanh(loc + scale * noise), `[..., A]`, and its log density `[...]` (Haarnoja et al. 2018, appendix C).

    The density's correction log(1 - tanh(u)^2) is taken as 2 (log 2 - u - softplus(-2 u)), which is exact where the tanh
    has saturated and 1 - tanh(u)^2 has rounded to 0.
    """
    value = torch.addcmul(loc, log_scale.exp(), noise)
    constant = 0.5 * noise.square() + (0.5 * math.log(2 * math.pi) + 2 * math.log(2))
    density = 2 * (value + F.softplus(-2 * value)) - log_scale - constant
    return value.tanh(), density.sum(-1)
