"""Variational inference without an encoder: a Gaussian q(z) whose mean and log deviation are numbers that gradient steps move.

For M tasks at once a q is `[M, 2, Z]`, (mu, log sigma); zeros are the prior N(0, I). Steps are Adam's (Kingma & Ba 2015), and
what Adam remembers is carried in the belief beside q, so that a belief goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict import TensorDict
from torch import Tensor

from mbrl_lightning.networks.gaussians import kl_divergence

DECAY, SMALL = (0.8, 0.9), 1e-8  # short: the losses have no noise, and their slopes fall by orders of magnitude

LOG_SCALE = (-7.0, 0.0)  # what is known of a task is at least the prior


def prior(tasks: int, latent: int, device: torch.device) -> TensorDict:
    """Belief `[M]` of M = `tasks` tasks of which nothing is known; Z = `latent`."""
    q = torch.zeros(tasks, 2, latent, device=device)
    moments = torch.zeros(tasks, 2, 2, latent, device=device)
    return believed(TensorDict({"q": q, "moments": moments, "steps": moments[:, 0, 0, 0]}, batch_size=[tasks]))


def believed(belief: TensorDict) -> TensorDict:
    """The belief with what follows from its `q`: `loc`, `scale`, and `latent`, the mean, `[M, Z]` each."""
    loc, log_scale = belief["q"].unbind(1)
    return belief.update({"loc": loc, "scale": log_scale.exp(), "latent": loc})


def from_prior(q: Tensor) -> Tensor:
    """KL(q || N(0, I)), `[M, 2, Z] -> [M]`."""
    loc, log_scale = q.unbind(1)
    return kl_divergence(loc, log_scale.exp(), torch.zeros_like(loc), torch.ones_like(loc))


def sigma_points(q: Tensor) -> Tensor:
    """2 Z points with exactly the mean and covariance of each q, `[M, 2, Z] -> [2 Z, M, Z]`: expectations without chance."""
    loc, log_scale = q.unbind(1)
    unit = torch.eye(loc.shape[1], device=q.device) * loc.shape[1] ** 0.5
    return loc + torch.cat([unit, -unit]).unsqueeze(1) * log_scale.exp()


def infer(belief: TensorDict, losses: Callable[[Tensor], Tensor], moving: Tensor, steps: int, lr: float) -> TensorDict:
    """Belief after `steps` Adam steps of the rows `moving` `[M]` down `losses` (`[M, 2, Z] -> [M]`, each of its own row)."""
    q, moments, count = belief["q"], belief["moments"], belief["steps"]
    for _ in range(steps):
        with torch.enable_grad():
            leaf = q.detach().requires_grad_()
            (slope,) = torch.autograd.grad(losses(leaf).sum(), leaf)
        powers = torch.stack([slope, slope.square()], 1)
        decay = torch.tensor(DECAY).to(q).view(1, 2, 1, 1)
        fresh, since = moments.lerp(powers, 1 - decay), count + 1
        first, second = (fresh / (1 - decay ** since.view(-1, 1, 1, 1))).unbind(1)
        stepped = q - lr * first / (second.sqrt() + SMALL)
        stepped[:, 1].clamp_(*LOG_SCALE)
        q = torch.where(moving.view(-1, 1, 1), stepped, q)
        moments = torch.where(moving.view(-1, 1, 1, 1), fresh, moments)
        count = torch.where(moving, since, count)
    return believed(belief.clone(False).update({"q": q, "moments": moments, "steps": count}))
