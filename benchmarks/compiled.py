"""Whole updates with compiled losses against the same with losses as they are: drawing, guard, optimizer and targets in both."""

from __future__ import annotations

import torch
from lightning.fabric import Fabric
from tensordict import TensorDict

from benchmarks.measure import Ratio, Work, compare, ratio
from benchmarks.setting import prepare
from mbrl_lightning.config import compose
from mbrl_lightning.data.batches import context_target
from mbrl_lightning.envs import make_family
from mbrl_lightning.models.base import MAX_GRAD_NORM
from mbrl_lightning.networks.step import GradientStep
from mbrl_lightning.policies.sac import SAC

PLAIN, COMPILED = "losses as they are", "compiled losses"
UPDATES = 20


def gradient_step(compiled: bool) -> GradientStep:
    """One on this process's CPU."""
    return GradientStep(Fabric(accelerator="cpu", devices=1), compiled)


def actor_critic(conf: str, compiled: bool) -> Work:
    """`UPDATES` of a configuration's soft actor-critic without histories, on one batch of noise."""
    torch.manual_seed(0)
    cfg = compose({"conf": conf})
    spec = make_family(cfg.env.name, **cfg.env.options).spec
    sac = SAC(cfg.policy, cfg.sac, 1, spec.feature_dim, spec.action_dim, recurrent=0)
    rows, step = cfg.sac.batch, gradient_step(compiled)
    optimizer = torch.optim.Adam(sac.trained_parameters(), lr=cfg.sac.lr, fused=True)
    before, after = torch.randn(2, rows, spec.feature_dim)
    outcome = {"inputs": {"current": after}, "reward": torch.randn(rows, 1), "terminated": torch.zeros(rows, 1)}
    action = torch.randn(rows, spec.action_dim).tanh()
    batch = TensorDict({"inputs": {"current": before}, "action": action, "next": outcome}, batch_size=[rows])
    generator = torch.Generator().manual_seed(0)

    def work() -> None:
        for _ in range(UPDATES):
            sac.update(batch.set("noise", sac.noise(rows, generator)), step, optimizer)

    return work


def model(conf: str, compiled: bool) -> Work:
    """`UPDATES` of a configuration's GSSM, with contexts of any length."""
    setting, step = prepare(conf), gradient_step(compiled)
    cfg, dynamics = setting.cfg.dynamics, setting.algorithm.dynamics
    optimizer = setting.algorithm.optimizers["dynamics"]

    def draw() -> TensorDict:
        return context_target(setting.real, cfg, setting.generator, setting.family.scale)

    return lambda: step.fit(dynamics.training_step, draw, optimizer, UPDATES, MAX_GRAD_NORM)


def run(repeats: int) -> list[Ratio]:
    """Ratios of slim_humanoid's soft actor-critic and of two models; compiling itself is not in them."""
    cases = {
        "SAC of slim_humanoid": (actor_critic, "slim_humanoid", 1.4),
        "GSSM of cartpole": (model, "cartpole", 0.95),
        "GSSM of half_cheetah": (model, "half_cheetah", 0.95),
    }
    ratios = []
    for case, (make, conf, floor) in cases.items():
        sides = {PLAIN: make(conf, False), COMPILED: make(conf, True)}
        seconds = compare(sides, repeats, 1, warm=2)
        ratios.append(ratio("compiled losses", f"{case}, {UPDATES} updates", seconds, PLAIN, COMPILED, floor=floor))
    return ratios
