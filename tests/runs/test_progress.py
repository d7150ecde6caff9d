"""The progress line, and what is told before there is one."""

from __future__ import annotations

import time

from mbrl_lightning.runs.progress import Progress

METRICS = {"imagined/return": -0.5, "real/return": -0.75, "train/model_loss": 1.25, "train/other": 9.0}
TIMES = {"collect": 1.0, "model": 5.0, "policy": 4.0, "total": 10.0}


def test_the_line_says_how_far_how_well_and_how_long(tiny, capsys):
    progress = Progress(tiny(loop={"iterations": 12}), True, None)
    progress.line(1, 340, METRICS, TIMES)
    line = capsys.readouterr().out
    for part in (
        "[ 1/12]",
        "340 real steps",
        "imagined -0.5",
        "real -0.75",
        "model loss 1.25",
        "collect 10%",
        "model 50%",
        "policy 40%",
        "0:00:10 gone",
        "0:01:50 to go",
    ):
        assert part in line
    assert "other" not in line
    assert line.count("\n") == 1


def test_time_to_go_follows_the_pace_since_this_start(tiny, capsys):
    progress = Progress(tiny(loop={"iterations": 8}), True, None)
    progress.line(5, 1, METRICS, TIMES | {"total": 50.0})  # resumed: 10 s an iteration so far
    assert "0:00:30 to go" in capsys.readouterr().out
    progress.line(6, 1, METRICS, TIMES | {"total": 52.0})  # then 12 s for two
    assert "0:00:12 to go" in capsys.readouterr().out


def test_other_ranks_are_silent(tiny, capsys, tmp_path):
    progress = Progress(tiny(logger=["csv", "tensorboard"]), False, tmp_path)
    progress.line(1, 1, METRICS, TIMES)
    assert capsys.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []


def told(progress, capsys, seconds: float) -> str:
    progress.stage = "model"
    with progress.watching(lambda: "7 gradient steps", wait=0.01):
        time.sleep(seconds)
    return capsys.readouterr().out


def test_inside_the_first_iteration_the_stage_and_its_counts_are_told_ever_more_rarely(tiny, capsys):
    progress = Progress(tiny(), True, None)
    lines = told(progress, capsys, 1.0).splitlines()
    assert set(lines) <= {f"model: 7 gradient steps, 0:00:0{second} gone" for second in (0, 1)}
    assert 1 <= len(lines) <= 4  # after .1, .2, .4, .8 s
    progress.line(1, 340, METRICS, TIMES)
    capsys.readouterr()
    assert told(progress, capsys, 0.3) == ""  # from here on there is a line an iteration


def test_on_a_terminal_it_is_told_in_place_until_the_line_takes_its_place(tiny, capsys):
    progress = Progress(tiny(), True, None)
    progress.terminal = True
    text = told(progress, capsys, 0.3)
    assert text.count("\r") > 3
    assert "\n" not in text
    progress.line(1, 340, METRICS, TIMES)
    assert capsys.readouterr().out.startswith("\r\033[K[")
    assert told(Progress(tiny(), False, None), capsys, 0.3) == ""  # another rank
