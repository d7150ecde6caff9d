"""Run folders: reuse, locks, ranks, signals, resume rules. Faults 5, 19, 25, 32 and 35 of the list."""

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mbrl_lightning.config import load_config, read_run_config
from mbrl_lightning.errors import ConfigError, DivergedError, MBRLError, StorageError
from mbrl_lightning.runs import checkpoint, storage
from mbrl_lightning.runs.run import Run, run_folder
from mbrl_lightning.runs.signals import StopFlag
from mbrl_lightning.runs.storage import locked


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def configure(*words):
    return load_config(["conf=debug", *words])


def started(*words, learned=None):
    """A run that began and, with `learned`, has a checkpoint of that iteration."""
    with Run(configure(*words)) as run:
        if learned is not None:
            checkpoint.save(run.checkpoints, learned, {"iteration": learned}, keep=1)
    return run


def test_a_run_leaves_its_configuration_and_where_it_came_from():
    with Run(configure("seed=3")) as run:
        run.finish({"model": 1.5})
    assert run.folder == Path("runs/debug/gssm_aps/seed3")
    assert read_run_config(run.folder) == configure("seed=3")
    manifest = run.manifest
    assert manifest["seconds"] == {"model": 1.5}
    assert manifest["ended"] == "done"
    assert manifest["versions"]["torch"].startswith("2.")
    assert socket.gethostname() not in (run.folder / "manifest.json").read_text()
    assert sorted(path.name for path in run.folder.iterdir() if path.is_dir()) == ["checkpoints", "figures", "videos"]


def test_what_is_run_is_told_beforehand_with_how_long_it_took_last_time():
    said = "gssm_aps on debug, seed {0} -> runs/debug/gssm_aps/seed{0}: iteration 1 of 2{1}"
    assert Run(configure()).announced() == said.format(0, "")
    with Run(configure("seed=3")) as run:
        run.finish({"total": 61.7})
    started("seed=4")  # newer, and it came to nothing
    (started("seed=5").folder / "manifest.json").write_text('{"finished_iterations": 2, "seconds": [1]}')
    assert Run(configure()).announced() == said.format(0, "; last time 2 took 0:01:02")
    resumed = started("seed=6", learned=1).folder
    assert "iteration 2 of 2;" in Run(configure(f"resume={resumed}")).announced()


def test_a_used_folder_is_refused_with_the_three_ways_out():
    started(learned=1)
    with pytest.raises(ConfigError, match="already holds a run") as caught:
        Run(configure())
    assert all(way in caught.value.remedy for way in ("resume=", "overwrite=true", "out="))
    Run(configure("seed=1"))
    Run(configure("algorithm=gssm"))


def test_a_start_that_came_to_nothing_is_noted_and_in_nobodys_way():
    with pytest.raises(DivergedError), Run(configure()) as run:
        raise DivergedError("at once", "mend it")
    assert run.manifest["ended"] == "E-DIV"
    assert not run.finished
    assert started("search.lr=0.5").config.search.lr == 0.5


def test_of_two_that_looked_at_the_same_time_the_later_is_refused():
    late = Run(configure())
    started(learned=1)
    with pytest.raises(ConfigError, match="already holds a run"), late:
        pytest.fail("it began")


def test_overwrite_replaces_a_run_but_nothing_else():
    folder = started(learned=1).folder
    with Run(configure("overwrite=true")) as run:
        assert not run.learned
        checkpoint.save(run.checkpoints, 2, {}, keep=1)
    assert checkpoint.steps(folder / "checkpoints") == [2]
    assert [path.name for path in folder.parent.iterdir()] == ["seed0"]
    other = Path("runs/debug/gssm_aps/seed1")
    other.mkdir()
    (other / "thesis.tex").write_text("precious")
    with pytest.raises(ConfigError, match="does not hold a run"):
        started("seed=1", "overwrite=true")
    assert (other / "thesis.tex").read_text() == "precious"


def test_the_old_run_comes_back_when_the_new_one_fails_before_its_first_checkpoint():
    folder = started(learned=7).folder
    with pytest.raises(StorageError), Run(configure("overwrite=true", "search.lr=0.5")):
        raise StorageError("disk full", "free some space")
    assert checkpoint.steps(folder / "checkpoints") == [7]
    assert read_run_config(folder) == configure()
    assert [path.name for path in folder.parent.iterdir()] == ["seed0"]


