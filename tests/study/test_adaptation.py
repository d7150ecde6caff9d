"""The study of adaptation: every method is asked the same, and what it is told is what was recorded."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tensordict import TensorDict

from mbrl_lightning.envs import make_family
from mbrl_lightning.runs.results import read_results
from mbrl_lightning.study import STUDIES, adaptation, study

SMALL = "loop.iterations=1 loop.tasks_per_iteration=2 loop.exploration_steps=25"
ARMS = {
    "mlsm_v1_aps": f"algorithm=mlsm_v1_aps {SMALL} loop.first_model_steps=2 loop.last_model_steps=0 search.updates=1 "
    "dynamics.members=2 dynamics.hidden=8",
}


@pytest.fixture
def small(monkeypatch):
    """An arm on cart-pole, three numbers of transitions, two tasks of three lives."""
    one = STUDIES["adaptation"]._replace(arms=ARMS, base="conf=cartpole evaluation.episodes=1 loop.evaluate_every=0")
    monkeypatch.setitem(STUDIES, "adaptation", one)
    for name, value in {"SHOTS": (0, 5, 30), "TASKS": 2, "LIVES": 3, "TIMES": 1, "TIMED": 10}.items():
        monkeypatch.setattr(adaptation, name, value)


def test_finished_runs_are_measured_once(small, in_this_process, tmp_path, capfd):
    words = ["seeds=0"]
    status, text = study("adaptation", words, str(tmp_path))
    assert status == 0
    assert capfd.readouterr().out.count(": measured") == len(ARMS)
    (file,) = tmp_path.glob(f"adaptation/*/cartpole/mlsm_v1_aps/seed0/{adaptation.FILE}")
    rows = read_results(file)
    shots = [(row.shot, row.task) for row in rows if row.metric == "return/policy"]
    assert shots == [(shot, task) for shot in (0, 5, 30) for task in (0, 1)]
    assert (tmp_path / "adaptation" / "adaptation.png").stat().st_size > 5000
    assert [line.split()[0] for line in text.splitlines() if line.startswith("  m")].count("mlsm_v1_aps") == 3
    without_model = adaptation.tables([row for row in rows if row.metric != "model/nmse"])
    assert [len(table.rows) for table in without_model] == [1, 0, 1]
    assert study("adaptation", words, str(tmp_path))[1] == text
    assert "measured" not in capfd.readouterr().out


@pytest.mark.parametrize("shot", [0, 5, 30])
def test_what_is_told_precedes_what_is_asked(small, shot):
    family = make_family("cartpole")
    lives = adaptation.recorded(family, family.test[:2], 0)
    told = []

    def adapt(belief, before):
        told.append(before)
        return belief

    def algorithm(following):
        return SimpleNamespace(
            spec=family.spec,
            device=torch.device("cpu"),
            begin=lambda rows: TensorDict(batch_size=[rows]),
            adapt=adapt,
            imagine=lambda belief, observation, action: following(observation)[None, :, None],
        )

    right = algorithm(lambda observation: lives[:, -1]["next", "observation"])
    still = algorithm(lambda observation: observation)
    assert adaptation.one_step(right, lives, shot).tolist() == [0, 0]
    assert (adaptation.one_step(still, lives, shot) > 0.3).all()
    assert torch.equal(told[0]["observation"], lives["observation"][:, 30 - shot : 30])
    assert told[0].shape == (6, shot)
