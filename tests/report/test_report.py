"""The report's tables hold the right numbers, with unit and source; files and exit codes are as promised."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mbrl_lightning import report as reporting
from mbrl_lightning.report import main, report, tables
from mbrl_lightning.report.kinds import ADAPTATION, BODY, MODEL, PROBE, RETURN, TRAINING
from mbrl_lightning.report.tables import build
from mbrl_lightning.runs.results import Results, Row, read_results, return_unit


def write_run(
    root: Path, seed: int, env: str = "half_cheetah", algorithm: str = "gssm_aps", iterations: int = 2, unit: str = ""
) -> Path:
    """One run: on 8 tasks the return is 1000 + 100 seed + task (10 less with no context)."""
    folder = root / env / algorithm / f"seed{seed}"
    results = Results(folder / "results.csv", algorithm, env, seed)

    def add(metric: str, value: float, iteration: int, task: int = -1, shot: int = -1) -> None:
        split = "" if task < 0 and not metric.startswith(("probe", "latent")) else "test"
        where = {"iteration": iteration, "real_steps": 5000 * iteration, "split": split, "task": task, "shot": shot}
        results.add(metric, value, **where, unit=unit)

    for iteration in range(1, iterations + 1):
        whole = {"real/return": 900.0, "imagined/return": 950.0 + seed}
        times = {"time/model": 45.0 * iteration, "time/policy": 9.0 * iteration, "time/total": 60.0 * iteration}
        for metric, value in (whole | times).items():
            add(metric, value, iteration)
        for task in range(8):
            value = 1000.0 * iteration / iterations + 100 * seed + task
            add("return/policy", value, iteration, task, 500)
            if iteration == iterations:
                add("return/policy", value - 10, iteration, task, 0)
                wrong = 0.05 if task else 0.03  # worse on 7 of 8
                last = {"return/random": -123.0, "return/wrong_belief": value - 5, "model/mse": 0.5, "model/nmse": 0.04}
                for metric, number in (last | {"model/wrong_nmse": wrong, "upright/share": 0.05}).items():
                    add(metric, number, iteration, task, 500)
    add("probe/r2/mass", 0.8 + 0.1 * seed, iterations, shot=500)
    results.flush()
    return folder


def line_of(text: str, *beginning: str) -> str:
    """The first line of plain-text tables that begins with these cells."""
    lines = [line for line in text.splitlines() if cells_of(line)[: len(beginning)] == list(beginning)]
    assert lines, f"no line begins with {beginning} in\n{text}"
    return lines[0]


def cells_of(line: str) -> list[str]:
    return re.split(r"\s{2,}", line.strip())


@pytest.fixture
def rows(tmp_path: Path) -> list[Row]:
    """Two seeds."""
    for seed in (0, 1):
        write_run(tmp_path / "runs", seed)
    return reporting._with_units(read_results(tmp_path / "runs"))


def test_return_table_by_hand(rows):
    table = build(rows, "half_cheetah", "test", RETURN)
    text = table.text()
    assert text.splitlines()[0] == "half_cheetah, test tasks: return [sum of rewards, 1000 steps]"
    # Seeds' means 1003.5 and 1103.5: mean 1053.5, sd 100 / sqrt(2) = 70.7. IQM: of 1000..1007 and 1100..1107
    # the lowest 4 and highest 4 go: (1004 + ... + 1007 + 1100 + ... + 1103) / 8 = 1053.5.
    cells = cells_of(line_of(text, "gssm_aps", "500"))
    assert cells[:6] == ["gssm_aps", "500", "2", "10,000", "8", "1,054 +- 71"]
    assert cells[6].startswith("1,054 [1,0")
    assert cells[7:] == ["1,004 1,104", "1,048 +- 71", "-123 +- 0"]
    no_context = cells_of(line_of(text, "gssm_aps", "0"))
    assert no_context[5] == "1,044 +- 71"
    assert no_context[-2:] == ["-", "-123 +- 0"]  # wrong belief was not measured there; random has no context
    assert cells_of(line_of(text, "paper: gssm_aps"))[5] == "1,597"
    assert "paper: gssm_aps from Table 2" in text


def test_model_table_by_hand(rows):
    table = build(rows, "half_cheetah", "test", MODEL)
    cells = cells_of(line_of(table.text(), "gssm_aps", "500"))
    # 7 of 8 worse: p = 2 (1 + 8) / 256 = 0.07.
    assert cells[4:] == ["0.5 +- 0", "0.04 +- 0", "0.0475 +- 0", "7/8 (0.07), 7/8 (0.07)"]
    assert "0.53" in cells_of(line_of(table.text(), "paper: gssm"))


def test_adaptation_table_by_hand(rows):
    ends = [row for row in rows if row.metric == "model/nmse" and row.split == "test"]
    assert build(rows, "half_cheetah", "test", ADAPTATION) is None  # nothing adapted
    before = [row._replace(metric="model/nmse_before", value=1.0) for row in ends]
    after = [row._replace(metric="model/nmse_after", value=0.75 if row.task else 2.75) for row in ends]
    table = build([*rows, *before, *after], "half_cheetah", "test", ADAPTATION)
    cells = cells_of(line_of(table.text(), "gssm_aps", "500"))
    assert cells[4:] == ["1 +- 0", "1 +- 0", "7/8 (0.07), 7/8 (0.07)"]  # the mean alone would hide the seven
    assert "L, after" not in table.text()  # runs of before L was measured


def test_other_tables_by_hand(rows):
    probe = build(rows, "half_cheetah", "test", PROBE)
    assert "0.85 +- 0.071 (least 0.8)" in probe.text()
    body = build(rows, "half_cheetah", "test", BODY)
    assert "upright [share of steps]" in body.text()
    assert "distance" not in body.text()  # not measured: no empty column
    success = [row._replace(metric="info/success@random") for row in rows if row.metric == "return/policy"]
    assert "success, random policy" in build([*rows, *success], "half_cheetah", "test", BODY).text()
    training = cells_of(line_of(build(rows, "half_cheetah", "", TRAINING).text(), "gssm_aps"))
    assert training[3:6] == ["950 +- 0.71", "900 +- 0", "50.5 +- 0.71"]
    assert training[6:] == ["2", "model 75%, policy 15%, other 10%"]  # 60 s an iteration, added up over two


def test_splits_without_rows_have_no_table(rows):
    assert [build(rows, "half_cheetah", "extreme", kind) for kind in (RETURN, MODEL, PROBE, BODY)] == [None] * 4


def test_an_older_measurement_is_not_shown_beside_a_newer_one(rows):
    newer = [
        row._replace(iteration=3, real_steps=15_000, value=2000.0)
        for row in rows
        if row.metric == "return/policy" and row.shot == 500 and row.iteration == 2
    ]
    table = build(rows + newer, "half_cheetah", "test", RETURN)
    cells = cells_of(line_of(table.text(), "gssm_aps", "500"))
    assert cells[3] == "15,000"
    assert cells[5] == "2,000 +- 0"
    assert "task's belief" not in table.text()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_diverged_seed_is_seen(rows, value):
    broken = [row._replace(value=value) if row.task == 3 and row.seed == 1 else row for row in rows]
    for kind in (RETURN, MODEL):
        table = build(broken, "half_cheetah", "test", kind)
        assert str(value) in line_of(table.text(), "gssm_aps", "500")


@pytest.mark.parametrize(
    ("unit", "env", "words"),
    [
        ("", "half_cheetah", "sum of rewards, 1000 steps"),
        ("episode", "half_cheetah", "sum of rewards, 1000 steps"),
        ("step", "cartpole_wide", "mean reward per step, 25 steps"),
        ("step", "mine", "mean reward per step"),
        (return_unit("episode", 300), "half_cheetah", "sum of rewards, 300 steps"),  # what the rows say wins
    ],
)
def test_the_unit_stands_with_the_return(tmp_path, monkeypatch, unit, env, words):
    monkeypatch.setattr(reporting, "draw", lambda *_: [])
    run = write_run(tmp_path, 0, unit=unit, env=env)
    assert f"{env}, test tasks: return [{words}]" in report(run, tmp_path / "out")


def test_numbers_are_short():
    numbers = [0.00241, -0.4783, 99.96, 1597.2, 12345.6, float("nan")]
    assert [tables.number(value) for value in numbers] == ["0.00241", "-0.478", "100", "1,597", "12,346", "nan"]


def test_report_writes_text_markdown_and_curves(tmp_path):
    pytest.importorskip("matplotlib")
    for seed in (0, 1):
        write_run(tmp_path / "runs", seed)
    write_run(tmp_path / "runs", 0, algorithm="dr_ppo")
    write_run(tmp_path / "runs", 0, env="own/Env-v1", iterations=1)
    out = tmp_path / "out"
    text = report([tmp_path / "runs"], out)
    markdown = (out / "report.md").read_text()
    links = re.findall(r"!\[\w+]\(([\w-]+\.png)\)", markdown.replace("Env-v1", "Env_v1"))
    assert {f"half_cheetah_{name}.png" for name in ("learning", "adaptation", "training", "exploitation")} <= set(links)
    assert {file.name for file in out.glob("*.png")} == set(re.findall(r"\(([\w-]+\.png)\)", markdown))
    assert "| gssm_aps | 500 | 2 | 10,000 | 8 | 1,054 +- 71 |" in markdown
    assert line_of(text, "dr_ppo", "500")
    assert "own/Env-v1, test tasks" in text


def test_report_without_matplotlib_still_has_tables(tmp_path, monkeypatch, capsys):
    run = write_run(tmp_path / "runs", 0)
    monkeypatch.setattr(reporting.importlib.util, "find_spec", lambda name: None)
    assert main([str(run), f"out={tmp_path / 'out'}"]) == 0
    text = capsys.readouterr().out
    assert "1,004" in text
    assert "matplotlib is missing" in text
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["report.html", "report.md"]


# -- the command line


@pytest.mark.parametrize(
    ("arguments", "code", "cause"),
    [
        ([], 2, "RUN... is missing"),
        (["absent"], 5, "no results at absent"),
        (["empty"], 5, "no rows yet"),
        (["run", "out=file"], 5, "file: File exists"),
    ],
)
def test_faults_end_with_their_code_a_cause_and_a_remedy(tmp_path, monkeypatch, capsys, arguments, code, cause):
    monkeypatch.chdir(tmp_path)
    Results("empty/results.csv", "a", "e", 0)
    write_run(tmp_path / "run", 0)
    Path("file").write_text("in the way")
    assert main(arguments) == code
    printed = capsys.readouterr()
    assert cause in printed.err
    assert "remedy:" in printed.err
    assert printed.out == ""
    assert Path("file").read_text() == "in the way"


def test_a_reader_that_stops_early_is_no_fault(tmp_path):
    run = write_run(tmp_path / "runs", 0, iterations=1)
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "mbrl_lightning.report", str(run), f"out={tmp_path / 'out'}"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")  # as a shell counts it
