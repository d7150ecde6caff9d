"""The pages of results: numbers only from rows, variants under the names of their folders, prose left as it is."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest

from mbrl_lightning.runs.results import Results, Row

pytest.importorskip("matplotlib")
DOCS = Path(__file__).resolve().parent.parent / "docs"


@pytest.fixture
def updater(tmp_path, monkeypatch):
    """`docs/update_results.py` on an empty front page, with no runs and no results yet."""
    spec = importlib.util.spec_from_file_location("update_results", DOCS / "update_results.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "update_results", module)
    spec.loader.exec_module(module)
    for name, folder in {"PAGES": "pages", "IMAGES": "images", "RESULTS": "results", "RUNS": "runs"}.items():
        monkeypatch.setattr(module, name, tmp_path / folder)
        (tmp_path / folder).mkdir()
    (tmp_path / "pages" / "README.md").write_text("# Results\n<!-- front -->\n<!-- end front -->\n")
    return module


def store(folder: Path, label: str, algorithm: str, seeds: int = 2, worse: float = 0.5) -> None:
    """Results as a run writes them; the return is 100 seed + 10 iteration, for `m3po` at shot 0, for others at 200."""
    for seed in range(seeds):
        results = Results(folder / label / f"seed{seed}.csv", algorithm, "point_switch", seed)
        for iteration in (1, 2):
            at = {"iteration": iteration, "real_steps": 200 * iteration, "shot": 0 if algorithm == "m3po" else 200}
            for task in (0, 1):
                value = 100.0 * seed + 10 * iteration + 50 * (label == "m3po_k3")
                results.add("return/policy", value, split="test", task=task, **at)
            results.add("reward/direction=1", 2.0 - seed, split="test", **at)
            results.add("reward/direction=-1", worse + seed, split="test", **at)
            results.add("reward/since_0_10", -0.25, split="test", **at)
        results.flush()


def test_a_family_gets_its_page_with_its_first_results_and_keeps_what_is_written_there(updater, tmp_path):
    updater.main()
    assert not (tmp_path / "pages" / "point_switch.md").exists()
    store(tmp_path / "results" / "point_switch", "m3po", "m3po")
    store(tmp_path / "results" / "point_switch", "m3po_k3", "m3po", worse=-0.5)
    store(tmp_path / "results" / "point_switch", "pearl", "pearl", seeds=1)
    updater.main()
    path = tmp_path / "pages" / "point_switch.md"
    assert "conf=point_switch algorithm=m3po\n" in path.read_text()
    path.write_text(path.read_text().replace("# point_switch", "# Point\n\nBoth directions are learned."))
    updater.main(["point_switch"])
    again = path.read_text()
    assert "Both directions are learned." in again
    assert again.count("<!-- tables -->") == again.count("test tasks: return") == 1
    (line,) = [line for line in (tmp_path / "pages" / "README.md").read_text().splitlines() if "point_switch" in line]
    # iteration 2: 20 and 120 on two tasks each, the variant 50 more; PEARL 20 with its one seed
    assert re.match(
        r"\| \[point_switch\]\(point_switch.md\) \| 400 \| 120 \[.*?\] \(2, k3\) \| - \| - \| - \| 20 \(1\) \|", line
    )


def test_every_seed_and_the_worse_direction_stand_in_the_tables(updater, tmp_path):
    store(tmp_path / "results" / "point_switch", "m3po", "m3po")
    store(tmp_path / "results" / "point_switch", "m3po_k3", "m3po", worse=-0.5)
    lines = updater.page("point_switch").splitlines()
    assert "| m3po | 0 | 1 | 400 | 120 |" in lines
    # seed 0 has 2 and .5, seed 1 has 1 and 1.5; of the variant 2 and -.5, 1 and .5
    assert "| m3po | 0 | 0 | 400 | 0.5 | 2 | 0.5 | -0.25 |" in lines
    assert "| m3po_k3 | 0 | 1 | 400 | 0.5 | 1 | 0.5 | -0.25 |" in lines
    assert any(line.startswith("| m3po | 0 | 2 | 400 | 1 +- 0.71 | 1.5 +- 0.71 | 0.75 +- 0.35 |") for line in lines)


def test_variants_have_a_picture_of_their_own(updater, tmp_path, monkeypatch):
    for label, algorithm in {"m3po": "m3po", "m3po_k3": "m3po", "pearl": "pearl", "visible": "recurrent_sac"}.items():
        store(tmp_path / "results" / "point_switch", label, algorithm)
    drawn = {}

    def draw(rows, metric, path, split):
        drawn[path.name] = {row.algorithm for row in rows}

    monkeypatch.setattr(updater.figures, "learning_curve", draw)
    updater.page("point_switch")
    assert drawn == {
        "point_switch_curve.png": {"m3po", "pearl"},
        "point_switch_variants.png": {"m3po", "m3po_k3", "visible"},
    }


def test_curves_of_runs_that_looked_at_training_tasks_on_the_way_are_of_those(updater):
    row = Row("m3po", "point_switch", 0, 1, 200, "train", 0, 0, "return/policy", 1.0, "")
    looked = [row, row._replace(iteration=2), row._replace(iteration=3, split="test")]
    assert updater.curve_split(looked) == "train"
    assert updater.curve_split([entry._replace(split="test") for entry in looked]) == "test"


def test_the_committed_results_have_a_page_each_and_no_number_stands_elsewhere():
    pages = {path.stem: path.read_text() for path in (DOCS / "results").glob("*.md")}
    names = {path.name for path in (DOCS.parent / "results").iterdir() if path.is_dir()} - {"studies"}
    assert {name for name in names if "<!-- tables -->" not in pages.get(name, "")} == set()
    studies = {path.name for path in (DOCS.parent / "results" / "studies").iterdir()}
    assert {name for name in studies if f"<!-- study: {name} -->" not in pages["studies"]} == set()
    assert all(f"[{name}]({name}.md)" in pages["README"] for name in names)
    assert len(pages["README"].splitlines()) <= 100


def test_headroom_is_a_table_of_its_own_and_no_algorithm(updater, tmp_path):
    results = Results(tmp_path / "results" / "cartpole" / "headroom" / "seed0.csv", "headroom", "cartpole", 0)
    for arm, value in (("with", 3.0), ("without", 2.0), ("wrong", 1.0)):
        for task in range(2):
            results.add(f"return/{arm}", value + task, iteration=0, real_steps=500, split="test", task=task)
        results.add(f"model/nmse_{arm}", value / 10, iteration=0, real_steps=0, split="test", task=0)
    results.flush()
    assert updater.rows_of("cartpole") == []
    (row,) = updater.headroom_table("cartpole").rows
    assert row == ["0", "500", "3.5", "2.5", "1.5", "0.3", "0.2", "0.1"]


def test_a_study_stands_under_the_names_of_its_arms(updater, tmp_path, monkeypatch):
    monkeypatch.setattr(updater.mb_mpo, "draw", lambda question, rows, path: path)
    path = tmp_path / "results" / "studies" / "tailored" / "adapted_policies_collect" / "seed0.csv"
    results = Results(path, "mb_mpo", "half_cheetah_200", 0)
    for iteration in (1, 2):
        where = {"iteration": iteration, "real_steps": 100 * iteration, "split": "test", "task": 0, "shot": 0}
        results.add("return/policy", 5.0 * iteration, **where)
    results.flush()
    text = updater.study_section("tailored")
    assert "adapted policies collect" in text
    assert "study_tailored.png" in text


def test_marks_are_filled_and_filled_again(updater):
    page = "a <!-- study: x --> <!-- end study: x --> b"
    once = updater.filled(page, "study: x", "one")
    assert once == "a <!-- study: x -->\n\none\n\n<!-- end study: x --> b"
    assert updater.filled(once, "study: x", "two") == once.replace("one", "two")
    assert updater.filled(page, "study: y", "one") == page
