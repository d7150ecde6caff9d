"""The bounds are the paper's, the form called exact is the sum in its proof, and a run's proxies are put in as said."""

from __future__ import annotations

import numpy as np
import pytest

from mbrl_lightning.bounds import Options, main, parse, tables
from mbrl_lightning.bounds.guarantees import (
    branched_rollout_discrepancy,
    full_rollout_discrepancy,
    pinsker,
    vacuous_above,
)
from mbrl_lightning.errors import ConfigError
from mbrl_lightning.runs.results import Results

# gamma, eps_m, eps_pi, k, C_Th1, C_Th2 printed, C_Th2 exact: the last two summed term by term outside of this library.
SAMPLES = [
    (0.90, 0.10, 0.00, 1, 18.0, 1.8, 1.8),
    (0.90, 0.10, 0.05, 1, 38.0, 20.8, 11.8),
    (0.90, 0.10, 0.05, 5, 38.0, 24.978385, 15.978385),
    (0.95, 0.30, 0.70, 10, 1348.0, 1236.8799630894, 704.8799630894),
    (0.99, 0.05, 0.02, 20, 1790.0, 925.1604922451, 529.1604922451),
    (0.85, 0.50, 0.50, 3, 126.6666666667, 96.7997222222, 59.0219444444),
]
GRID = np.meshgrid([0.0, 0.3, 0.9, 0.99], [0.0, 0.2, 1.0], [0.0, 0.05, 1.0], [1, 2, 7, 50], indexing="ij")


def printed_in_table_1(gamma, eps_m, eps_pi, k):
    eps, rest = eps_m + eps_pi, 1 - gamma
    first = 2 * eps_pi * (1 + gamma**2) / rest**2
    second = eps * (gamma - k * gamma**k + (k - 1) * gamma ** (k + 1)) / rest**2
    return first + second + eps * (gamma**k - gamma) / (gamma - 1) + eps * (k + 1) * gamma**k / rest


def summed(gamma, eps_m, eps_pi, k, terms=3000):
    t, eps = np.arange(1, terms), eps_m + eps_pi
    steps = np.where(t < k, t + 1, k + 1)
    return 2 * eps_pi + float((gamma**t * (2 * t * eps_pi + steps * eps)).sum())


@pytest.mark.parametrize(("gamma", "eps_m", "eps_pi", "k", "full", "printed", "exact"), SAMPLES)
def test_sample_values(gamma, eps_m, eps_pi, k, full, printed, exact):
    assert full_rollout_discrepancy(gamma, eps_m, eps_pi) == pytest.approx(full, rel=1e-10)
    assert branched_rollout_discrepancy(gamma, eps_m, eps_pi, k, form="printed") == pytest.approx(printed, rel=1e-10)
    assert branched_rollout_discrepancy(gamma, eps_m, eps_pi, k) == pytest.approx(exact, rel=1e-10)
    assert branched_rollout_discrepancy(gamma, eps_m, eps_pi, k, r_max=3) == pytest.approx(3 * exact, rel=1e-10)


