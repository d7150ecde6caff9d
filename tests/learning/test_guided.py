"""A plan of two steps on cart-poles swings up with the candidates and the value of a policy, and without them it stands still."""

from __future__ import annotations

import pytest

from mbrl_lightning.algorithms import make_algorithm
from mbrl_lightning.config import compose
from mbrl_lightning.envs import family_of
from mbrl_lightning.loop import MetaLoop

pytestmark = pytest.mark.slow
SIZES = {
    "loop": {"iterations": 8, "tasks_per_iteration": 10, "episodes_per_task": 1, "exploration_steps": 0}
    | {"model_steps": 60, "first_model_steps": 150, "last_model_steps": 0},
    "dynamics": {"members": 2, "hidden": 64},
    "planner": {"horizon": 2, "candidates": 24},
    "sac": {"updates_per_step": 1, "batch": 64},
}


def test_a_short_plan_swings_up_with_a_policy_and_its_value_and_not_without():
    cfg = compose({"conf": "cartpole", "algorithm": "grbal_sac", "seed": 0} | SIZES)
    family = family_of(cfg.env)
    loop = MetaLoop(cfg, family, make_algorithm(cfg, family), None, None, quiet=True)
    loop.fit()

    def measured(before: int) -> float:
        rows = [row for row in loop.results.rows[before:] if row.metric == "return/policy" and row.split == "test"]
        return sum(row.value for row in rows) / len(rows)

    guided, before = measured(0), len(loop.results.rows)
    loop.algorithm.planner.guide = None  # the same model, the same search
    loop.evaluate(full=True)
    assert guided > -0.9
    assert measured(before) < -0.97  # random actions: -0.977
