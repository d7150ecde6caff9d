"""A sweep on Ray: every run in a process of its own, its status and its log, and a signal that reaches it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("ray")

from mbrl_lightning import sweep as command

pytestmark = [pytest.mark.usefixtures("elsewhere"), pytest.mark.filterwarnings("ignore")]


def test_every_run_has_its_status_and_its_log(monkeypatch, capsys):
    commands = lambda job: ["sh", "-c", f"echo I am {job.seed}; exit {3 + job.seed}"]  # noqa: E731
    monkeypatch.setattr("mbrl_lightning.sweep.ray.command_of", commands)
    assert command.main(["conf=debug", "algorithm=dr_ppo", "seeds=0,1", "launcher=ray"]) == 3
    said = capsys.readouterr().out
    assert "seed0: ended with status 3" in said
    assert "seed1: ended with status 4" in said
    assert "0 of 2" in said
    assert Path("runs/ray/debug_dr_ppo_seed1.log").read_text() == "I am 1\n"
    assert command.main(["conf=debug", "launcher=ray", "threads=1000"]) == 2
    assert "no room for a run of 1000 threads" in capsys.readouterr().err
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    assert command.main(["conf=debug", "launcher=ray"]) == 2
    assert "nobody answers at RAY_ADDRESS=127.0.0.1:9" in capsys.readouterr().err


@pytest.mark.slow
def test_a_signal_lets_the_runs_save_and_the_same_command_goes_on():
    words = [sys.executable, "-m", "mbrl_lightning.sweep", "conf=debug", "algorithm=dr_ppo", "launcher=ray"]
    process = subprocess.Popen([*words, "loop.iterations=3000"], stdout=subprocess.PIPE, text=True, env=os.environ)
    log = Path("runs/ray/debug_dr_ppo_seed0.log")
    while not (log.exists() and "[" in log.read_text()):
        assert process.poll() is None
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 75
    assert "ended with status 75" in said
    checkpoints = Path("runs/debug/dr_ppo/seed0/checkpoints")
    assert list(checkpoints.glob("step_*"))
