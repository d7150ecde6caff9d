"""Evaluating a finished run: nothing of the run is touched, the numbers are those of its own meta-test."""

from __future__ import annotations

import csv
import hashlib

import pytest

from mbrl_lightning.errors import ConfigError, StorageError
from mbrl_lightning.evaluate import Options, evaluate, load_run, main, parse
from mbrl_lightning.fit import fit


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


def test_options_are_read():
    words = "run=a/b tasks=extreme episodes=3 context=20 seed=4 figures=false rulers=true video=true"
    expected = Options(
        run="a/b", tasks="extreme", episodes=3, context=20, seed=4, figures=False, rulers=True, video=True
    )
    assert parse(words.split()) == expected
    assert parse(["run=a"]) == Options(run="a")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "run= is missing"),
        (["run=a", "task=test"], "did you mean 'tasks'"),
        (["run=a", "episodes=x"], "episodes=x"),
        (["run=a", "episodes=0"], "at least 1"),
        (["run=a", "context=0"], "at least 1"),
        (["run=a", "tasks=all"], "tasks=all"),
        (["run=a", "figures=1"], "figures=1"),
        (["run"], "unknown key"),
    ],
)
def test_wrong_options_are_named(words, message):
    with pytest.raises(ConfigError, match=message):
        parse(words)


def test_all_wrong_options_are_named_at_once():
    with pytest.raises(ConfigError) as caught:
        parse(["run=a", "epsiodes=2", "tasks=all", "seed=x"])
    assert all(word in str(caught.value) for word in ("episodes", "tasks=all", "seed=x"))


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


def test_rulers_are_measured_beside_the_runs_own_model(run):
    rows = evaluate(run, figures=False, rulers=True).rows
    for name in ("blind_nmse", "told_nmse", "blind_mse", "told_mse_random"):
        assert len([row for row in rows if row.metric == f"model/{name}"]) == 50


def test_a_run_is_loaded_as_it_was(run):
    loop = load_run(run)
    assert loop.iteration == 1
    assert loop.real.num_steps == len(loop.real) > 0
    assert loop.folder is None
    assert [row for row in loop.results.rows if row.metric == "return/policy"]


def test_no_run_and_no_checkpoint(tmp_path, run):
    with pytest.raises(ConfigError, match="not a run folder"):
        evaluate(tmp_path)
    (tmp_path / "config.yaml").write_text((run / "config.yaml").read_text())
    with pytest.raises(StorageError):
        evaluate(tmp_path)


def test_command_line(run, capsys):
    assert main([f"run={run}", "figures=false"]) == 0
    assert "evaluation" in capsys.readouterr().out
    assert main(["--help"]) == 0
    assert main([]) == 2
    assert main(["run=nowhere"]) == 2
    assert "remedy" in capsys.readouterr().err
