"""Latents of tasks never seen, found by gradient on (mu, log sigma) alone: they tell tasks apart, narrow with data, cut errors.

Controls: the prior, which knows nothing, and the latents of other tasks.
"""

from __future__ import annotations

import pytest
import torch
from fakes import random_steps
from lightning.fabric import Fabric

from mbrl_lightning.algorithms import make_algorithm
from mbrl_lightning.config import compose
from mbrl_lightning.data.buffer import TaskBuffer
from mbrl_lightning.envs import make_family
from mbrl_lightning.measuring.meta_test import MetaTest
from mbrl_lightning.models.measures import linear_probe, one_step_error
from mbrl_lightning.networks.step import GradientStep

pytestmark = pytest.mark.slow


def trained(algorithm: str, conf: str, tasks: int, steps: int, hold: int, seed: int = 0, **changes):
    """Fitted to random steps of training tasks."""
    cfg = compose({"conf": conf, "algorithm": algorithm, "seed": seed} | changes)
    family = make_family(cfg.env.name)
    method, real = make_algorithm(cfg, family), TaskBuffer(len(family.parameters))
    generator = torch.Generator().manual_seed(seed)
    drawn = family.sample(tasks, generator)
    data = random_steps(family, drawn, steps, torch.Generator().manual_seed(seed + 1), hold=hold)
    real.extend(data, real.add_tasks(drawn), exploratory=True)
    method.fit(real, GradientStep(Fabric(accelerator="cpu", devices=1)), 1500, generator)
    return method, family


def measured(method, family, counts: list[int], hold: int):
    """R^2 and mean deviation after each number of transitions; errors before, after and with others' latents."""
    tasks, training = family.test, family.sample(64, torch.Generator().manual_seed(9))
    data = random_steps(family, tasks, max(counts) + 100, torch.Generator().manual_seed(5), hold=hold)
    seen = random_steps(family, training, max(counts), torch.Generator().manual_seed(6), hold=hold)
    held_out, scores, scales = data[:, max(counts) :], [], []
    for count in counts:
        belief = method.adapt(method.begin(len(tasks)), data[:, :count])
        known = method.adapt(method.begin(len(training)), seen[:, :count])
        told = family.scale(training), family.scale(tasks)
        scores.append(linear_probe(known["latent"], told[0], belief["latent"], told[1]))
        scales.append(belief["scale"].mean(1))
    beliefs = method.begin(len(tasks)), belief, belief[torch.arange(len(tasks)).roll(len(tasks) // 2)]
    errors = [one_step_error(method.dynamics, held_out, each)["nmse"] for each in beliefs]
    return scores, scales, errors


@pytest.mark.parametrize("algorithm", ["variational", "ghp_mdp"])
def test_a_latent_tells_ropes_and_loads_apart_and_narrows_with_data(algorithm):
    method, family = trained(algorithm, "payload_quadcopter", tasks=48, steps=60, hold=1)
    scores, scales, (before, after, others) = measured(method, family, [5, 40], hold=1)
    assert scores[1].min() >= 0.8
    assert (scales[0] < 0.5).all()
    assert (scales[1] < 0.7 * scales[0]).all()
    assert after.mean() < 0.2 * before.mean()
    assert (after < before).all()
    assert others.mean() > before.mean()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_leads_a_load_along_a_figure_8_where_the_prior_does_not(seed):
    """Ropes and loads never seen, 40 random steps of each: less than half of the error, intervals of both apart."""
    method, family = trained("variational", "payload_quadcopter", tasks=48, steps=60, hold=1, seed=seed)
    context = random_steps(family, family.test, 40, torch.Generator().manual_seed(5))
    step = GradientStep(Fabric(accelerator="cpu", devices=1))
    test = MetaTest(method, TaskBuffer(2), step, torch.Generator().manual_seed(1), lambda *_, **__: None)
    belief, ends = method.adapt(method.begin(len(context)), context), []
    for each in (belief, method.controls(belief)["unadapted"]):
        error = family.spec.metrics(test.episodes(family.test, each)[:, 0])["path/error"]
        half = 2 * error.std() / len(error) ** 0.5
        ends.append((error.mean() - half, error.mean(), error.mean() + half))
    (_, adapted, most), (least, unadapted, _) = ends
    print(f"seed {seed}: {ends}")
    assert adapted < 0.06
    assert adapted < 0.5 * unadapted
    assert most < least


def test_it_tells_masses_and_dampings_of_cheetahs():
    changes = {"variational": {"memory": 64}}
    method, family = trained("variational", "half_cheetah_wide", tasks=50, steps=200, hold=5, **changes)
    scores, scales, (before, after, others) = measured(method, family, [16, 64], hold=5)
    assert scores[1].min() >= 0.8
    assert (scales[1] < scales[0]).all()
    assert after.mean() < 0.75 * before.mean()
    assert (after < before).all()
    assert others.mean() > before.mean()
