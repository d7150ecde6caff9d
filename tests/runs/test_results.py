"""Rows survive crashes, kills and full disks, and are found again."""

from __future__ import annotations

import math
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from damage import DAMAGES, rewrite

from mbrl_lightning.errors import StorageError
from mbrl_lightning.runs.results import COLUMNS, Results, read_results, return_unit


def run_with_rows(path: Path | None, iterations: int = 3, seed: int = 0) -> Results:
    """Two rows for each iteration."""
    results = Results(path, "gssm_aps", "cartpole", seed)
    for iteration in range(iterations):
        results.add("real/return", -1 / 3 + iteration, iteration=iteration, real_steps=100 * iteration)
        at = {"iteration": iteration, "real_steps": 100 * iteration, "split": "test", "task": 4, "shot": 25}
        results.add("return/policy", 0.1 * iteration, **at, unit=return_unit("step", 25))
    results.flush()
    return results


# -- the file


def test_rows_come_back_exactly(tmp_path):
    results = run_with_rows(tmp_path / "results.csv")
    results.add("model/mse", math.inf, iteration=3, real_steps=300)
    results.add('odd, "name"', 1e-300, iteration=3, real_steps=300, unit="m, s")
    results.flush()
    assert read_results(tmp_path) == results.rows
    assert (tmp_path / "results.csv").read_text().splitlines()[0] == ",".join(COLUMNS)


def test_rows_measured_again_take_the_place_of_the_old_ones(tmp_path):
    results = run_with_rows(tmp_path / "results.csv")
    old = list(results.rows)
    kept = [row for row in old if not (row.iteration == 2 and row.split)]
    again = [row._replace(task=task, value=9.0) for row in old if row not in kept for task in (0, 1)]
    assert results.put_in_place(again) == 1
    assert read_results(tmp_path) == results.rows == kept + again
    train = [row._replace(split="train") for row in again]
    assert results.put_in_place(train) == 0  # nothing was there
    assert read_results(tmp_path) == kept + again + train
    assert [path.name for path in tmp_path.iterdir()] == ["results.csv"]


def test_nan_is_kept(tmp_path):
    results = Results(tmp_path / "results.csv", "a", "e", 0)
    results.add("x", math.nan, iteration=0, real_steps=0)
    results.flush()
    assert math.isnan(read_results(tmp_path)[0].value)


def test_add_writes_nothing_before_flush(tmp_path):
    results = run_with_rows(tmp_path / "results.csv")
    before = (tmp_path / "results.csv").read_bytes()
    results.add("x", 1.0, iteration=9, real_steps=9)
    assert (tmp_path / "results.csv").read_bytes() == before
    assert results.rows[-1].metric == "x"


def test_rows_in_memory_need_no_file():
    results = run_with_rows(None)
    results.truncate(0)
    assert [row.iteration for row in results.rows] == [0, 0]


def test_line_breaks_are_refused():
    with pytest.raises(ValueError, match="line break"):
        Results(None, "a", "e", 0).add("a\nb", 1.0, iteration=0, real_steps=0)


@pytest.mark.parametrize("cut", [1, 7, 40])
def test_torn_last_line_is_dropped_on_read_and_repaired_on_append(tmp_path, cut, caplog):
    file = tmp_path / "results.csv"
    whole = run_with_rows(file).rows
    file.write_bytes(file.read_bytes()[:-cut])
    assert read_results(file) == whole[:-1]
    assert "last line" in caplog.text
    again = Results(file, "gssm_aps", "cartpole", 0)
    again.add("x", 2.0, iteration=5, real_steps=500)
    again.flush()
    assert read_results(file) == whole[:-1] + again.rows[-1:]


@pytest.mark.parametrize("length", [0, 5])
def test_torn_header_is_repaired(tmp_path, length):
    file = tmp_path / "results.csv"
    file.write_bytes(",".join(COLUMNS).encode()[:length])
    rows = run_with_rows(file).rows
    assert read_results(file) == rows


@pytest.mark.parametrize("content", ["epoch,loss\n1,2\n3", "hello"])
def test_a_foreign_file_is_refused_and_left_alone(tmp_path, content):
    file = tmp_path / "results.csv"
    file.write_text(content)
    with pytest.raises(StorageError):
        Results(file, "a", "e", 0)
    assert file.read_text() == content


def test_a_damaged_line_is_named(tmp_path):
    file = tmp_path / "results.csv"
    run_with_rows(file)
    lines = file.read_text().splitlines(keepends=True)
    lines[3] = lines[3].replace(",1,", ",one,", 1)
    file.write_text("".join(lines))
    with pytest.raises(StorageError, match="line 4"):
        read_results(file)


def test_a_full_disk_leaves_whole_rows_and_a_second_try(tmp_path):
    file = tmp_path / "results.csv"
    results = run_with_rows(file)
    before = file.read_bytes()
    for task in range(100):
        results.add("x", task, iteration=4, real_steps=400, task=task)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 1000, hard))  # writes stop amid a row
    try:
        with pytest.raises(StorageError, match="File too large"):
            results.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert file.read_bytes() == before
    results.flush()
    assert read_results(file) == results.rows


def test_truncate_keeps_what_a_checkpoint_covers(tmp_path):
    file = tmp_path / "results.csv"
    results = run_with_rows(file)
    results.add("late", 1.0, iteration=9, real_steps=9)
    results.truncate(1)
    assert {row.iteration for row in read_results(file)} == {0, 1}
    results.add("x", 1.0, iteration=2, real_steps=2)
    results.flush()
    assert [row.metric for row in read_results(file)][-2:] == ["return/policy", "x"]


