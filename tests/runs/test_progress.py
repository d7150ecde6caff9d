"""The progress line, and a logger that fails."""

from __future__ import annotations

import logging

import pytest

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
    progress = Progress(tiny(tensorboard=True), False, tmp_path)
    progress.line(1, 1, METRICS, TIMES)
    assert capsys.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []


class Broken:
    calls = 0

    def log_metrics(self, metrics, step):
        self.calls += 1
        raise OSError("disk full")


def test_a_logger_that_fails_costs_one_warning_and_is_left_alone(tiny, capsys, caplog):
    progress = Progress(tiny(), True, None)
    progress.logger = broken = Broken()
    with caplog.at_level(logging.WARNING, "mbrl_lightning"):
        for iteration in (1, 2, 3):
            progress.line(iteration, 1, METRICS, TIMES)
    assert broken.calls == 1
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "disk full" in caplog.text
    assert capsys.readouterr().out.count("\n") == 3


def test_a_run_outlives_its_logger(make_loop):
    loop = make_loop(loop={"iterations": 2})
    loop.progress.logger = Broken()
    loop.fit()
    assert loop.iteration == 2


def test_tensorboard_gets_every_number(tiny, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    progress = Progress(tiny(tensorboard=True), True, tmp_path)
    progress.line(1, 340, METRICS, TIMES)
    progress.logger.finalize("success")
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    assert events.Scalars("train/other")[0].value == 9.0
    assert events.Scalars("train/other")[0].step == 340
    assert "time/model" in events.Tags()["scalars"]
