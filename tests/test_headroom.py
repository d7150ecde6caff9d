"""What knowing the task is worth."""

from __future__ import annotations

import csv

import pytest

from mbrl_lightning import headroom
from mbrl_lightning.envs import make_family


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(headroom, "MODEL_TASKS", 60)
    monkeypatch.setattr(headroom, "MODEL_STEPS", 60)
    monkeypatch.setattr(headroom, "MODEL_UPDATES", 400)


def test_on_wide_masses_a_told_model_is_better_and_a_misled_one_worse(tiny, small):
    rows = []
    cfg = tiny(
        "gssm_aps", env={"name": "cartpole_wide"}, dynamics={"hidden": 64, "tasks": 16, "targets": 32, "lr": 5e-3}
    )
    means = headroom.model_headroom(cfg, make_family("cartpole_wide"), lambda *row, **more: rows.append(row))
    assert means["with"] < 0.85 * means["without"]
    assert means["wrong"] > means["without"]
    assert {row[0] for row in rows} == {"model/nmse_with", "model/nmse_without", "model/nmse_wrong"}


def test_both_halves_and_their_rows(tiny, small, tmp_path):
    out = headroom.headroom(tiny("dr_ppo", search={"tasks": 2, "horizon": 10, "updates": 1}), tmp_path)
    assert set(out["policy"]) == set(out["model"]) == {"with", "without", "wrong"}
    with (tmp_path / "headroom.csv").open() as file:
        metrics = [row["metric"] for row in csv.DictReader(file)]
    assert metrics.count("return/with") == metrics.count("return/without") == metrics.count("model/nmse_wrong") == 50
