"""Evaluating a finished run: nothing of the run is touched, the numbers are those of its own meta-test."""

from __future__ import annotations

import csv
import hashlib
import shutil

import pytest

from mbrl_lightning.errors import ConfigError, StorageError
from mbrl_lightning.evaluate import evaluate, load_run, main
from mbrl_lightning.fit import fit
from mbrl_lightning.measuring.meta_test import MetaTest
from mbrl_lightning.runs.results import read_results
from mbrl_lightning.runs.storage import locked


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    fit(conf="debug", out=str(out), loop={"iterations": 1})
    return out / "debug" / "gssm_aps" / "seed0"


def contents(folder) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and "evaluation" not in path.parts
    }


def test_evaluation_leaves_the_run_as_it_was_and_repeats_itself(run):
    before = contents(run)
    first = evaluate(run, episodes=2, context=6, figures=False)
    second = evaluate(run, episodes=2, context=6, figures=False)
    assert contents(run) == before
    values = [[(row.metric, row.task, row.shot, row.value) for row in results.rows] for results in (first, second)]
    assert repr(values[0]) == repr(values[1])
    assert {row.shot for row in first.rows if row.metric == "return/policy"} == {0, 6}
    assert len({row.task for row in first.rows if row.metric == "return/policy" and row.split == "test"}) == 50
    with (run / "evaluation" / "evaluation_test.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(second.rows)  # written anew, not appended


def test_another_seed_and_other_tasks_give_other_numbers(run):
    def returns(**options) -> list[float]:
        rows = evaluate(run, figures=False, **options).rows
        return [row.value for row in rows if row.metric == "return/random"]

    assert returns() != returns(seed=1)
    assert {row.split for row in evaluate(run, tasks="extreme", figures=False).rows if row.split} == {"extreme"}


def test_baselines_are_measured_beside_the_runs_own_model(run):
    rows = evaluate(run, figures=False, baselines=True).rows
    for name in ("blind_nmse", "told_nmse", "blind_mse", "told_mse_random"):
        assert len([row for row in rows if row.metric == f"model/{name}"]) == 50


def test_a_run_is_loaded_as_it_was(run):
    loop = load_run(run)
    assert loop.iteration == 1
    assert loop.real.num_steps == len(loop.real) > 0
    assert loop.folder is None
    assert [row for row in loop.results.rows if row.metric == "return/policy"]


@pytest.fixture(scope="module")
def hidden(tmp_path_factory):
    """A run with a hidden task that looked at training tasks, with its own number of episodes."""
    out = tmp_path_factory.mktemp("runs")
    fit(
        conf="point_switch",
        algorithm="m3po",
        out=out,
        loop={"iterations": 2, "episode_steps": 20, "model_steps": 2, "first_model_steps": 2, "evaluate_every": 0},
        dynamics={"hidden": 8, "layers": 1},
        policy={"hidden": [8]},
        sac={"warmup_steps": 30, "updates_per_step": 0.1, "batch": 8},
        env={"options": {"horizon": 30, "switch_every_steps": 10}},
        evaluation={"split": "train", "episodes": 2},
    )
    return out / "point_switch" / "m3po" / "seed0"


def where(rows) -> set[tuple]:
    return {(row.metric, row.iteration, row.real_steps, row.shot, row.unit) for row in rows if row.split}


def test_a_run_that_looked_at_training_tasks_is_tested_with_all_its_rows(hidden):
    before = contents(hidden)
    rows = evaluate(hidden, figures=False).rows
    assert contents(hidden) == before
    assert {row.split for row in rows} == {"test"}
    assert where(rows) == where(read_results(hidden)) != set()
    assert {(row.iteration, row.real_steps) for row in rows} == {(2, 70)}
    assert {row.metric for row in rows} >= {"return/random", "return/sampled", "model/nll", "reward/direction=1"}


def test_the_runs_own_episodes_and_context_are_taken_unless_others_are_asked_for(hidden, run, monkeypatch):
    counts = []
    original = MetaTest.episodes

    def counted(test, *rest, **named):
        episodes = original(test, *rest, **named)
        counts.append(episodes.shape[1])
        return episodes

    monkeypatch.setattr(MetaTest, "episodes", counted)
    evaluate(hidden, figures=False)
    assert set(counts) == {2}
    counts.clear()
    evaluate(hidden, figures=False, episodes=1)
    assert set(counts) == {1}
    assert {row.shot for row in evaluate(run, figures=False).rows if row.metric == "return/random"} == {8}


def test_rows_are_put_into_the_run_when_asked_and_replace_those_put_there_before(hidden, tmp_path, capsys):
    copied = shutil.copytree(hidden, tmp_path / "seed0")
    old = read_results(copied)
    new = evaluate(copied, figures=False, into="results").rows
    assert "rows of test tasks at iteration 2 put in place of 0" in capsys.readouterr().out
    assert repr(read_results(copied)) == repr([*old, *new])
    again = evaluate(copied, figures=False, into="results", seed=1).rows
    assert f"{len(again)} rows of test tasks at iteration 2 put in place of {len(new)}" in capsys.readouterr().out
    assert repr(read_results(copied)) == repr([*old, *again])
    assert repr(again) != repr(new)


def test_a_run_in_training_is_left_alone(hidden, tmp_path):
    copied = shutil.copytree(hidden, tmp_path / "seed0")
    before = contents(copied)
    with locked(copied), pytest.raises(StorageError, match="in use"):
        evaluate(copied, figures=False, into="results")
    assert contents(copied) == before


def test_the_earlier_rows_stay_until_there_are_others(run, tmp_path, monkeypatch):
    copied = shutil.copytree(run, tmp_path / "seed0")
    evaluate(copied, figures=False)
    rows = (copied / "evaluation" / "evaluation_test.csv").read_bytes()
    monkeypatch.setattr(MetaTest, "run", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        evaluate(copied, figures=False)
    assert (copied / "evaluation" / "evaluation_test.csv").read_bytes() == rows


def test_no_run_and_no_checkpoint(tmp_path, run):
    with pytest.raises(ConfigError, match="not a run folder"):
        evaluate(tmp_path)
    (tmp_path / "config.yaml").write_text((run / "config.yaml").read_text())
    with pytest.raises(StorageError):
        evaluate(tmp_path)


def test_command_line(run, capsys):
    assert main([f"run={run}", "figures=false"]) == 0
    assert "evaluation" in capsys.readouterr().out
