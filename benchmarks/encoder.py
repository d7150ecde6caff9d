"""GSSM with matrix products against GSSM with explicit messages, at N context and N target transitions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict import TensorDict

from benchmarks.graph_rival import ExpandedEncoder
from benchmarks.measure import Memory, Ratio, compare, memory, ratio
from benchmarks.setting import prepare
from mbrl_lightning.models.latent import LatentDynamics

TASKS, SIZES = 4, (100, 200, 500)
OURS, RIVAL = "matrix products", "explicit messages"


def models(latent: int) -> tuple[LatentDynamics, LatentDynamics, TensorDict]:
    """Ours and the rival with equal weights, and transitions `[M, 2 max N]` of half-cheetah."""
    setting = prepare("half_cheetah", TASKS, 2 * max(SIZES))
    cfg = setting.cfg.dynamics
    cfg.latent_dim, cfg.members, cfg.layers = latent, 1, 5  # the paper's network (Table 5)
    data = setting.real.draw_targets(torch.arange(TASKS), 2 * max(SIZES), setting.generator)
    ours, rival = LatentDynamics(setting.family.spec, cfg), LatentDynamics(setting.family.spec, cfg)
    ours.observe(setting.real.transitions())
    encoder = ours.encoder
    rival.encoder = ExpandedEncoder(
        encoder.similarity.in_features,
        encoder.nodes[0].in_features - encoder.similarity.in_features,
        latent,
        cfg.width,
    )
    rival.load_state_dict(ours.state_dict())
    return ours, rival, data


def batch_of(data: TensorDict, size: int, latent: int) -> TensorDict:
    """Batch for `training_step` with N = K = `size`."""
    noise = torch.randn(TASKS, 1, size, latent, generator=torch.Generator().manual_seed(1))
    return TensorDict(
        {"context": data[:, :size], "target": data[:, size : 2 * size], "noise": noise}, batch_size=[TASKS]
    )


@torch.no_grad()
def forward(model: LatentDynamics, batch: TensorDict) -> torch.Tensor:
    """Belief from the context, then the predicted next observations `[M, N, S]`."""
    target = batch["target"]
    return model.imagine(target["observation"], target["action"], model.infer(batch["context"]))


@torch.no_grad()
def encode(model: LatentDynamics, batch: TensorDict) -> torch.Tensor:
    """Belief from the context, then the codes of all targets `[M, N, Z]`."""
    target = batch["target"]
    return model.code(model.inputs(target["observation"], target["action"]), model.infer(batch["context"]))


def train_encoder(model: LatentDynamics, optimizer: torch.optim.Optimizer, batch: TensorDict) -> None:
    """One optimiser step on the codes' mean square: forward and backward through the encoder alone."""
    target = batch["target"]
    optimizer.zero_grad()
    codes = model.code(model.inputs(target["observation"], target["action"]), model.infer(batch["context"]))
    codes.square().mean().backward()
    optimizer.step()


def train(model: LatentDynamics, optimizer: torch.optim.Optimizer, batch: TensorDict) -> None:
    """One optimiser step on the evidence lower bound."""
    optimizer.zero_grad()
    model.training_step(batch)["loss"].backward()
    optimizer.step()


def run(repeats: int, latent: int = 16) -> tuple[list[Ratio], list[Memory]]:
    """All ratios and memories.

    The target is the encoder's, where the two sides differ; the whole model adds a decoder that both share.

    Args:
        repeats: rounds.
        latent: Z; the paper's table of parameter counts has 16.
    """
    ours, rival, data = models(latent)
    optimizers = {id(model): model.configure_optimizers() for model in (ours, rival)}
    works: dict[str, Callable[[LatentDynamics, TensorDict], object]] = {
        "encoder, forward": encode,
        "encoder, training step": lambda model, batch: train_encoder(model, optimizers[id(model)], batch),
        "whole model, forward": forward,
        "whole model, training step": lambda model, batch: train(model, optimizers[id(model)], batch),
    }
    ratios: list[Ratio] = []
    memories: list[Memory] = []
    for size in SIZES:
        batch = batch_of(data, size, latent)
        torch.testing.assert_close(encode(rival, batch), encode(ours, batch), rtol=1e-4, atol=1e-4)
        for name, work in works.items():
            sides = {
                OURS: lambda work=work, batch=batch: work(ours, batch),
                RIVAL: lambda work=work, batch=batch: work(rival, batch),
            }
            case = f"{name}, N = {size}"
            floor = 10.0 if size == max(SIZES) and name.startswith("encoder") else None
            seconds = compare(sides, repeats, max(1000 // size, 1))
            ratios.append(ratio("GSSM", case, seconds, RIVAL, OURS, floor=floor))
            memories += [memory(case, side, sides[side]) for side in sides]
            rival.load_state_dict(ours.state_dict())
    return ratios, memories
