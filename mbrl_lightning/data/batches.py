"""Contexts and targets: from the buffer, or from recorded data for a plain `lightning.Trainer`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import lightning as L
import torch
from tensordict import TensorDict
from torch import Tensor

from mbrl_lightning.config.schema import DynamicsConfig
from mbrl_lightning.data.buffer import TaskBuffer

Scale = Callable[[Tensor], Tensor]


def context_target(
    buffer: TaskBuffer,
    cfg: DynamicsConfig,
    generator: torch.Generator,
    scale: Scale,
    context: int | None = None,
    noise_dim: int | None = None,
) -> TensorDict:
    """One batch of M = `cfg.tasks` tasks for the evidence lower bound (GSSM Algorithm 1, section G.2).

    K is `context`, or uniform in 0 .. `cfg.context`, so that the empty context is learned too; Z is `noise_dim` or the latent's.

    Returns:
        Batch `[M]`: `context` `[M, K]`, `target` `[M, N]`, `noise` of the particles `[M, particles, N, Z]`, and for the oracle
        `task` `[M, P]`, scaled to about [-1, 1].
    """
    tasks = buffer.draw_tasks(cfg.tasks, generator)
    count = int(torch.randint(cfg.context + 1, (), generator=generator)) if context is None else context
    noise = torch.randn(len(tasks), cfg.particles, cfg.targets, noise_dim or cfg.latent_dim, generator=generator)
    return TensorDict(
        {
            "context": buffer.draw_context(tasks, count, generator),
            "target": buffer.draw_targets(tasks, cfg.targets, generator),
            "noise": noise,
            "task": scale(buffer.tasks[tasks]).float(),
        },
        batch_size=[len(tasks)],
    )


class TransitionData(L.LightningDataModule):
    """Recorded transitions for `lightning.Trainer().fit(dynamics, data)`: `steps` batches an epoch, each a new draw.

    The buffer is filled with recorded data by `TaskBuffer.extend`; `scale` takes task parameters `[M, P]` to about [-1, 1].
    """

    def __init__(
        self, buffer: TaskBuffer, cfg: DynamicsConfig, scale: Scale = Tensor.float, steps: int = 100, seed: int = 0
    ) -> None:
        super().__init__()
        self.buffer, self.cfg, self.scale, self.steps = buffer, cfg, scale, steps
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[TensorDict]:
        for _ in range(self.steps):
            yield context_target(self.buffer, self.cfg, self.generator, self.scale)

    def train_dataloader(self) -> TransitionData:
        """Itself: workers would only copy the buffer, and a `DataLoader` takes a TensorDict for a dict."""
        return self
