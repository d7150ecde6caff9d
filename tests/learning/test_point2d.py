"""The 2-D point of MB-MPO: near the known optimum of -14.7 from 1,800 real steps, and not without meta steps."""

from __future__ import annotations

import pytest
import torch

from mbrl_lightning.algorithms import make_algorithm
from mbrl_lightning.config import compose
from mbrl_lightning.envs import make_family
from mbrl_lightning.loop import MetaLoop
from mbrl_lightning.meta_test import MetaTest

pytestmark = pytest.mark.slow


def sampled_return(algorithm: str, **changes) -> tuple[float, int]:
    """Return of the pre-update policy's sampled actions over 200 episodes, and the real steps before."""
    changes = {"evaluation": {"sampled": False, "shots": [0.0]}, "loop": {"evaluate_every": 0}} | changes
    cfg = compose({"conf": "point2d", "algorithm": algorithm} | changes)
    family = make_family("point2d")
    loop = MetaLoop(cfg, family, make_algorithm(cfg, family), quiet=True)
    loop.fit()
    test = MetaTest(loop.algorithm, loop.real, loop.step, torch.Generator().manual_seed(1), lambda *_, **__: None)
    belief = loop.algorithm.prior(200)
    episodes = test.episodes(family.test[:1].expand(200, -1), lambda count: test._act(belief, count, sampled=True))
    return test.report("return/sampled", episodes, "test", 0), loop.real.num_steps


@pytest.mark.parametrize("algorithm", ["mb_mpo", "me_trpo"])
def test_the_point_is_solved_from_1800_real_steps(algorithm):
    found, steps = sampled_return(algorithm)
    assert steps == 1800
    assert found >= -20


def test_without_meta_steps_it_is_not():
    assert sampled_return("mb_mpo", meta={"updates": 0})[0] < -40


def test_trpo_is_not_there_after_as_many():
    found, steps = sampled_return("trpo")
    assert steps == 1800
    assert found < -40