KILLED = """
import os, sys
from mbrl_lightning.runs.results import Results
results = Results(sys.argv[1], "gssm_aps", "cartpole", 0)
def dying(name, real=None):
    def call(*args):
        if name == "after-rename":
            real(*args)
        os._exit(9)
    return call
if sys.argv[2] == "after-rename":
    os.rename = dying("after-rename", os.rename)
else:
    setattr(os, sys.argv[2], dying(sys.argv[2]))
results.truncate(0)
"""


@pytest.mark.parametrize("point", ["fsync", "rename", "after-rename"])
def test_a_kill_during_truncation_leaves_old_or_new(tmp_path, point):
    file = tmp_path / "results.csv"
    rows = run_with_rows(file).rows
    done = subprocess.run([sys.executable, "-c", KILLED, str(file), point], check=False)
    assert done.returncode == 9
    expected = rows[:2] if point == "after-rename" else rows
    assert read_results(tmp_path) == expected


def rows_again(data: bytes) -> bytes:
    return data + b"".join(data.splitlines(keepends=True)[1:])


NOTICED = {name: damage for name, damage in DAMAGES.items() if name not in ("last byte gone", "endless")} | {
    "rows twice": rewrite(rows_again),
    "rows gone": rewrite(lambda data: b"".join(data.splitlines(keepends=True)[:-2])),
    "another number": rewrite(lambda data: data.replace(b"0.1", b"0.9", 1)),
}


@pytest.mark.parametrize("damage", NOTICED.values(), ids=NOTICED)
def test_what_happens_to_the_file_after_a_checkpoint_is_noticed_by_all_and_mended(tmp_path, damage, caplog):
    file = tmp_path / "seed0" / "results.csv"
    results = run_with_rows(file)
    results.record()
    results.add("late", 1.0, iteration=4, real_steps=400)
    results.flush()
    assert read_results(tmp_path) == results.rows
    damage(file)
    known = results.rows[:-1]
    assert read_results(tmp_path) == known
    assert "record of the last checkpoint" in caplog.text
    caplog.clear()
    assert Results(file, "gssm_aps", "cartpole", 0).rows == known
    assert "restored" in caplog.text
    caplog.clear()
    assert read_results(tmp_path) == known
    assert not caplog.text


@pytest.mark.parametrize("name", ["emptied", "doubled", "rows gone", "rows twice", "gone", "a pipe", "a loop"])
def test_a_file_that_is_changed_while_it_is_written_to_is_written_anew(tmp_path, name, caplog):
    file = tmp_path / "results.csv"
    results = run_with_rows(file)
    NOTICED[name](file)
    results.add("late", 1.0, iteration=4, real_steps=400)
    results.flush()
    assert read_results(tmp_path) == results.rows
    assert "written anew" in caplog.text


def test_rows_put_in_place_are_what_is_on_record(tmp_path, caplog):
    results = run_with_rows(tmp_path / "results.csv")
    results.record()
    results.put_in_place([row._replace(value=9.0) for row in results.rows if row.split])
    results.truncate(1)
    assert read_results(tmp_path) == Results(results.path, "a", "e", 0).rows == results.rows
    assert not caplog.text


def test_a_damaged_record_is_said_and_the_file_counts(tmp_path, caplog):
    results = run_with_rows(tmp_path / "results.csv")
    results.record()
    DAMAGES["rubbish"](tmp_path / "checkpoints" / "rows")
    assert read_results(tmp_path) == results.rows
    assert "is damaged" in caplog.text


@pytest.mark.parametrize("name", ["emptied", "a pipe"])
def test_a_file_without_rows_and_without_a_record_is_refused(tmp_path, name):
    run_with_rows(tmp_path / "results.csv")
    DAMAGES[name](tmp_path / "results.csv")
    with pytest.raises(StorageError, match=r"empty|no results"):
        read_results(tmp_path / "results.csv")


# -- finding files


def test_folders_above_runs_are_read(tmp_path):
    for seed in range(2):
        run_with_rows(tmp_path / f"cartpole/gssm_aps/seed{seed}/results.csv", seed=seed)
    (tmp_path / "cartpole/gssm_aps/seed0/metrics.csv").write_text("epoch,loss\n")
    assert {row.seed for row in read_results(tmp_path)} == {0, 1}
    both = read_results([tmp_path, tmp_path / "cartpole/gssm_aps/seed1"])  # named twice, counted once
    assert len(both) == 12


def test_a_folder_of_named_csvs_is_read(tmp_path):
    run_with_rows(tmp_path / "cartpole_seed3.csv", seed=3)
    (tmp_path / "other.csv").write_text("epoch,loss\n1,2\n")
    assert {row.seed for row in read_results(tmp_path)} == {3}


def test_one_run_in_two_files_is_refused(tmp_path):
    run_with_rows(tmp_path / "a/results.csv")
    run_with_rows(tmp_path / "b/results.csv")
    with pytest.raises(StorageError, match="both hold cartpole gssm_aps seed 0"):
        read_results(tmp_path)


def test_nothing_found_says_so(tmp_path):
    with pytest.raises(StorageError, match="no such file or folder"):
        read_results(tmp_path / "absent")
    with pytest.raises(StorageError, match=r"no results\.csv"):
        read_results(tmp_path)
