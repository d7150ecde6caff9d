"""FAMLE on its reacher: it tells the situation, and comes nearer to the goal in pairs of failures never trained on.

Controls: the same model before it adapts; and one meta-trained on data whose situations were exchanged, which tells nothing.
"""

from __future__ import annotations

import pytest
import torch
from fakes import random_steps

from mbrl_lightning.algorithms import make_algorithm
from mbrl_lightning.config import compose
from mbrl_lightning.data.buffer import TaskBuffer
from mbrl_lightning.envs import make_family
from mbrl_lightning.envs.bodies.reacher import distance
from mbrl_lightning.loop import MetaLoop
from mbrl_lightning.measuring.meta_test import MetaTest
from mbrl_lightning.report.statistics import sign_test

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
AFTER = 20


def trained(seed: int, **changes) -> MetaLoop:
    """All of `conf=famle_reacher` but its meta-test."""
    cfg = compose({"conf": "famle_reacher", "seed": seed} | changes)
    family = make_family("famle_reacher")
    loop = MetaLoop(cfg, family, make_algorithm(cfg, family), quiet=True)
    loop.evaluate = lambda full: {}
    loop.fit()
    return loop


def share_told(loop: MetaLoop) -> float:
    """Of fresh stretches of M random steps in each training situation, those in which the most likely one is right."""
    situations, past = loop.family.grid, loop.algorithm.past
    data = random_steps(loop.family, situations.repeat(20, 1), past, torch.Generator().manual_seed(7))
    columns, there = loop.algorithm.dynamics.columns(data), torch.ones(data.shape, dtype=torch.bool)
    found = loop.algorithm.dynamics.likely(columns["inputs"], columns["target"], there)
    return float((found == torch.arange(len(situations)).repeat(20)).float().mean())


def distances(loop: MetaLoop, frozen: bool) -> torch.Tensor:
    """From tip to goal after 20 steps in each of the unseen pairs, `[20]`; adapting or not."""
    algorithm, unseen = loop.algorithm, loop.family.test
    test = MetaTest(algorithm, loop.real, loop.step, torch.Generator().manual_seed(3), lambda *_, **__: None)
    belief = algorithm.begin(len(unseen))
    episodes = test.episodes(unseen, algorithm.controls(belief)["unadapted"] if frozen else belief)
    return distance(episodes["next", "observation"][:, 0, AFTER - 1])


@pytest.mark.parametrize("seed", range(3))
def test_it_tells_the_situation_and_comes_nearer_to_the_goal_in_pairs_never_trained(seed):
    loop = trained(seed)
    told, adapted, plain = share_told(loop), distances(loop, False), distances(loop, True)
    found = sign_test(plain - adapted)
    print(f"seed {seed}: told {told:.3f}; {adapted.mean():.3f} m, un-adapted {plain.mean():.3f} m, {found}")
    assert told >= 0.9
    assert found.p < 0.01
    assert found.positive > found.negative
    assert adapted.mean() < 0.8 * plain.mean()


def test_a_model_of_exchanged_situations_tells_nothing():
    loop, draws = trained(0, loop={"iterations": 1, "first_model_steps": 0}), torch.Generator().manual_seed(1)
    data, mixed = random_steps(loop.family, loop.family.grid, 400, draws, hold=5), TaskBuffer(5)
    mixed.add_tasks(loop.family.grid)
    mixed.extend(data, torch.randint(11, data.shape, generator=draws), exploratory=True)
    loop.algorithm.fit(mixed, loop.step, 200, draws)
    assert share_told(loop) < 0.4
