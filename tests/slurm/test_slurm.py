"""A sweep on a real Slurm of one node: arrays, a run that is told to stop, one that is killed, two ranks of one run."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import mbrl_lightning
from mbrl_lightning.runs import checkpoint
from mbrl_lightning.runs.results import read_results

NEEDED = ("sbatch", "srun", "squeue", "scontrol", "scancel")
there = all(map(shutil.which, NEEDED)) and shutil.which("munged", path=f"{os.environ['PATH']}:/usr/sbin")
pytestmark = [
    pytest.mark.skipif(not there or os.name != "posix" or os.geteuid() != 0, reason="no Slurm to set up"),
    pytest.mark.timeout(280),
]
SETUP = Path(__file__).with_name("setup.sh")
LINE = ["conf=debug", "algorithm=dr_ppo", "launcher=slurm", "evaluation.episodes=1", "loop.evaluate_every=1000"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Environment of processes that find it."""
    folder = tmp_path_factory.mktemp("slurm")
    subprocess.run([SETUP, folder], check=True, timeout=60)
    package = str(Path(mbrl_lightning.__file__).parents[1])
    yield os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PYTHONPATH": package, "OMP_NUM_THREADS": "1"}
    subprocess.run([SETUP, folder, "stop"], check=True, timeout=60)


@pytest.fixture
def sweep(cluster, tmp_path):
    """`sweep(*words)`: the command, begun."""
    pytest.importorskip("submitit")
    begun = []

    def start(*words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "mbrl_lightning.sweep", *LINE, *words]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        begun.append(subprocess.Popen(command, env=cluster, cwd=tmp_path, **pipes))
        return begun[-1]

    yield start
    for process in begun:
        process.kill()
        process.communicate()


def trains(process, folder: Path) -> bool:
    return process.info["cwd"] == str(folder) and "mbrl_lightning.fit" in (process.info["cmdline"] or ())


def queue(cluster) -> list[str]:
    told = subprocess.run(["squeue", "-h", "-o", "%F"], env=cluster, capture_output=True, text=True, check=True)
    return told.stdout.split()


def running(cluster, folder: Path, least: int = 1) -> str:
    """The array of a run once it has saved an iteration."""
    end = time.monotonic() + 120
    while checkpoint.newest(folder / "checkpoints") < least:
        assert time.monotonic() < end
        time.sleep(0.2)
    return queue(cluster)[0]


def test_an_array_is_trained_and_tabled_and_a_wrong_parameter_refused(sweep, tmp_path):
    out, err = (process := sweep("seeds=0..1", "loop.iterations=1")).communicate(timeout=200)
    assert process.returncode == 0, err
    assert "2 of 2" in out
    out, err = (process := sweep("seeds=0..1", "loop.iterations=1")).communicate(timeout=60)
    assert (process.returncode, "submitted" in out) == (0, False)  # all is finished
    assert "2 of 2 runs are finished, skipped" in out
    for word, part in (
        ("slurm.partition=x", "Slurm refuses: invalid partition"),
        ("slurm.partitoin=x", "'partition'?"),
    ):
        out, err = (process := sweep("seeds=7", word)).communicate(timeout=60)
        assert process.returncode == 2
        assert part in err
        assert (err.count("partition specified") <= 1, err.count("remedy:"), len(err.splitlines())) == (True, 1, 2)


def test_after_two_signals_nothing_is_left_in_the_queue(sweep, cluster):
    process = sweep("seeds=8", "loop.iterations=2000")
    while not queue(cluster):
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    end = time.monotonic() + 60
    while queue(cluster):
        assert time.monotonic() < end
        time.sleep(0.2)


def test_runs_of_an_array_told_to_stop_save_are_queued_again_and_go_on(sweep, cluster, tmp_path):
    process, folders = (
        sweep("seeds=0..1", "loop.iterations=40"),
        [tmp_path / f"runs/debug/dr_ppo/seed{n}" for n in (0, 1)],
    )
    for index, (name, folder) in enumerate(zip(("USR1", "TERM"), folders, strict=True)):  # time nearly over, preempted
        subprocess.run(["scancel", f"--signal={name}", f"{running(cluster, folder)}_{index}"], env=cluster, check=True)
    _, err = process.communicate(timeout=250)
    assert process.returncode == 0, err
    logs = [path.read_text() for path in (tmp_path / "runs/slurm").glob("*_log.out")]
    assert [log.count("state saved") for log in logs] == [1, 1]
    for folder in folders:
        assert checkpoint.newest(folder / "checkpoints") == 40
        assert {row.iteration for row in read_results(folder)} >= {40}
    assert "--signal=USR1@" in next((tmp_path / "runs/slurm").glob("*_submission.sh")).read_text()


def test_a_run_that_is_killed_or_cancelled_goes_on_with_the_next_command(sweep, cluster, tmp_path):
    words, folder = ("seeds=0", "loop.iterations=20"), tmp_path / "runs/debug/dr_ppo/seed0"
    process = sweep(*words)
    running(cluster, folder)
    (fit,) = (each for each in psutil.process_iter(["cmdline", "cwd"]) if trains(each, tmp_path))
    fit.kill()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 137
    assert "runs/debug/dr_ppo/seed0: ended with status 137; see" in err
    assert "0 of 1" in out
    saved = checkpoint.newest(folder / "checkpoints")
    assert saved >= 1

    process = sweep(*words)
    running(cluster, folder, saved + 1)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode == 130
    assert not subprocess.run(["squeue", "-h"], env=cluster, capture_output=True, check=True).stdout

    _, err = (process := sweep(*words)).communicate(timeout=250)
    assert process.returncode == 0, err
    assert checkpoint.newest(folder / "checkpoints") == 20


def test_two_ranks_of_srun_train_one_run(cluster, tmp_path):
    words = ["conf=debug", "devices=2", "strategy=ddp", "loop.iterations=1", "dynamics.tasks=2", "search.tasks=2"]
    command = ["srun", "--ntasks-per-node=2", sys.executable, "-m", "mbrl_lightning.fit", *words]
    told = subprocess.run(command, env=cluster, cwd=tmp_path, capture_output=True, text=True, timeout=250, check=False)
    assert told.returncode == 0, told.stderr[-2000:]
    assert checkpoint.newest(tmp_path / "runs/debug/gssm_aps/seed0/checkpoints") == 1
