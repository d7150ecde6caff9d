"""GrBAL and ReBAL on half-cheetahs of unseen mass and damping: adapting to the last 16 transitions cuts the error on the next 16.

Controls: adapting to another cheetah's transitions does not, nor does a model that was not trained to adapt.
"""

from __future__ import annotations

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

pytestmark = pytest.mark.slow
PAST = FUTURE = 16


def episodes(family, tasks, steps, seed) -> TensorDict:
    return random_steps(family, tasks, steps, torch.Generator().manual_seed(seed), hold=5)


def unseen(family) -> torch.Tensor:
    """60 tasks, none of them a training task."""
    return family.sample(60, torch.Generator().manual_seed(7))


def trained(algorithm: str):
    """Meta-trained on 50 tasks x 200 random steps, and the family."""
    cfg = compose({"conf": "half_cheetah_wide", "algorithm": algorithm})
    family = make_family("half_cheetah_wide")
    torch.manual_seed(0)
    method, real = make_algorithm(cfg, family), TaskBuffer(len(family.parameters))
    generator = torch.Generator().manual_seed(0)
    tasks = family.sample(50, generator)
    real.extend(episodes(family, tasks, 200, 1), real.add_tasks(tasks), exploratory=True)
    method.fit(real, GradientStep(Fabric(accelerator="cpu", devices=1)), 1200, generator)
    return method.dynamics, family


def swapped(data: TensorDict) -> TensorDict:
    """Every stretch of M + K steps with the first M of another task's episode."""
    mixed, other = data.clone(), data.roll(len(data) // 2, 0)
    for first in range(0, data.shape[-1] - PAST - FUTURE + 1, 2 * FUTURE):  # stretches that do not overlap
        mixed[..., first : first + PAST] = other[..., first : first + PAST]
    return mixed


def errors(dynamics, data: TensorDict) -> tuple[torch.Tensor, torch.Tensor]:
    """Before and after, per task, over stretches that do not overlap."""
    parts = [
        data[:, :, first : first + PAST + FUTURE] for first in range(0, data.shape[-1] - PAST - FUTURE + 1, 2 * FUTURE)
    ]
    found = [adaptation_errors(dynamics, part, PAST, FUTURE) for part in parts]
    return tuple(torch.stack([each[key] for each in found]).mean(0) for key in ("nmse_before", "nmse_after"))


@pytest.mark.parametrize("algorithm", ["grbal", "rebal"])
def test_adapting_to_the_last_transitions_cuts_the_error(algorithm):
    dynamics, family = trained(algorithm)
    data = episodes(family, unseen(family), 192, 2).unsqueeze(1)
    before, after = errors(dynamics, data)
    found = sign_test(before - after)
    assert float(after.mean()) < 0.9 * float(before.mean())
    assert found.p < 0.01
    assert found.positive > found.negative
    assert float(errors(dynamics, swapped(data))[1].mean()) > 1.1 * float(after.mean())


def test_a_model_that_was_not_trained_to_adapt_gains_nothing():
    plain, family = trained("mb_mpc")
    adapting = make_algorithm(
        compose({"conf": "half_cheetah_wide", "algorithm": "grbal", "l2a": {"learned": False, "inner_lr": 0.1}}), family
    ).dynamics
    adapting.load_state_dict(plain.state_dict(), strict=False)
    before, after = errors(adapting, episodes(family, unseen(family), 192, 2).unsqueeze(1))
    assert float(after.mean()) > 0.95 * float(before.mean())
