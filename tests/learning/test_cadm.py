"""CaDM on cart-poles of unseen masses: what it reads off ten transitions cuts the error on the next ten.

Control: the same model without a context, and with the context of another cart-pole.
"""

from __future__ import annotations

import functools

import pytest
import torch
from fakes import random_steps
from lightning.fabric import Fabric
from tensordict import TensorDict

from mbrl_lightning.algorithms import make_algorithm
from mbrl_lightning.config import compose
from mbrl_lightning.data.buffer import TaskBuffer
from mbrl_lightning.envs import make_family
from mbrl_lightning.models.adaptive import adaptation_errors
from mbrl_lightning.networks.step import GradientStep
from mbrl_lightning.report.statistics import sign_test

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
PAST, FUTURE, STEPS = 10, 10, 50
FAMILY = make_family("cartpole_wide")
SIZES = {"dynamics": {"members": 1, "hidden": 64, "layers": 1, "lr": 2e-3}}


@functools.cache
def episodes(count: int, seed: int) -> tuple[torch.Tensor, TensorDict]:
    """Tasks `[count, P]`, and two episodes of random steps of each."""
    tasks = FAMILY.sample(count, torch.Generator().manual_seed(seed))
    return tasks, random_steps(FAMILY, tasks, STEPS, torch.Generator().manual_seed(seed + 1))


def trained(seed: int, recorded: tuple[torch.Tensor, TensorDict], **cadm):
    """The model after 1,500 steps on recorded data."""
    cfg = compose(
        {
            "conf": "cartpole_wide",
            "algorithm": "cadm",
            "seed": seed,
            "cadm": {"hidden": [64, 32], "segments": 64} | cadm,
        }
        | SIZES
    )
    method, real, draws = make_algorithm(cfg, FAMILY), TaskBuffer(2), torch.Generator().manual_seed(seed)
    real.extend(recorded[1], real.add_tasks(recorded[0]), exploratory=True)
    method.fit(real, GradientStep(Fabric(accelerator="cpu", devices=1)), 1500, draws)
    return method.dynamics


def errors(dynamics, data: TensorDict) -> torch.Tensor:
    """Share of the variance missed on the next K transitions, given the last M, by task."""
    parts = [data[:, first : first + PAST + FUTURE] for first in range(0, STEPS, 25)]
    found = [adaptation_errors(dynamics, part.unsqueeze(1), PAST, FUTURE)["nmse_after"] for part in parts]
    return torch.stack(found).mean(0)


def exchanged(data: TensorDict) -> TensorDict:
    """Every stretch of M + K steps with the first M of another task's episode."""
    mixed, other = data.clone(), data.roll(len(data) // 2, 0)
    for first in range(0, STEPS, 25):
        mixed[:, first : first + PAST] = other[:, first : first + PAST]
    return mixed


@pytest.mark.parametrize("seed", range(3))
def test_the_context_cuts_the_error_on_unseen_cart_poles(seed):
    recorded, (_, unseen) = episodes(400, 1), episodes(60, 7)
    told, blind = trained(seed, recorded), trained(seed, recorded, context_dim=0)
    with_context, without, wrong = errors(told, unseen), errors(blind, unseen), errors(told, exchanged(unseen))
    found = sign_test(without - with_context)
    print(f"seed {seed}: {with_context.mean():.4f}, none {without.mean():.4f}, another's {wrong.mean():.4f}, {found}")
    assert found.p < 0.01
    assert found.positive > found.negative
    assert with_context.mean() < 0.95 * without.mean()
    assert wrong.mean() > without.mean()
