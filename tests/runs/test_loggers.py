"""Numbers reach every logger that is asked for, read back by its own client; one that fails costs one warning."""

from __future__ import annotations

import logging
import struct
import time

import pytest

from mbrl_lightning.config import load_config
from mbrl_lightning.errors import ConfigError
from mbrl_lightning.runs.loggers import IDENTITIES, Loggers

SETTINGS = {"loop.iterations": 2, "policy.hidden": [8]}


def told(tiny, tmp_path, name, step=340, value=9.0):
    """A run that told a logger one number, and ended."""
    loggers = Loggers(tiny(logger=["csv", name]), tmp_path, SETTINGS)
    assert list(loggers.there) == [name]
    loggers.log({"train/other": value}, step)
    loggers.close("success")


class Broken:
    calls = 0

    def log_metrics(self, metrics, step):
        self.calls += 1
        raise OSError("disk full")


def test_a_logger_that_fails_costs_one_warning_and_is_left_alone(make_loop, caplog):
    loop, broken = make_loop(loop={"iterations": 3}), Broken()
    loop.progress.loggers.there["mine"] = broken
    with caplog.at_level(logging.WARNING, "mbrl_lightning"):
        loop.fit()
    assert (loop.iteration, broken.calls) == (3, 1)
    assert [record.message for record in caplog.records] == ["no more numbers to mine: OSError: disk full"]


def test_a_logger_that_cannot_begin_costs_one_warning_too(tiny, tmp_path, caplog, monkeypatch):
    pytest.importorskip("tensorboard")
    (tmp_path / "events").write_text("a file where its folder would be")
    with caplog.at_level(logging.WARNING, "mbrl_lightning"):
        loggers = Loggers(tiny(logger=["tensorboard"]), tmp_path, SETTINGS)
    assert loggers.there == {}
    assert caplog.text.count("no more numbers to tensorboard") == 1


def test_tensorboard_gets_every_number(tiny, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    told(tiny, tmp_path, "tensorboard")
    (scalar,) = EventAccumulator(str(tmp_path / "events")).Reload().Scalars("train/other")
    assert (scalar.step, scalar.value) == (340, 9.0)


def records(path):
    """What a small file of W&B holds: a head of 7 bytes, then records of LevelDB's log, each with checksum, length and type."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place = path.read_bytes(), 7
    while place + 7 <= len(data):
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        if kind != 1 or place + 7 + length > len(data):  # not whole yet
            return
        yield Record.FromString(data[place + 7 : place + 7 + length])
        place += 7 + length


def test_wandb_goes_on_in_the_same_run_without_a_network(tiny, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    told(tiny, tmp_path, "wandb")
    told(tiny, tmp_path, "wandb", step=680, value=3.0)
    until, seen = time.monotonic() + 20, []
    while len(seen) < 2 and time.monotonic() < until:  # a process of W&B's own writes
        files = sorted(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
        items = [item for file in files for record in records(file) for item in record.history.item]
        seen = [float(item.value_json) for item in items if "train/other" in (item.key, *item.nested_key)]
    assert seen == [9.0, 3.0]
    assert (len(files), len({file.name for file in files})) == (2, 1)  # two starts, one identity


@pytest.mark.filterwarnings("ignore")  # of its own libraries
def test_mlflow_goes_on_in_the_same_run_in_the_folders_own_store(tiny, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    told(tiny, tmp_path, "mlflow")
    told(tiny, tmp_path, "mlflow", step=680, value=3.0)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("mbrl_lightning").experiment_id])
    assert [(each.step, each.value) for each in client.get_metric_history(run.info.run_id, "train/other")] == [
        (340, 9.0),
        (680, 3.0),
    ]
    assert run.data.params["loop.iterations"] == "2"
    assert run.info.status == "FINISHED"
    assert (tmp_path / IDENTITIES).exists()


def test_names_of_loggers_are_given_with_commas_and_looked_at():
    assert load_config(["conf=debug", "logger=csv,wandb"]).logger == ["csv", "wandb"]
    assert load_config(["conf=debug", "logger=[mlflow]"]).logger == ["mlflow"]
    with pytest.raises(ConfigError, match="did you mean 'wandb'"):
        load_config(["conf=debug", "logger=wandbb"])