def test_a_run_whose_newest_checkpoint_is_lost_is_not_finished():
    run = started("loop.iterations=2", learned=2)
    assert run.finished
    (run.checkpoints / "step_00000002" / "state.pt").unlink()
    assert not run.finished


def test_stale_temporary_files_are_swept():
    run = started()
    (run.checkpoints / "step_00000001.tmp-1234").mkdir()
    (run.folder / "config.yaml.tmp-1234").write_text("half")
    started(f"resume={run.folder}")
    assert not list(run.folder.rglob("*.tmp-*"))


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC])
@pytest.mark.parametrize("name", ["seed0", "checkpoints"])
def test_unwritable_folder_shows_before_any_work(monkeypatch, code, name):
    write = storage._write

    def refuse(path, data, how):
        if path.parent.name == name:
            raise OSError(code, os.strerror(code))
        write(path, data, how)

    monkeypatch.setattr(storage, "_write", refuse)
    with pytest.raises(StorageError, match=os.strerror(code)), Run(configure()):
        pytest.fail("the run began")


def test_path_through_a_file_is_a_storage_error():
    Path("runs").write_text("a file")
    with pytest.raises(StorageError, match=r"Not a directory|File exists"):
        started()


def test_a_lock_excludes_others_and_ends_with_its_holder(tmp_path):
    code = (
        "import pathlib as p, sys; from mbrl_lightning.runs.storage import locked\n"
        "with locked(p.Path(sys.argv[1])): print('held', flush=True); input()"
    )
    command = [sys.executable, "-c", code, tmp_path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(StorageError, match="in use by another process"), locked(tmp_path):
            pytest.fail("two hold it")
        holder.kill()
    with locked(tmp_path), pytest.raises(StorageError, match="in use"), locked(tmp_path):
        pytest.fail("two hold it")
    with locked(tmp_path):
        pass


def test_a_lock_file_that_nobody_holds_blocks_nothing():
    folder = run_folder(configure())
    folder.mkdir(parents=True)
    (folder / "lock").write_text('{"pid": 1, "host": "elsewhere"}')
    started()


@pytest.mark.parametrize(
    "ranks", [{"RANK": "1"}, {"LOCAL_RANK": "1"}, {"SLURM_PROCID": "3"}, {"LOCAL_RANK": "0", "NODE_RANK": "1"}]
)
def test_other_ranks_neither_make_nor_refuse_the_folder(monkeypatch, ranks):
    words = ("devices=2", "loop.tasks_per_iteration=2", "dynamics.tasks=2", "search.tasks=2")
    zero = Run(configure(*words))
    for name, value in ranks.items():
        monkeypatch.setenv(name, value)
    with Run(configure(*words)) as run:
        assert not run.writer
    assert not Path("runs").exists()
    with zero, Run(configure(*words)):
        assert zero.writer


def test_one_device_writes_whatever_rank_the_cluster_gives(monkeypatch):
    monkeypatch.setenv("SLURM_PROCID", "3")
    assert Run(configure()).writer


def test_resume_keeps_the_configuration_and_refuses_changes_by_name():
    run = started("search.lr=0.5", "loop.iterations=2", "init_from=null")
    resumed = load_config([f"resume={run.folder}", "loop.iterations=3", "threads=2", "conf=debug", "search.lr=0.5"])
    assert (resumed.search.lr, resumed.loop.iterations, resumed.threads) == (0.5, 3, 2)
    assert run_folder(resumed) == run.folder
    with pytest.raises(ConfigError) as caught:
        load_config([f"resume={run.folder}", "search.lr=0.25", "loop.iterations=1", "algorithm=gssm", "conf=cartpole"])
    text = str(caught.value)
    for line in ("search.lr: 0.5 in the run, 0.25 asked for", "loop.iterations: 2 in", "algorithm:", "conf:"):
        assert line in text
    assert "init_from=" in caught.value.remedy


def test_resume_of_no_run_and_contradicting_words():
    with pytest.raises(ConfigError, match="not a run folder"):
        load_config(["resume=nowhere"])
    folder = started().folder
    for word in ("overwrite=true", "init_from=x", "seeds=0..1"):
        with pytest.raises(ConfigError, match="exclude each other"):
            load_config([f"resume={folder}", word])


def test_a_run_made_from_weights_can_be_resumed_and_extended():
    source = started().folder
    run = started("seed=1", f"init_from={source}", learned=configure().loop.iterations)
    again = Run(load_config([f"resume={run.folder}"]))
    assert again.finished
    assert again.config.init_from == str(source)
    longer = Run(load_config([f"resume={run.folder}", f"loop.iterations={again.config.loop.iterations + 1}"]))
    assert not longer.finished


def test_weights_of_another_architecture_are_refused_in_three_columns():
    source = started("dynamics.hidden=16").folder
    with pytest.raises(ConfigError) as caught:
        configure("seed=1", f"init_from={source}", "dynamics.hidden=24", "search.lr=0.5")
    rows = [line.split() for line in str(caught.value).splitlines()]
    assert ["key", "init_from", "this", "run"] in rows
    assert ["dynamics.hidden", "16", "24"] in rows
    assert not any("search.lr" in row for row in rows)


def test_configuration_of_another_version_is_named():
    folder = started().folder
    with (folder / "config.yaml").open("a") as file:
        file.write("new_feature: 1\n")
    with pytest.raises(ConfigError, match="unknown key 'new_feature'"):
        load_config([f"resume={folder}"])


def test_of_several_processes_the_first_cause_is_told(tmp_path):
    from lightning.fabric import Fabric

    from mbrl_lightning.runs.devices import together

    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    for code, status in (("raise SystemExit(3)", 3), ("import time; time.sleep(60)", 75)):
        other = subprocess.Popen([sys.executable, "-c", code])
        fabric.strategy.launcher.procs = [other]
        other.wait() if status == 3 else None
        with pytest.raises(MBRLError, match="another process") as caught, together(fabric, tmp_path, grace=0.1):
            raise RuntimeError("Connection closed by peer")
        assert caught.value.exit_code == status
        assert other.poll() is not None


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_first_signal_sets_the_flag_and_the_second_ends(name, capfd):
    number = getattr(signal, name)
    before = signal.getsignal(number)
    with StopFlag() as stop:
        assert stop.requested is None
        signal.raise_signal(number)
        assert stop.requested == number
        with pytest.raises(SystemExit) as caught:
            signal.raise_signal(number)
        assert caught.value.code == (130 if name == "SIGINT" else 75)
    assert signal.getsignal(number) == before
    assert "a second signal stops at once" in capfd.readouterr().err


def test_a_signal_that_is_not_heard_ends_the_process():
    code = (
        "import ctypes, mbrl_lightning.runs.signals as s; s._DEAF = 0.5\n"
        "library, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)\n"
        "library.pthread_mutex_lock(mutex)\n"
        "with s.StopFlag(): print('ready', flush=True); library.pthread_mutex_lock(mutex)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        time.sleep(1.0)  # by now it waits: what comes before that is heard
        process.send_signal(signal.SIGTERM)
        late = threading.Timer(30, process.kill)
        late.start()
        assert b"waited for another process" in process.stderr.read()
        late.cancel()
    assert process.returncode == 75


def test_a_process_stops_when_the_one_that_started_it_is_gone(monkeypatch):
    monkeypatch.setenv(StopFlag.PARENT, str(os.getppid()))
    stop = StopFlag()
    assert stop.requested is None
    monkeypatch.setattr(os, "getppid", lambda: 1)
    assert stop.requested == signal.SIGTERM
    monkeypatch.setenv(StopFlag.PARENT, "123456")  # meant for a process further up
    assert StopFlag().requested is None


def test_names_of_checkpoints_do_not_depend_on_the_clock(monkeypatch):
    for now, step in ((2e9, 1), (1e9, 2)):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        checkpoint.save(Path("c"), step, {"n": step}, keep=2)
    os.utime("c/step_00000002", (1, 1))
    assert checkpoint.load(Path("c"))[0] == 2
