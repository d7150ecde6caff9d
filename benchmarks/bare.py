"""The networks of GSSM+APS called bare: plain tensors, PyTorch's own layers and nothing else.

The standard to hold the library against: what remains when buffer, TensorDicts, guards, rewards and
terminations are taken away and the matrix products are kept. Weights are those of the library's modules.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mbrl_lightning.models.latent import LatentDynamics
from mbrl_lightning.policies.heads import Policy

Gaussian = tuple[Tensor, Tensor]


def context(model: LatentDynamics, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Gaussian]:
    """Keys, values and q(z_c) of standardised inputs `[M, K, X]` and targets `[M, K, Y]`."""
    encoder = model.encoder
    keys = F.normalize(encoder.similarity(x), dim=-1)
    nodes = encoder.nodes(torch.cat([x, y], -1))
    if x.shape[1] > 1:
        similarity = keys @ keys.mT
        similarity.diagonal(dim1=-2, dim2=-1).fill_(-torch.inf)
        nodes = nodes + torch.softmax(similarity, -1) @ nodes
    pooled = nodes.sum(1) / max(x.shape[1], 1)
    return keys, nodes, (encoder.task_loc(pooled), (0.5 * encoder.task_log_var(pooled)).exp())


def codes(model: LatentDynamics, x: Tensor, keys: Tensor, values: Tensor) -> Gaussian:
    """q(z_t) of standardised inputs `[M, N, X]`."""
    encoder = model.encoder
    if keys.shape[1] > 0:
        messages = torch.softmax(F.normalize(encoder.similarity(x), dim=-1) @ keys.mT, -1) @ values
    else:
        messages = values.new_zeros(*x.shape[:-1], values.shape[-1])
    return encoder.point_loc(messages), (0.5 * encoder.point_log_var(messages)).exp()


def decode(model: LatentDynamics, x: Tensor, code: Tensor, members: int) -> Tensor:
    """Decoder stack on `[M, N, X]` and `[M, N, Z]`, each member on its block of the rows."""
    tasks, rows = x.shape[:2]
    h = torch.cat([x, code], -1).view(tasks, members, rows // members, -1).transpose(0, 1)
    h = h.reshape(members, tasks * rows // members, -1)
    layers = [layer for layer in model.decoder if hasattr(layer, "weight")]
    for layer in layers[:-1]:
        h = torch.relu(torch.baddbmm(layer.bias[:members], h, layer.weight[:members]))
    h = torch.baddbmm(layers[-1].bias[:members], h, layers[-1].weight[:members])
    return h.view(members, tasks, rows // members, -1).transpose(0, 1).reshape(tasks, rows, -1)


def loss(model: LatentDynamics, batch: tuple[Tensor, Tensor, Tensor, Tensor, Tensor]) -> Tensor:
    """GSSM Eq. 7, one particle: x and y of the context `[M, K, .]` and targets `[M, N, .]`, noise `[M, N, Z]`."""
    cx, cy, x, y, noise = batch
    keys, values, (loc_c, scale_c) = context(model, cx, cy)
    loc, scale = codes(model, x, keys, values)
    predicted = decode(model, x, loc + scale * noise, model.decoder.copies)
    log_scale = model.log_scale
    likelihood = (0.5 * ((y - predicted) / log_scale.exp()).square() + log_scale).sum(-1).mean()
    loc_c, scale_c = loc_c.unsqueeze(1), scale_c.unsqueeze(1)
    ratio = (scale / scale_c).square()
    kl = 0.5 * (ratio + ((loc - loc_c) / scale_c).square() - 1 - ratio.log()).sum(-1).mean()
    return likelihood + kl


def mlp(policy: Policy, inputs: Tensor) -> Tensor:
    """Mean actions of all copies, `[C, N, F + Z] -> [C, N, A]`."""
    h = inputs
    for layer in policy.net:
        h = torch.baddbmm(layer.bias, h, layer.weight) if hasattr(layer, "weight") else layer(h)
    return torch.tanh(h) if policy.squash else h


def next_observation(
    model: LatentDynamics,
    observation: Tensor,
    action: Tensor,
    noise: Tensor,
    keys: Tensor,
    values: Tensor,
    members: int,
) -> Tensor:
    """One imagined step for `[M, B, S]`, `[M, B, A]`, code noise `[M, B, Z]`."""
    spec = model.spec
    x = torch.cat([spec.features(observation), action], -1)
    x = (x - model.input_norm.loc) * model.input_norm.inverse_std
    loc, scale = codes(model, x, keys, values)
    y = decode(model, x, loc + scale * noise, members)
    following = spec.untarget(observation, y / model.target_norm.inverse_std + model.target_norm.loc)
    return torch.clamp(following, model.low, model.high)
