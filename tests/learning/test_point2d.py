"""The 2-D point of MB-MPO: within 5 % of the known optimum from 1,800 real steps, and not without meta steps."""

from __future__ import annotations

import pytest
import torch
from fakes import read_by

from mbrl_lightning.algorithms import make_algorithm
from mbrl_lightning.config import compose
from mbrl_lightning.envs import make_family
from mbrl_lightning.envs.bodies.point2d import HORIZON, best_action, transition
from mbrl_lightning.loop import MetaLoop
from mbrl_lightning.measuring.meta_test import MetaTest

pytestmark = pytest.mark.slow


def trained(algorithm: str, **changes) -> tuple[float, float, int]:
    """Share of the optimum that the pre-update policy's means lose from 200 starts, return of its samples, real steps."""
    changes = {"evaluation": {"sampled": False, "shots": [0.0]}, "loop": {"evaluate_every": 0}} | changes
    cfg = compose(read_by({"conf": "point2d", "algorithm": algorithm} | changes))
    family = make_family("point2d")
    loop = MetaLoop(cfg, family, make_algorithm(cfg, family), quiet=True)
    loop.fit()
    test = MetaTest(loop.algorithm, loop.real, loop.step, torch.Generator().manual_seed(1), lambda *_, **__: None)
    belief = loop.algorithm.begin(200)
    tasks = family.test[:1].expand(200, -1)
    means, samples = (test.episodes(tasks, belief, sampled=s) for s in (False, True))
    lost = test.report("return/policy", means, "test", 0) / optimum(means["observation"].flatten(0, -3)[:, 0]) - 1
    return lost, test.report("return/sampled", samples, "test", 0), loop.real.num_steps


def optimum(state: torch.Tensor) -> float:
    """Mean of the best returns from `state` `[B, 2]`."""
    total = 0.0
    for _ in range(HORIZON):
        total -= float(state.square().sum(-1).mean())
        state = transition(state, best_action(state), state)
    return total


@pytest.mark.parametrize("algorithm", ["mb_mpo", "me_trpo"])
def test_the_point_is_solved_from_1800_real_steps(algorithm):
    lost, sampled, steps = trained(algorithm)
    assert steps == 1800
    assert -0.001 < lost < 0.05
    assert sampled >= -20


def test_without_meta_steps_it_is_not():
    lost, sampled, _ = trained("mb_mpo", meta={"updates": 0})
    assert lost > 1.75
    assert sampled < -40


@pytest.mark.parametrize(
    ("algorithm", "changes", "low", "high"),
    [
        ("acktr", {}, 0.0, 0.6),
        ("acktr", {"meta": {"damping": 1.0}, "search": {"lr": 1e9}}, 1.0, 9.0),  # a plain gradient: F is lost in 1
        ("trpo", {}, 1.0, 9.0),
    ],
)
def test_natural_gradients_of_small_batches_are_close_after_6000_real_steps(algorithm, changes, low, high):
    loop = {"evaluate_every": 0, "iterations": 10}
    lost, _, steps = trained(algorithm, evaluation={"sampled": False}, loop=loop, **changes)
    assert steps == 6000
    assert low < lost < high


def test_trpo_is_not_there_after_as_many():
    lost, sampled, steps = trained("trpo")
    assert steps == 1800
    assert lost > 1.75
    assert sampled < -40
