"""A method of a user's own: one file and its YAML, trained, resumed, evaluated and asked like a shipped one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mbrl_lightning import evaluate, load
from mbrl_lightning.config import load_config, read_run_config
from mbrl_lightning.errors import ConfigError
from mbrl_lightning.fit import main
from mbrl_lightning.runs.results import read_results

CODE = """
import torch
from mbrl_lightning.algorithms.base import Algorithm
from mbrl_lightning.policies.heads import Policy


class Drifting(Algorithm):
    def __init__(self, family, cfg):
        super().__init__(family, cfg)
        self.policy = Policy(self.spec, cfg.policy, 0)

    def improve(self, world, step):
        with torch.no_grad():
            for parameter in self.policy.parameters():
                parameter += 0.01 * torch.randn(parameter.shape, generator=self.generator)
        return {}


algorithm = Drifting
"""
WORDS = ["conf=cartpole", "loop.iterations=2", "loop.tasks_per_iteration=2", "loop.evaluate_every=0"]


@pytest.fixture
def method(tmp_path):
    """A file with a method, its YAML beside it, and the words that train it."""
    file = tmp_path / "drifting.py"
    file.write_text(CODE)
    file.with_suffix(".yaml").write_text(
        "reads: {policy: [hidden], loop: [tasks_per_iteration]}\npolicy: {hidden: [8]}\n"
    )
    return file


def words(file, tmp_path, *more):
    return [*WORDS, f"algorithm_file={file}", f"out={tmp_path / 'runs'}", *more]


def test_the_example_runs(tmp_path):
    example = Path(__file__).parents[2] / "examples" / "random_search.py"
    few = ["conf=cartpole", "search.tasks=4", "loop.iterations=1", f"out={tmp_path}"]
    assert main([*few, f"algorithm_file={example}"]) == 0
    assert load(tmp_path / "cartpole" / "random_search" / "seed0").algorithm.policy.norm.loc.any()


def test_it_is_trained_goes_on_and_is_asked(method, tmp_path):
    run = tmp_path / "runs" / "cartpole" / "drifting" / "seed0"
    assert main(words(method, tmp_path)) == 0
    cfg = read_run_config(run)
    assert (cfg.algorithm, cfg.algorithm_file, cfg.policy.hidden) == ("drifting", str(method), [8])
    assert {row.algorithm for row in read_results(run)} == {"drifting"}
    assert main(["resume=" + str(run), "loop.iterations=3"]) == 0
    assert max(row.iteration for row in read_results(run)) == 3
    assert evaluate(run, figures=False).rows
    agent = load(run)
    assert agent.predict([[0.0, 0.1, 0.2, 0.3]], deterministic=True)[0].shape == (1, 1)
    method.unlink()
    with pytest.raises(ConfigError, match=r"its method is not at .*drifting\.py"):
        load(run)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["search.lr=1"], "search.lr is not read by algorithm=drifting"),
        (["algorithm=ppo"], "algorithm= and algorithm_file= exclude each other"),
        (["algorithm_file=none.py"], "no such file"),
    ],
)
def test_what_does_not_fit_is_said(method, tmp_path, more, message):
    with pytest.raises(ConfigError, match=message):
        load_config(words(method, tmp_path, *more))


def test_the_yaml_and_a_name_of_its_own_are_asked_for(method, tmp_path):
    shipped = method.rename(tmp_path / "ppo.py")
    with pytest.raises(ConfigError, match="algorithm=ppo is a shipped one"):
        load_config(words(shipped, tmp_path))
    lone = shipped.rename(tmp_path / "lone.py")
    lone.with_suffix(".yaml").write_text("search: {lr: 0.1, updates: 2}\n")
    with pytest.raises(ConfigError, match=r"E-CFG\]: algorithm_file=.* does not say what it `reads:`"):
        load_config(words(lone, tmp_path))
    lone.with_suffix(".yaml").unlink()
    with pytest.raises(ConfigError, match=r"its YAML is missing: write .*lone\.yaml"):
        load_config(words(lone, tmp_path))


@pytest.mark.parametrize(
    ("old", "new", "status", "message"),
    [
        ("return {}", "return {}[1]", 3, r"improve\(\) raised KeyError: 1 \(.*drifting.py:16\)"),
        ("return {}", "return None", 3, r"improve\(\) returned a NoneType, not a dict"),
        ("def improve", "def improv", 3, r"Drifting has no improve\(\)"),
        ("return {}", "raise SystemExit(9)", 3, r"improve\(\) raised SystemExit: 9"),
        ("algorithm = Drifting", "algorithm = dict", 3, "raised TypeError"),
        ("algorithm = Drifting", "algorithm = lambda family, cfg: 7", 2, "returned a int"),
        ("algorithm = Drifting", "", 2, r"has no function algorithm\(\)"),
        ("import torch\n", "import torhc\n", 3, "importing it raised ModuleNotFoundError"),
    ],
)
def test_what_its_code_does_wrong_is_told_with_its_place(method, tmp_path, capfd, old, new, status, message):
    method.write_text(CODE.replace(old, new))
    assert main(words(method, tmp_path)) == status
    assert re.search(message, capfd.readouterr().err)