def test_printed_is_table_1_and_exact_is_the_sum_of_the_proof():
    printed = branched_rollout_discrepancy(*GRID, form="printed")
    np.testing.assert_allclose(printed, printed_in_table_1(*GRID), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(branched_rollout_discrepancy(*GRID), np.vectorize(summed)(*GRID), rtol=1e-9)


@pytest.mark.parametrize("form", ["exact", "printed"])
def test_one_step_is_best_and_only_the_printed_form_ever_loses_to_full_rollouts(form):
    gamma, eps_m, eps_pi, _ = GRID
    bounds, full = branched_rollout_discrepancy(*GRID, form=form), full_rollout_discrepancy(gamma, eps_m, eps_pi)
    erring = ((eps_m + eps_pi > 0) & (gamma > 0))[..., 1:]
    assert (np.diff(bounds, axis=-1)[erring] > 0).all()
    assert (bounds[..., 0] <= full[..., 0]).all()
    assert (bounds <= full).all() == (form == "exact")


def test_a_bound_is_vacuous_beyond_the_range_of_returns():
    assert vacuous_above(0.9, 2.0) == pytest.approx(40)
    eps_m, eps_pi = 0.5, 0.1 * (1 - 0.9 * 0.5)  # eps_m gamma + eps_pi / (1 - gamma) = 1
    assert branched_rollout_discrepancy(0.9, eps_m, eps_pi, 1) == pytest.approx(vacuous_above(0.9))


def test_pinsker():
    np.testing.assert_allclose(pinsker([0.02, 2.0, 50.0, -1.0, np.nan, np.inf]), [0.1, 1, 1, 0, 1, 1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gamma": 1.0}, "gamma=1: must be at least 0 and below 1"),
        ({"eps_m": [0.5, 1.5]}, "eps_m=1.5: must be a total variation distance"),
        ({"eps_pi": np.nan}, "eps_pi=nan"),
        ({"r_max": 0}, "r_max=0: must be above 0"),
        ({"k": 1.5}, "k=1.5: must be a whole number"),
        ({"k": 0}, "k >= 1 only"),
        ({"form": "exakt"}, "form='exakt'"),
    ],
)
def test_out_of_range_is_refused(arguments, message):
    with pytest.raises(ConfigError) as caught:
        branched_rollout_discrepancy(**{"gamma": 0.9, "eps_m": 0.1, "eps_pi": 0.1} | arguments)
    assert message in caught.value.cause


def test_words_of_the_command_line():
    words = ["gamma=.9", "eps_m=.1", "eps_pi=0", "k=[1,5,10]", "r_max=2", "out=x"]
    assert parse(words) == Options(0.9, 0.1, 0.0, [1, 5, 10], 2.0, "", "x")
    assert parse(["k=1..3"]).k == [1, 2, 3]
    assert parse(["k=7"]).k == [7]
    with pytest.raises(ConfigError) as caught:
        parse(["gama=0.9", "eps_m=2", "k=0", "r_max=much"])
    for part in ("did you mean 'gamma'?", "eps_m=2", "k >= 1 only", "'r_max=much': a number"):
        assert part in caught.value.cause


def test_prints_the_table_and_draws_figure_4(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert main(["gamma=0.9", "eps_m=0.1", "eps_pi=0.05", "k=[1,5]", f"out={tmp_path}"]) == 0
    text = capsys.readouterr().out
    lines = [line.split() for line in text.splitlines()]
    assert ["1", "38", "20.8", "11.8", "-26.2", "C_Th1;", "C_Th2", "as", "printed"] in lines
    assert ["5", "38", "24.978385", "15.978385", "-22.021615", "C_Th1;", "C_Th2", "as", "printed"] in lines
    assert "best k of these: 1," in text
    assert (tmp_path / "fig4.png").read_bytes().startswith(b"\x89PNG")


def test_figure_4_has_both_rows_and_says_how_much_is_vacuous(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    saved = []
    monkeypatch.setattr(tables.canvas, "save", lambda figure, path, note: saved.append(figure))
    tables.comparison(tmp_path / "a.png", [0.0, 0.9])
    panels = [axes for axes in saved[0].axes if axes.get_title()]
    assert [axes.get_title()[:3] for axes in panels] == ["(a)", "(a)", "(b)", "(b)"]
    assert "100% (C_Th2), 100% (C_Th1)" in panels[3].get_xlabel()
    # gamma eps_m / (1 - gamma) > 1, so eps_m > 1 / 9: 89 of the 101 values
    assert f"{89 / 101:.0%} (C_Th1)" in panels[1].get_xlabel()


def write_run(folder, seed=0, metrics=("model/nll", "policy/kl_cloned"), gamma=0.98):
    run = folder / f"seed{seed}"
    results = Results(run / "results.csv", "m3po", "point", seed)
    for iteration in (1, 2):
        for metric, value in zip(metrics, (0.5 - iteration, 0.0002 * iteration), strict=False):
            results.add(metric, value, iteration=iteration, real_steps=1000 * iteration)
    results.flush()
    (run / "config.yaml").write_text(f"sac:\n  gamma: {gamma}\nbranch:\n  length: 3\n")
    return run


def test_along_a_run(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    write_run(tmp_path, 0)
    write_run(tmp_path, 1)
    assert main([f"run={tmp_path}", f"out={tmp_path / 'out'}"]) == 0
    text = capsys.readouterr().out
    for part in ("point, m3po, seed 0", "point, m3po, seed 1", "gamma=0.98", "C_Th2, k=3", "guarantee nothing"):
        assert part in text
    # the first evaluation: NLL below 0 counts as 0, KL 0.0002 as 0.01
    bound = branched_rollout_discrepancy(0.98, 0.0, 0.01, 3)
    assert ["1", "1,000", "-0.5", "0.0002", "0", "0.01"] in [line.split()[:6] for line in text.splitlines()]
    assert f"{bound:.4g}" in text
    assert (tmp_path / "out" / "bounds.png").is_file()


def test_given_errors_take_the_place_of_the_estimates(tmp_path):
    errors = next(iter(tables.read_errors(write_run(tmp_path)).values()))
    np.testing.assert_array_equal(errors, [[1, 2], [1000, 2000], [-0.5, -1.5], [0.0002, 0.0004]])
    bounds = tables.run_bounds(errors, 0.9, [1, 5], r_max=2.0, eps_m=1.0, eps_pi=0.05)
    np.testing.assert_array_equal(bounds["eps_m"], [1.0, 1.0])
    np.testing.assert_allclose(bounds["C_Th2, k=5"], branched_rollout_discrepancy(0.9, 1.0, 0.05, 5, 2.0))
    np.testing.assert_allclose(bounds["C_Th1"], full_rollout_discrepancy(0.9, 1.0, 0.05, 2.0))


def test_what_cannot_be_bounded_or_written(tmp_path, capsys):
    only = write_run(tmp_path / "a", metrics=("model/nll",))
    for seed, gamma in enumerate((0.9, 0.8)):
        write_run(tmp_path / "b", seed, gamma=gamma)
    for words, status, said in (
        ([f"run={only}"], 2, "no evaluation with both model/nll and policy/kl_cloned"),
        ([f"run={tmp_path / 'b'}"], 2, "give gamma="),
        ([f"run={tmp_path / 'none'}"], 5, "no such file or folder"),
        ([f"run={only}", "k=1..9"], 2, "at most 6 lengths"),
    ):
        assert main(words) == status
        assert said in capsys.readouterr().err
    pytest.importorskip("matplotlib")
    assert main(["k=1", f"out={only / 'config.yaml' / 'below'}"]) == 5
    assert "out=" in capsys.readouterr().err
