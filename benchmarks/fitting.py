"""Fitting the dynamics model the way the loop does, against a bare PyTorch loop over the same network."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks import bare
from benchmarks.measure import Ratio, compare, ratio
from benchmarks.setting import Setting, prepare
from mbrl_lightning.data.batches import context_target
from mbrl_lightning.models.base import MAX_GRAD_NORM

OURS, BARE = "loop's path", "bare PyTorch"
STEPS = 30


def ours(setting: Setting, lengths: list[int]) -> None:
    """What `MetaLoop` does in its model stage: draw, share, guarded and clipped step."""
    cfg, dynamics = setting.cfg.dynamics, setting.algorithm.dynamics
    for length in lengths:
        batch = context_target(setting.real, cfg, setting.generator, setting.family.scale, context=length)
        batch = setting.step.share(batch)
        setting.step(
            lambda batch=batch: dynamics.training_step(batch),
            setting.algorithm.optimizers["dynamics"],
            MAX_GRAD_NORM,
        )


class BareFit:
    """The same network, batch sizes, optimiser and clipping on two plain, standardised tensors."""

    def __init__(self, setting: Setting) -> None:
        self.cfg, self.model, self.generator = (
            setting.cfg.dynamics,
            setting.algorithm.dynamics,
            setting.generator,
        )
        data = setting.real.transitions()
        self.x, self.y = self.model.inputs(data["observation"], data["action"]), self.model.targets(data)
        self.table, self.counts = setting.real.rows(exploratory=True)
        self.optimizer = self.model.configure_optimizers()
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]

    def draw(self, length: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Context and targets of random tasks, and noise."""
        cfg, draw = self.cfg, self.generator
        tasks = torch.randperm(len(self.table), generator=draw)[: cfg.tasks].unsqueeze(1)
        order = torch.rand(cfg.tasks, self.table.shape[1], generator=draw).topk(length, dim=1).indices
        context = self.table[tasks, order]
        target = self.table[tasks, (torch.rand(cfg.tasks, cfg.targets, generator=draw) * self.counts[tasks]).long()]
        noise = torch.randn(cfg.tasks, cfg.targets, cfg.latent_dim, generator=draw)
        return self.x[context], self.y[context], self.x[target], self.y[target], noise

    def __call__(self, lengths: list[int]) -> None:
        """One step for each context length."""
        for length in lengths:
            self.optimizer.zero_grad(set_to_none=True)
            bare.loss(self.model, self.draw(length)).backward()
            torch.nn.utils.clip_grad_norm_(self.parameters, MAX_GRAD_NORM)
            self.optimizer.step()


def run(repeats: int) -> list[Ratio]:
    """Both families' ratios; both sides draw their own batches, with the same context lengths."""
    ratios = []
    for conf in ("cartpole", "half_cheetah"):
        setting = prepare(conf)
        cfg = setting.cfg.dynamics
        lengths = torch.randint(cfg.context + 1, (STEPS,), generator=setting.generator).tolist()
        rival = BareFit(setting)
        sides = {
            OURS: lambda setting=setting, lengths=lengths: ours(setting, lengths),
            BARE: lambda rival=rival, lengths=lengths: rival(lengths),
        }
        case = f"{conf}: {STEPS} steps, {cfg.tasks} tasks x {cfg.targets} targets, {cfg.members} members"
        ratios.append(ratio("model fitting", case, compare(sides, repeats, 1), OURS, BARE, ceiling=1.2))
    return ratios
