"""A goal that is not shown: who adapts to the rewards of a task finds it, and who cannot stands still."""

from __future__ import annotations

import pytest
from fakes import read_by

from mbrl_lightning.algorithms import make_algorithm
from mbrl_lightning.config import compose
from mbrl_lightning.envs import make_family
from mbrl_lightning.loop import MetaLoop

pytestmark = pytest.mark.slow


def trained(algorithm: str, **changes) -> dict[tuple[str, int], float]:
    """Mean over unseen tasks by metric and shot."""
    cfg = compose(read_by({"conf": "point_goal", "algorithm": algorithm} | changes))
    family = make_family("point_goal")
    rows: dict[tuple[str, int], list[float]] = {}
    for row in MetaLoop(cfg, family, make_algorithm(cfg, family), quiet=True).fit().rows:
        if row.split == "test":
            rows.setdefault((row.metric, row.shot), []).append(row.value)
    return {key: sum(values) / len(values) for key, values in rows.items()}


def test_maml_finds_the_goal_by_one_step_from_a_policy_that_does_not():
    """Told, -3.8; standing still, -20."""
    found = trained("maml", loop={"iterations": 15})
    assert found["return/policy", 200] > -11
    assert found["return/unadapted", 200] < -18
    assert found["return/wrong_belief", 200] < -25


def test_the_same_without_an_inner_step_does_not():
    found = trained("maml", loop={"iterations": 15}, meta={"inner_lr": 0.0})
    assert found["return/policy", 0] < -18


def test_reptile_learns_to_adapt_and_towards_nothing_it_does_not():
    """The same inner steps from the policy as it begins make -13.3."""
    found = trained("reptile")
    assert found["return/policy", 200] > -11
    assert found["return/unadapted", 200] < -18
    assert trained("reptile", loop={"iterations": 2}, meta={"outer_lr": 1e-6})["return/policy", 200] < -12.5


def test_pe_ppo_finds_the_goal_from_its_own_context_and_not_from_another_tasks():
    found = trained("pe_ppo", loop={"iterations": 45})
    assert found["return/policy", 40] > -17
    assert found["return/policy", 0] < -18
    assert found["return/wrong_belief", 40] < -22


def test_admrl_goes_to_the_goal_that_paid_what_was_seen():
    found = trained("admrl")
    assert found["return/policy", 20] > -6
    assert found["return/fine_tuned", 20] > -6
    assert found["return/policy", 0] < -16
    assert found["return/wrong_belief", 20] < -30


def test_admrl_without_a_search_goes_nowhere():
    assert trained("admrl", search={"updates": 0}, evaluation={"fine_tune_updates": 0})["return/policy", 20] < -16


def test_mier_finds_the_goal_by_the_vector_of_a_context_and_not_by_another_tasks():
    found = trained("mier", loop={"iterations": 8, "evaluate_every": 0})
    assert found["return/policy", 40] > -17
    assert found["return/fine_tuned", 40] > -17
    assert found["return/policy", 0] < -18
    assert found["return/wrong_belief", 40] < -25


def test_mier_that_identifies_nothing_does_not():
    loop = {"iterations": 8, "evaluate_every": 0}
    found = trained("mier", loop=loop, mier={"inner_lr": 0.0}, evaluation={"fine_tune_updates": 0})
    assert found["return/policy", 40] < -18


def test_an_encoder_that_is_held_to_its_prior_infers_nothing():
    found = trained("pe_ppo", loop={"iterations": 45}, pearl={"kl_weight": 1.0})
    assert found["return/policy", 40] < -18
