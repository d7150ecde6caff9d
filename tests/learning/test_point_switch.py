"""A hidden direction that switches: models and policies that read their history find it, and those that cannot do not."""

from __future__ import annotations

import pytest
import torch
from fakes import random_steps

from mbrl_lightning.algorithms import make_algorithm
from mbrl_lightning.config import compose
from mbrl_lightning.envs import make_family
from mbrl_lightning.loop import MetaLoop
from mbrl_lightning.models.recurrent import history_errors

pytestmark = pytest.mark.slow

RANDOM = {"warmup_steps": 3000, "warmup_hold": 1}  # held actions look alike for so long that 3,000 steps show less


def slope(**changes) -> float:
    """The least slope of any head after 3,000 random real steps (see `hidden_task.reward_slope`)."""
    cfg = compose({"conf": "point_switch", "algorithm": "m3po", "sac": RANDOM} | changes)
    family = make_family("point_switch")
    algorithm = make_algorithm(cfg, family)
    loop = MetaLoop(cfg, family, algorithm, quiet=True)
    loop.algorithm.collect(loop.world)
    loop._fit_dynamics()
    generator = torch.Generator().manual_seed(7)
    fresh = random_steps(family, family.test, 200, generator, training=False)
    return history_errors(algorithm.dynamics, fresh, cfg.history.length, generator)["slope"]


def test_the_model_finds_the_hidden_direction_in_the_history():
    assert slope() >= 0.8


@pytest.mark.parametrize(
    "blind",
    [{"history": {"model": False}}, {"dynamics": {"variance_weight": 0.0}}],
    ids=["no_history", "plain_likelihood"],
)
def test_without_history_or_with_the_plain_likelihood_it_does_not(blind):
    assert slope(**blind) < (0.2 if "history" in blind else 0.5)


def unseen(algorithm: str) -> dict[str, float]:
    cfg = compose({"conf": "point_switch", "algorithm": algorithm, "evaluation": {"sampled": False}})
    family = make_family("point_switch")
    loop = MetaLoop(cfg, family, make_algorithm(cfg, family), quiet=True)
    rows = loop.fit().rows
    last = [row for row in rows if row.split == "test" and row.iteration == cfg.loop.iterations]
    returns = [row.value for row in last if row.metric == "return/policy"]
    found = {row.metric: row.value for row in last if row.metric.startswith("reward/")}
    return {"return": sum(returns) / len(returns)} | found


def test_m3po_serves_both_directions_and_m2po_neither():
    told, blind = unseen("m3po"), unseen("m2po")
    assert told["return"] >= 130
    assert told["return"] >= blind["return"] + 60
    assert blind["return"] < 100


def test_recurrent_sac_serves_both_directions():
    found = unseen("recurrent_sac")
    assert min(found["reward/direction=1"], found["reward/direction=-1"]) > 0.8
