"""The progress line, and a logger that fails."""

from __future__ import annotations

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
