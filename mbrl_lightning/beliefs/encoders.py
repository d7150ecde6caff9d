"""Amortised inference: a set of transitions becomes a Gaussian belief, with no gradient at test time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torch import Tensor, nn

from mbrl_lightning.networks import StackedMLP

BETA = 1.0  # inverse temperature of the attention, the paper's constant


class GraphEncoder(nn.Module):
    """Message passing from context to context and from context to target (GSSM Eq. 2-4, Listing 1).

    All sums over nodes are matrix products: no tensor of size N x N x Z exists, and all that depends on the context alone
    (`keys`, `values`, `loc`, `scale`) is computed once, in `context`, and kept in the belief.

    A node is x = [state features, action features], of width X = `inputs`, and y, of width Y = `outputs`. `width` is that of the
    node map (`dim_latxy`) and of the similarity embedding (`dim_latx`). `message` is `sum` (Eq. 4) or `mean` (the listing,
    which divides once more by the context length).
    """

    def __init__(self, inputs: int, outputs: int, latent: int, width: int = 32, message: str = "sum") -> None:
        super().__init__()
        self.message = message
        self.similarity = nn.Linear(inputs, width, bias=False)
        hidden = [module for _ in range(2) for module in (nn.Linear(width, width), nn.ReLU())]
        self.nodes = nn.Sequential(
            nn.Linear(inputs + outputs, width, bias=False),
            nn.LayerNorm(width),
            nn.ReLU(),
            *hidden,
            nn.Linear(width, latent),
        )
        self.task_loc, self.task_log_var = nn.Linear(latent, latent), nn.Linear(latent, latent)
        self.point_loc, self.point_log_var = nn.Linear(latent, latent), nn.Linear(latent, latent)

    def embed(self, x: Tensor) -> Tensor:
        """Unit vectors whose products are the cosine similarities of Eq. 2, `[..., X] -> [..., L]`."""
        return F.normalize(self.similarity(x), dim=-1, eps=1e-8)

    def context(self, x: Tensor, y: Tensor) -> TensorDict:
        """Propagate once over the context graph, `[M, K, X]` and `[M, K, Y]`, and pool (Eq. 2-3, 5).

        Returns:
            Belief `[M]` with `loc`, `scale` `[M, Z]` of q(z_c), the learned prior where K = 0, and the context-only terms
            `keys` `[M, K, L]`, `values` `[M, K, Z]`.
        """
        keys = self.embed(x)
        nodes = self.nodes(torch.cat([x, y], -1))
        values = nodes
        if x.shape[1] > 1:
            similarity = BETA * keys @ keys.mT
            similarity.diagonal(dim1=-2, dim2=-1).fill_(-torch.inf)  # R, a softmax over the others, has no diagonal
            values = nodes + torch.softmax(similarity, -1) @ nodes  # L h with L = R + I
        pooled = values.sum(1) / max(x.shape[1], 1)
        loc, scale = _gaussian(self.task_loc(pooled), self.task_log_var(pooled))
        return TensorDict({"loc": loc, "scale": scale, "keys": keys, "values": values}, batch_size=[x.shape[0]])

    def target(self, x: Tensor, belief: TensorDict) -> tuple[Tensor, Tensor]:
        """Mean and deviation `[M, N, Z]` of q(z_t | x_t, context) for every target `[M, N, X]` under `belief` `[M]` (Eq. 4)."""
        keys, values = belief["keys"], belief["values"]
        if values.shape[1] == 0:
            messages = values.new_zeros(*x.shape[:-1], values.shape[-1])
        else:
            messages = torch.softmax(BETA * self.embed(x) @ keys.mT, -1) @ values
            messages = messages / values.shape[1] if self.message == "mean" else messages
        return _gaussian(self.point_loc(messages), self.point_log_var(messages))


def _gaussian(loc: Tensor, log_var: Tensor) -> tuple[Tensor, Tensor]:
    # a deviation outside [e-5, e2] is no longer a belief but a numerical accident
    return loc, torch.exp(0.5 * log_var.clamp(-10.0, 4.0))


class ProductEncoder(nn.Module):
    """A Gaussian factor for each transition; the belief is their normalised product (PEARL, section 4.1).

    The prior N(0, I) is no factor: it is what is believed before the first transition and nothing more, so that the first
    may widen the belief, and every further one narrows it. `inputs` is the width D of a transition, `latent` is Z.
    """

    def __init__(self, inputs: int, latent: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.net = StackedMLP(1, [inputs, *hidden, 2 * latent])

    def factors(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and precision (reciprocal variance) of each transition's factor, `[M, K, Z]` each, for `[M, K, D]`."""
        out = self.net(x.reshape(1, -1, x.shape[-1])).view(*x.shape[:-1], self.net.sizes[-1])
        # sums over K in half precision lose the last ones
        loc, raw = out.to(next(self.parameters()).dtype).chunk(2, -1)
        return loc, F.softplus(raw).clamp_min(1e-7).reciprocal()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> TensorDict:
        """Belief `[M]` after transitions `[M, K, D]`, but those where `mask` `[M, K]` is false.

        Returns:
            `loc`, `scale` and `latent` (the mean), `[M, Z]` each; N(0, I) where there is no transition.
        """
        means, precision = self.factors(x)
        if mask is not None:
            precision = precision * mask.unsqueeze(-1)
        total = precision.sum(1)
        total = torch.where(total > 0, total, torch.ones_like(total))
        loc = (precision * means).sum(1) / total
        return TensorDict({"loc": loc, "scale": total.rsqrt(), "latent": loc}, batch_size=[len(x)])
