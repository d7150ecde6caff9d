"""Studies of methods side by side: every arm can be made, a table for each family, errors at every checkpoint."""

from __future__ import annotations

import pytest

from mbrl_lightning.algorithms import make_algorithm
from mbrl_lightning.config import load_config
from mbrl_lightning.envs import family_of
from mbrl_lightning.errors import ConfigError
from mbrl_lightning.runs.results import Results, Row
from mbrl_lightning.study import STUDIES, adaptation, arm_words, rivals, study
from mbrl_lightning.study.base import folder_of


@pytest.mark.parametrize("name", [*rivals.STUDIES, *adaptation.STUDIES])
def test_every_arm_can_be_made(name):
    for arm, words in arm_words(name, ["seeds=0"]).items():
        cfg = load_config(words)
        assert make_algorithm(cfg, family_of(cfg.env)).cfg.algorithm in arm


def test_the_papers_numbers_belong_to_arms():
    assert set(rivals.PAPER) < set(STUDIES["gssm_policies"].arms)


def test_arms_are_chosen_by_patterns():
    assert list(arm_words("gssm_policies", [], chosen="acrobot gssm*,*pe_ppo 25x")) == [
        "acrobot gssm_aps",
        "acrobot gssm",
        "cartpole pe_ppo 25x",
        "half_cheetah pe_ppo 25x",
    ]
    with pytest.raises(ConfigError, match="no arm of 'quick' is called 'gsm'"):
        arm_words("quick", [], chosen="gsm")


def test_each_family_has_its_table_and_panel(tmp_path):
    """Two seeds in two tasks: -0.4 and -0.6, so their middle is -0.5, beside the paper's."""
    for arm, means in {"acrobot gssm_aps": (-0.4, -0.6), "cartpole gssm": (-0.7, -0.8)}.items():
        for seed, mean in enumerate(means):
            env = arm.partition(" ")[0]
            results = Results(tmp_path / folder_of(arm) / f"seed{seed}" / "results.csv", arm.split()[1], env, seed)
            for task in (0, 1):
                at = {"iteration": 1, "real_steps": 100, "split": "test", "task": task, "shot": 50}
                results.add("return/policy", mean, **at)
                results.add("return/random", -1.0, **at)
            results.flush()
    one = STUDIES["gssm_policies"]
    status, text = one.close("gssm_policies", one, tmp_path, one.rows(tmp_path))
    lines = {line.split()[0]: line.split() for line in text.splitlines() if line.startswith("  gssm")}
    assert status == 0
    assert lines["gssm_aps"] == ["gssm_aps", "2", "100", "-0.5", "[-0.6,", "-0.4]", "-0.4", "-0.6", "-0.478"]
    assert lines["gssm"][-2:] == ["-0.7", "-0.8"]  # of which the paper says nothing
    assert (tmp_path / "gssm_policies.png").stat().st_size > 5000


@pytest.mark.parametrize(("more", "scale"), [(25, "log"), (3, "linear")])
def test_steps_are_logarithmic_where_an_arm_makes_more_than_ten_times_anothers(more, scale, tmp_path, monkeypatch):
    canvas = pytest.importorskip("mbrl_lightning.report.canvas")
    monkeypatch.setattr(canvas, "save", lambda figure, path: figure)
    ends = {"gssm": 100, "dr_ppo": 100 * more}.items()
    rows = [Row(arm, "cartpole", 0, 1, end, "test", 0, 50, "return/policy", -0.5, "") for arm, end in ends]
    assert rivals.draw(rows, tmp_path / "none.png").axes[0].get_xscale() == scale


def test_errors_are_measured_at_every_checkpoint(in_this_process, tmp_path):
    words = [
        *("seeds=0", "loop.iterations=2", "loop.episode_steps=20", "sac.warmup_steps=40", "policy.hidden=[8]"),
        *(
            "loop.model_steps=2",
            "loop.first_model_steps=2",
            "loop.evaluate_every=0",
            "dynamics.hidden=8",
            "sac.batch=8",
        ),
    ]
    status, text = study("m3po_errors", words, str(tmp_path), "m3po")
    assert status == 0
    assert "KL from cloned policy" in text
    run = tmp_path / "m3po_errors" / "m3po" / "point_switch" / "m3po" / "seed0"
    assert [row.iteration for row in rivals.divergences(run)] == [1, 2]
    assert (tmp_path / "m3po_errors" / "m3po_errors.png").stat().st_size > 5000
