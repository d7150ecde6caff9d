"""The rival of the context encoder: the same mathematics with a message for each pair of nodes."""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import Tensor

from mbrl_lightning.beliefs.encoders import GraphEncoder


class ExpandedEncoder(GraphEncoder):
    """Messages are laid out as `[M, N, N, Z]` and summed, the way the paper's listing computes.

    Weights, results and everything else are those of `GraphEncoder`; only the two sums over nodes differ.
    """

    def context(self, x: Tensor, y: Tensor) -> TensorDict:
        """As `GraphEncoder.context`."""
        tasks, nodes = x.shape[:2]
        keys = self.embed(x)
        features = self.nodes(torch.cat([x, y], -1))
        diagonal = torch.eye(nodes, device=x.device).repeat(tasks, 1, 1)
        weights = torch.softmax(keys @ keys.mT, -1) * (1 - diagonal)
        weights = weights / weights.sum(-1, keepdim=True).clamp_min(1e-8) + diagonal
        values = (weights.unsqueeze(-1) * features.unsqueeze(1).expand(-1, nodes, -1, -1)).sum(2)
        pooled = values.mean(1)
        loc, scale = self._split(self.task_loc(pooled), self.task_log_var(pooled))
        return TensorDict({"loc": loc, "scale": scale, "keys": keys, "values": values}, batch_size=[tasks])

    def target(self, x: Tensor, belief: TensorDict) -> tuple[Tensor, Tensor]:
        """As `GraphEncoder.target`."""
        weights = torch.softmax(self.embed(x) @ belief["keys"].mT, -1)
        expanded = belief["values"].unsqueeze(1).expand(-1, x.shape[1], -1, -1)
        messages = (weights.unsqueeze(-1) * expanded).sum(2)
        return self._split(self.point_loc(messages), self.point_log_var(messages))

    @staticmethod
    def _split(loc: Tensor, log_var: Tensor) -> tuple[Tensor, Tensor]:
        return loc, torch.exp(0.5 * log_var.clamp(-10.0, 4.0))
