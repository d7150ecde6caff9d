"""Contexts and targets: from the buffer, or from recorded data for a plain `lightning.Trainer`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import lightning as L
import torch
from tensordict import TensorDict
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from mbrl_lightning.config.schema import DynamicsConfig
from mbrl_lightning.data.buffer import TaskBuffer

Scale = Callable[[Tensor], Tensor]


def context_target(
    buffer: TaskBuffer, cfg: DynamicsConfig, generator: torch.Generator, scale: Scale, context: int | None = None
) -> TensorDict:
    """One batch of M = `cfg.tasks` tasks for the evidence lower bound (GSSM Algorithm 1, section G.2).

    Args:
        buffer: real transitions.
        cfg: sizes.
        generator: draws everything random in the batch, the particles' noise too.
        scale: task parameters `[M, P]` to about [-1, 1], for the oracle.
        context: K; by default uniform in 0 .. `cfg.context`, so that the empty context is learned too.

    Returns:
        Batch `[M]`: `context` `[M, K]`, `target` `[M, N]`, `noise` `[M, particles, N, Z]`, `task` `[M, P]`.
    """
    tasks = buffer.draw_tasks(cfg.tasks, generator)
    count = int(torch.randint(cfg.context + 1, (), generator=generator)) if context is None else context
    noise = torch.randn(len(tasks), cfg.particles, cfg.targets, cfg.latent_dim, generator=generator)
    return TensorDict(
        {
            "context": buffer.draw_context(tasks, count, generator),
            "target": buffer.draw_targets(tasks, cfg.targets, generator),
            "noise": noise,
            "task": scale(buffer.tasks[tasks]).float(),
        },
        batch_size=[len(tasks)],
    )


class ContextTargets(IterableDataset):
    """`steps` batches of contexts and targets an epoch, each a new draw."""

    def __init__(self, buffer: TaskBuffer, cfg: DynamicsConfig, scale: Scale, steps: int, seed: int) -> None:
        self.buffer, self.cfg, self.scale, self.steps = buffer, cfg, scale, steps
        self.generator = torch.Generator().manual_seed(seed)

    def __iter__(self) -> Iterator[TensorDict]:
        for _ in range(self.steps):
            yield context_target(self.buffer, self.cfg, self.generator, self.scale)


class TransitionData(L.LightningDataModule):
    """Recorded transitions for `lightning.Trainer().fit(dynamics, data)`.

    Args:
        buffer: filled with recorded data by `TaskBuffer.extend`.
        cfg: batch sizes.
        scale: as in `context_target`.
        steps: batches an epoch.
        seed: of the draws.
    """

    def __init__(
        self,
        buffer: TaskBuffer,
        cfg: DynamicsConfig,
        scale: Scale = torch.Tensor.float,
        steps: int = 100,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.dataset = ContextTargets(buffer, cfg, scale, steps, seed)

    def train_dataloader(self) -> DataLoader:
        """Batches as they come; workers would only copy the buffer."""
        return DataLoader(self.dataset, batch_size=None, num_workers=0, collate_fn=_as_it_is)


def _as_it_is(batch: TensorDict) -> TensorDict:
    # PyTorch's own conversion takes a TensorDict for a dict and breaks on it
    return batch
