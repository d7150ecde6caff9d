"""Amortised inference: a set of transitions becomes a Gaussian belief, with no gradient at test time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torch import Tensor, nn


class GraphEncoder(nn.Module):
    """Message passing from context to context and from context to target (GSSM Eq. 2-4, Listing 1).

    All sums over nodes are matrix products: no tensor of size N x N x Z exists, and all that depends on the context alone
    (`keys`, `values`, `loc`, `scale`) is computed once, in `context`, and kept in the belief.

    Args:
        inputs: width X of a node's input x = [state features, action features].
        outputs: width Y of a node's output y.
        latent: Z.
        width: hidden width of the node map (`dim_latxy`) and width of the similarity embedding (`dim_latx`).
        layers: number n of hidden-to-hidden maps of the node map.
        message: `sum` is Eq. 4; `mean` is the listing, which divides once more by the context length.
        beta: inverse temperature of the attention; the paper's constant is 1.
        learn_beta: make `beta` a parameter.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        latent: int,
        width: int = 32,
        layers: int = 2,
        message: str = "sum",
        beta: float = 1.0,
        learn_beta: bool = False,
    ) -> None:
        super().__init__()
        self.message = message
        self.similarity = nn.Linear(inputs, width, bias=False)
        hidden = [module for _ in range(layers) for module in (nn.Linear(width, width), nn.ReLU())]
        self.nodes = nn.Sequential(
            nn.Linear(inputs + outputs, width, bias=False),
            nn.LayerNorm(width),
            nn.ReLU(),
            *hidden,
            nn.Linear(width, latent),
        )
        self.task_loc, self.task_log_var = nn.Linear(latent, latent), nn.Linear(latent, latent)
        self.point_loc, self.point_log_var = nn.Linear(latent, latent), nn.Linear(latent, latent)
        if learn_beta:
            self.beta = nn.Parameter(torch.tensor(float(beta)))
        else:
            self.register_buffer("beta", torch.tensor(float(beta)), persistent=False)

    def embed(self, x: Tensor) -> Tensor:
        """Unit vectors whose products are the cosine similarities of Eq. 2, `[..., X] -> [..., L]`."""
        return F.normalize(self.similarity(x), dim=-1, eps=1e-8)

    def context(self, x: Tensor, y: Tensor) -> TensorDict:
        """Propagate once over the context graph and pool (Eq. 2-3, 5).

        Args:
            x: `[M, K, X]`; K may be 0, which gives the learned prior.
            y: `[M, K, Y]`.

        Returns:
            Belief `[M]` with `loc`, `scale` `[M, Z]` of q(z_c), and the context-only terms `keys` `[M, K, L]`,
            `values` `[M, K, Z]`.
        """
        keys = self.embed(x)
        nodes = self.nodes(torch.cat([x, y], -1))
        values = nodes
        if x.shape[1] > 1:
            similarity = self.beta * keys @ keys.mT
            similarity.diagonal(dim1=-2, dim2=-1).fill_(-torch.inf)  # R, a softmax over the others, has no diagonal
            values = nodes + torch.softmax(similarity, -1) @ nodes  # L h with L = R + I
        pooled = values.sum(1) / max(x.shape[1], 1)
        loc, scale = _gaussian(self.task_loc(pooled), self.task_log_var(pooled))
        return TensorDict({"loc": loc, "scale": scale, "keys": keys, "values": values}, batch_size=[x.shape[0]])

    def target(self, x: Tensor, belief: TensorDict) -> tuple[Tensor, Tensor]:
        """Posterior q(z_t | x_t, context) of every target (Eq. 4).

        Args:
            x: `[M, N, X]`.
            belief: what `context` gave, batch `[M]`.

        Returns:
            Mean and deviation, `[M, N, Z]` each.
        """
        keys, values = belief["keys"], belief["values"]
        if values.shape[1] > 0:
            messages = torch.softmax(self.beta * self.embed(x) @ keys.mT, -1) @ values
            if self.message == "mean":
                messages = messages / values.shape[1]
        else:
            messages = values.new_zeros(*x.shape[:-1], values.shape[-1])
        return _gaussian(self.point_loc(messages), self.point_log_var(messages))


def _gaussian(loc: Tensor, log_var: Tensor) -> tuple[Tensor, Tensor]:
    # a deviation outside [e-5, e2] is no longer a belief but a numerical accident
    return loc, torch.exp(0.5 * log_var.clamp(-10.0, 4.0))
