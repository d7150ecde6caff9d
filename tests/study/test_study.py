"""Studies: their arms are sound configurations, they run, go on, tabulate and draw."""

from __future__ import annotations

import pytest
import torch

from mbrl_lightning.config import load_config
from mbrl_lightning.envs import make_family
from mbrl_lightning.errors import ConfigError
from mbrl_lightning.measuring.plasticity import Plasticity, draw_maps, grid, plasticity, rank_correlation
from mbrl_lightning.runs.results import Results
from mbrl_lightning.study import STUDIES, arm_words, gssm_models, main, quick, study
from mbrl_lightning.study.base import folder_of

SHORT = [
    "seeds=0",
    "loop.iterations=2",
    "loop.tasks_per_iteration=2",
    "loop.model_steps=4",
    "loop.first_model_steps=4",
    "dynamics.hidden=8",
    "meta.updates=1",
    "meta.rollouts=2",
    "meta.subsample=1",
]


@pytest.mark.parametrize("name", STUDIES)
def test_every_arm_is_a_configuration_of_its_own(name):
    commands = arm_words(name, ["seeds=0..1", "loop.keep=3"])
    configs = [load_config(words) for words in commands.values()]
    assert all(config.loop.keep == 3 and config.seeds == "0..1" for config in configs)
    assert len({config.out for config in configs}) == len(STUDIES[name].arms)


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("biassed", [], "did you mean 'biased'"),
        ("biased", ["meta.bias=1"], "meta.bias: the arms of 'biased' differ in that"),
        ("biased", ["meta.nois=1"], "meta.nois"),
    ],
)
def test_what_cannot_be_studied_is_said(name, words, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        study(name, words, str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_help_names_every_study(capsys):
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in STUDIES)
    assert main([]) == 2


def test_a_study_runs_draws_and_skips_what_is_finished(in_this_process, tmp_path, capfd):
    words, arm = [*SHORT, "env.options.horizon=10", "evaluation.context=20"], "adapted policies collect"
    status, text = study("tailored", words, str(tmp_path), "adapted*")
    assert status == 0
    assert "Fig. 6" in text
    folder = tmp_path / "tailored"
    assert (folder / "tailored.png").stat().st_size > 5000
    assert arm in text
    assert arm in (folder / "study.md").read_text()
    assert [path.name for path in folder.iterdir() if path.is_dir()] == [folder_of(arm)]
    assert list((folder / folder_of(arm)).glob("half_cheetah_200/mb_mpo/seed0/results.csv"))
    capfd.readouterr()
    assert study("tailored", words, str(tmp_path), "adapted*")[1] == text
    assert capfd.readouterr().out.count("is finished, skipped") == 1


def test_models_are_compared_on_the_same_recorded_data(in_this_process, tmp_path, capfd):
    words = ["seeds=0", "loop.tasks_per_iteration=3", "loop.exploration_steps=30", "loop.first_model_steps=10"]
    words += ["dynamics.hidden=8"]
    status, text = study("gssm_models", words, str(tmp_path))
    assert status == 0
    assert capfd.readouterr().out.count("mean squared error") == 7
    lines = {line.split()[0]: line.split() for line in text.splitlines() if line.startswith("  ")}
    assert [lines[model][-2] for model in gssm_models.MODELS] == [
        "0.0296",
        "0.0475",
        "0.0626",
        "0.031",
        "0.0397",
        "-",
        "-",
    ]
    assert int(lines["told"][-1]) == int(lines["blind"][-1]) + 2 * 8  # the told masses go into the first layer
    assert (tmp_path / "gssm_models" / "gssm_models.png").stat().st_size > 5000
    assert study("gssm_models", words, str(tmp_path))[1] == text
    assert "mean squared error" not in capfd.readouterr().out  # nothing was left to fit
    cfg = load_config(arm_words("gssm_models", words)["gssm"])
    family = make_family("cartpole")
    first, second = (gssm_models.recorded(cfg, family) for _ in range(2))
    assert len(first[0]) == 3 * 30
    for one, other in ((first[0].transitions(), second[0].transitions()), (first[1], second[1]), (first[2], second[2])):
        assert torch.equal(one["next", "observation"], other["next", "observation"])


def test_where_every_run_fails_that_is_the_status_and_there_is_no_table(tmp_path, monkeypatch):
    monkeypatch.setattr("mbrl_lightning.runs.seed_jobs.train_seeds", lambda *_: (4, []))
    assert study("tailored", SHORT, str(tmp_path)) == (4, "no run of this study has any rows")


def stored(path, returns, random=None):
    """Rows of one finished run of `point2d mb_mpo` in two tasks."""
    results = Results(
        path, "mb_mpo", "point2d", int(path.stem.removeprefix("seed") or 0) if path.stem != "results" else 0
    )
    at = {"iteration": 3, "real_steps": 1800}
    for task, value in enumerate(returns):
        results.add("return/policy", value, split="test", task=task, shot=0, **at)
        if random is not None:
            results.add("return/random", random, split="test", task=task, shot=0, **at)
    results.add("time/total", 30.0, **at)
    results.flush()


@pytest.mark.parametrize(("value", "status"), [(-14.0, 0), (-27.0, 1), (float("nan"), 1)])
def test_quick_says_which_result_left_its_band(value, status, tmp_path, monkeypatch):
    """Committed -16, -15, -17: one deviation is 1, random -76 is 60 away, so the band is -16 +- (3 + 3)."""
    monkeypatch.setattr(quick, "RESULTS", tmp_path / "results")
    for seed, mean in enumerate((-16.0, -15.0, -17.0)):
        stored(tmp_path / "results" / "point2d" / "mb_mpo" / f"seed{seed}.csv", [mean - 1, mean + 1], -76.0)
    band = quick.band_of(quick.committed("point2d mb_mpo"))
    assert (band.seeds, band.mean, band.margin) == (3, -16.0, pytest.approx(6.0))
    stored(tmp_path / "quick" / "point2d_mb_mpo" / "results.csv", [value - 1, value + 1])
    one = STUDIES["quick"]
    ended, text = one.close("quick", one, tmp_path / "quick", one.rows(tmp_path / "quick"))
    assert ended == status
    assert ("left their band: point2d mb_mpo, seed 0" in text) == bool(status)


def test_quick_needs_the_committed_results_and_has_all_of_its_own(tmp_path, monkeypatch):
    assert all(quick.band_of(quick.committed(arm)).seeds >= 3 for arm in quick.CHECKED)
    monkeypatch.setattr(quick, "RESULTS", tmp_path)
    with pytest.raises(ConfigError, match="no committed results"):
        quick.committed("point2d mb_mpo")


def test_plasticity_is_measured_at_every_checkpoint(in_this_process, tmp_path):
    status, text = study("plasticity", SHORT, str(tmp_path))
    assert status == 0
    assert "after iteration 1" in text
    assert "after iteration 2" in text
    assert (tmp_path / "plasticity" / "plasticity.png").stat().st_size > 5000


def test_a_policy_that_does_not_adapt_has_no_plasticity_and_equal_models_agree(make_loop):
    loop = make_loop("mb_mpo", env={"name": "point2d", "options": {}}, dynamics={"members": 3}, meta={"updates": 0})
    algorithm, states = loop.algorithm, grid(5)
    for name, value in algorithm.adapted.adaptable().items():
        value.data.copy_(algorithm.policy.adaptable()[name].expand_as(value))
    for parameter in algorithm.dynamics.decoder.parameters():
        parameter.data.copy_(parameter.data[:1].expand_as(parameter))
    kl, deviation = plasticity(algorithm, states)
    torch.testing.assert_close(kl, torch.zeros(25))
    torch.testing.assert_close(deviation, torch.zeros(25))
    algorithm.adapted.log_std.data[1] += 0.5  # one of three: KL of two Gaussians that differ in deviation, 2 entries
    once = 2 * (0.5 + 0.5 * (torch.tensor(-1.0).exp() - 1))
    torch.testing.assert_close(plasticity(algorithm, states)[0], torch.full((25,), float(once) / 3))
    algorithm.dynamics.decoder.get_parameter(list(dict(algorithm.dynamics.decoder.named_parameters()))[-1]).data[2] += 1
    assert (plasticity(algorithm, states)[1] > 0).all()


def test_rank_correlation():
    first = torch.tensor([0.1, 5.0, 2.0, 100.0])
    assert rank_correlation(first, first.log()) == pytest.approx(1.0)
    assert rank_correlation(first, -first) == pytest.approx(-1.0)
    assert rank_correlation(torch.tensor([1.0, 2, 3, 4]), torch.tensor([2.0, 1, 4, 3])) == pytest.approx(0.6)


def test_both_maps_are_drawn(tmp_path):
    states = grid(6)
    found = Plasticity("seed0", 1, states, states.norm(dim=1), states.norm(dim=1) + 0.1)
    assert draw_maps([found, found], tmp_path / "maps.png").stat().st_size > 5000
