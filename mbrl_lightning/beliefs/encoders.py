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

    codes = 1  # vectors of width Z that a decoder is told

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
            own = torch.eye(keys.shape[1], dtype=torch.bool, device=keys.device)
            similarity.masked_fill_(own, -torch.inf)  # R, a softmax over the others, has no diagonal
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

    def posterior(self, x: Tensor, y: Tensor, belief: TensorDict) -> tuple[Tensor, Tensor]:
        """What z is drawn from in training, `[M, N, Z]` both: q(z_t), which does not see the targets' y (Eq. 7)."""
        return self.target(x, belief)

    def code(self, x: Tensor, latent: Tensor, belief: TensorDict) -> Tensor:
        """What the decoder is told, `[M, N, Z]`: z_t itself."""
        return latent


class MeanEncoder(nn.Module):
    """A neural process (Garnelo et al. 2018), MLSM-v0 of GSSM's tables: q(z | context) from the mean of the points' features.

    There is one z a task, which all of its targets share. Arguments as for `GraphEncoder`; `message` says nothing here.
    """

    codes = 1

    def __init__(self, inputs: int, outputs: int, latent: int, width: int = 32, message: str = "mean") -> None:
        super().__init__()
        self.nodes = _points(inputs + outputs, width, latent)
        self.task_loc, self.task_log_var = nn.Linear(latent, latent), nn.Linear(latent, latent)

    def forward(self, x: Tensor) -> TensorDict:
        """Belief `[M]` after transitions `[M, K, X]`, as `ProductEncoder` has it: `loc`, `scale` and `latent` (the mean)."""
        belief = self.context(x, x[..., :0]).select("loc", "scale")
        return belief.set("latent", belief["loc"])

    def context(self, x: Tensor, y: Tensor) -> TensorDict:
        """Belief `[M]` after `[M, K, X]` and `[M, K, Y]`: `loc`, `scale` `[M, Z]`, and the points' `nodes` `[M, K, Z]`."""
        nodes = self.nodes(torch.cat([x, y], -1))
        loc, scale = self._pooled(nodes)
        return TensorDict({"loc": loc, "scale": scale, "nodes": nodes}, batch_size=[x.shape[0]])

    def _pooled(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        pooled = nodes.sum(1) / max(nodes.shape[1], 1)
        return _gaussian(self.task_loc(pooled), self.task_log_var(pooled))

    def target(self, x: Tensor, belief: TensorDict) -> tuple[Tensor, Tensor]:
        """Mean and deviation of q(z | context), `[M, 1, Z]`: the same for every target `[M, N, X]`."""
        return belief["loc"].unsqueeze(1), belief["scale"].unsqueeze(1)

    def posterior(self, x: Tensor, y: Tensor, belief: TensorDict) -> tuple[Tensor, Tensor]:
        """q(z | context, targets), `[M, 1, Z]` both, for targets `[M, N, X]`, `[M, N, Y]`: z of training, by the same encoder."""
        nodes = torch.cat([belief["nodes"], self.nodes(torch.cat([x, y], -1))], 1)
        loc, scale = self._pooled(nodes)
        return loc.unsqueeze(1), scale.unsqueeze(1)

    def code(self, x: Tensor, latent: Tensor, belief: TensorDict) -> Tensor:
        """What the decoder is told at `[M, N, X]`, `[M, N, Z]`: z, `[M, 1 or N, Z]`."""
        return latent.expand(-1, x.shape[1], -1)


class AttentiveEncoder(MeanEncoder):
    """An attentive neural process (Kim et al. 2019), MLSM-v1: beside z each target is told what it finds in the context.

    That is a deterministic code, scaled dot-product attention from the target's x to the context's, over values of their own.
    """

    codes = 2

    def __init__(self, inputs: int, outputs: int, latent: int, width: int = 32, message: str = "mean") -> None:
        super().__init__(inputs, outputs, latent, width, message)
        self.values, self.keys = _points(inputs + outputs, width, latent), nn.Linear(inputs, width, bias=False)

    def context(self, x: Tensor, y: Tensor) -> TensorDict:
        """As MeanEncoder.context, with `keys` `[M, K, L]` and `values` `[M, K, Z]`."""
        return super().context(x, y).update({"keys": self.keys(x), "values": self.values(torch.cat([x, y], -1))})

    def code(self, x: Tensor, latent: Tensor, belief: TensorDict) -> Tensor:
        """The latent beside what is found in the context, nought where that is empty: `[M, N, 2 Z]`."""
        keys = belief["keys"]
        weights = torch.softmax(self.keys(x) @ keys.mT * keys.shape[-1] ** -0.5, -1)  # [M, N, K]
        return torch.cat([super().code(x, latent, belief), weights @ belief["values"]], -1)


def _points(inputs: int, width: int, latent: int) -> nn.Sequential:
    hidden = [module for _ in range(2) for module in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), *hidden, nn.Linear(width, latent))


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
