"""Shipped weights: small, without data, and as good as their cards say."""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path

import pytest
import yaml
from fakes import VARIANTS

import mbrl_lightning
from mbrl_lightning import evaluate, load
from mbrl_lightning.config import reads_of
from mbrl_lightning.config.files import located
from mbrl_lightning.data.buffer import TaskBuffer
from mbrl_lightning.errors import ConfigError
from mbrl_lightning.record import record
from mbrl_lightning.report.curves import at_context
from mbrl_lightning.report.statistics import score_matrix
from mbrl_lightning.runs import checkpoint

CARDS = sorted((Path(mbrl_lightning.__file__).parents[1] / "pretrained").glob("*/card.yaml"))
pytestmark = pytest.mark.usefixtures("elsewhere")


def looked_at(path: Path) -> object:
    """A card; to plan 20 episodes takes minutes, and bodies of 1,000 steps are slow to simulate."""
    card = yaml.safe_load(path.read_text())
    slow = {"slim_humanoid", "half_cheetah_wide", "half_cheetah_fwd_bwd", "swimmer"}
    long = card["family"] in slow or "planner.kind" in reads_of(card["algorithm"])
    return pytest.param(path, id=path.parent.name, marks=[pytest.mark.slow] * long)


@pytest.mark.parametrize("path", [looked_at(path) for path in CARDS])
def test_weights_are_small_and_earn_what_their_card_says(path):
    name, card = path.parent.name, yaml.safe_load(path.read_text())
    assert sum(file.stat().st_size for file in path.parent.rglob("*") if file.is_file()) < 10**6
    assert checkpoint.load(path.parent / "checkpoints")[1].keys() == {"algorithm", "family"}
    agent = load(f"pretrained:{name}")
    assert (agent.algorithm.cfg.conf, agent.algorithm.cfg.algorithm) == (card["family"], card["algorithm"])
    rows = at_context(evaluate(f"pretrained:{name}", figures=False).rows)
    returns, random = (
        score_matrix([row for row in rows if row.metric == f"return/{who}"])[2].mean() for who in ("policy", "random")
    )
    assert {row.real_steps for row in rows} == {card["real_steps"]}
    assert returns == pytest.approx(card["return"], abs=0.05 * (card["return"] - random))
    assert Path("evaluation", name).is_dir()


IMAGINES = {"gssm", "mlsm_v0", "mlsm_v1", "m_dpilco", "mier", "admrl"}  # begins at real states when it adapts


@pytest.mark.parametrize("name", ["m3po", "admrl", *(pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS)])
def test_without_their_data_weights_can_be_tested_or_that_is_what_is_missing(trained, name):
    loop, _ = trained(name)
    del loop.evaluate  # what `trained` leaves out
    loop.real = TaskBuffer(len(loop.family.parameters))
    with pytest.raises(ConfigError, match="no real transitions") if name in IMAGINES else nullcontext():
        assert math.isfinite(loop.evaluate(full=True)["return/policy"])


def test_unknown_weights_and_what_weights_alone_cannot_do():
    assert CARDS
    with pytest.raises(ConfigError, match=r"did you mean 'cartpole'"):
        load("pretrained:cartpol")
    with pytest.raises(ConfigError, match="weights alone"):
        evaluate("pretrained:cartpole", baselines=True)
    with pytest.raises(ConfigError, match="weights alone"):
        record("pretrained:cartpole", "a-v0")
    assert located("runs/x") == Path("runs/x")
