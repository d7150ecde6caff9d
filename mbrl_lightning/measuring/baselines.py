"""The two baselines of a latent model, fitted to the same data with as many updates: one told nothing, one told the task."""

from __future__ import annotations

from functools import partial

import torch

from mbrl_lightning.config.schema import Config
from mbrl_lightning.data.batches import context_target
from mbrl_lightning.data.buffer import TaskBuffer
from mbrl_lightning.envs.family import TaskFamily
from mbrl_lightning.models.base import MAX_GRAD_NORM
from mbrl_lightning.models.mlp import MLPDynamics
from mbrl_lightning.networks.step import GradientStep


def fit_baseline(
    family: TaskFamily,
    cfg: Config,
    real: TaskBuffer,
    step: GradientStep,
    generator: torch.Generator,
    updates: int,
    told: bool,
) -> MLPDynamics:
    """Fit a context-free model, or one that is `told` the scaled task parameters, with the learning rate falling to 0.

    Sizes of the decoder and of the batches are those of the latent model; `generator` draws the batches.
    """
    dynamics = MLPDynamics(family.spec, cfg.dynamics, len(family.parameters) if told else 0).to(step.fabric.device)
    dynamics.see(real)
    optimizer = dynamics.configure_optimizers()
    for update in range(updates):
        for group in optimizer.param_groups:
            group["lr"] = cfg.dynamics.lr * (1 - update / updates)
        batch = step.share(context_target(real, cfg.dynamics, generator, family.scale, context=1))
        step(partial(dynamics.training_step, batch), optimizer, MAX_GRAD_NORM)
    step.check()
    return dynamics


def baselines_of(
    family: TaskFamily, cfg: Config, real: TaskBuffer, step: GradientStep, generator: torch.Generator
) -> dict[str, MLPDynamics]:
    """`blind` and `told` models on a run's own data, with as many updates as the run gave its model."""
    loop = cfg.loop
    updates = loop.first_model_steps + (loop.iterations - 1) * loop.model_steps + loop.last_model_steps
    arms = (("blind", False), ("told", True))
    return {name: fit_baseline(family, cfg, real, step, generator, updates, told) for name, told in arms}
