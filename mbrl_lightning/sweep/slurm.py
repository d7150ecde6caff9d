"""Runs as a job array of Slurm, by submitit: one that is preempted saves, ends with status 75 and is queued again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import submitit

from mbrl_lightning.config import load_config
from mbrl_lightning.config.schema import Config
from mbrl_lightning.errors import ConfigError, Preempted
from mbrl_lightning.runs.seed_jobs import Job, command_of, plan
from mbrl_lightning.runs.signals import StopFlag

POLL = 2.0  # seconds
MINUTES = 24 * 60  # submitit's own default is five of them


class Training:
    """One run, as submitit takes it to a node; what is left to do of it is looked up there, after every start."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = [*words]
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        """Exit status of the run; 75 of one that is queued again, unless it was cancelled."""
        (job,) = plan(load_config(self.words), self.words)
        if job.status == 0:
            return 0
        self._process = subprocess.Popen(command_of(job), stdin=subprocess.DEVNULL)
        status = self._process.wait()
        number = os.environ["SLURM_JOB_ID"]
        if (
            status == Preempted.exit_code
            and _told("squeue", "-h", "-j", number, "-o", "%T").stdout.strip() == "RUNNING"
        ):
            _told("scontrol", "requeue", number)
        return status if status >= 0 else 128 - status  # by a signal: told the way shells do

    def checkpoint(self) -> Any:
        """What submitit queues before the time is over: the same, once the run has saved."""
        if self._process is not None:
            self._process.send_signal(signal.SIGUSR1)
            self._process.wait()
        return submitit.helpers.DelayedSubmission(Training(self.words))


def train(jobs: Sequence[Job], config: Config, folder: Path, parameters: Mapping[str, str], at_once: int) -> int:
    """Submit what is not finished as one array, wait for it, and set each job's `status`; logs are in `folder`/slurm.

    A signal cancels the array: its runs save and end, and the same command goes on with them.

    Args:
        jobs: as planned.
        config: of any of them: devices, nodes, threads.
        folder: on a disk that all nodes have.
        parameters: `slurm.NAME` -> VALUE of the command line.
        at_once: the most that are trained at a time.

    Returns:
        As `seed_jobs.train`.

    Raises:
        ConfigError: a parameter that submitit does not have, or Slurm refuses.
    """
    waiting = [job for job in jobs if job.status is None]
    if waiting:
        executor = submitit.AutoExecutor(folder / "slurm", cluster="slurm")
        try:
            executor.update_parameters(**_parameters(config, parameters, at_once))
            with executor.batch():
                submitted = [executor.submit(Training(_anew(job))) for job in waiting]
        except (NameError, AssertionError, submitit.core.utils.FailedJobError, subprocess.CalledProcessError) as error:
            raise ConfigError(f"Slurm: {error}", "correct slurm.NAME=VALUE, or ask whoever runs the cluster") from error
        array = submitted[0].job_id.partition("_")[0]
        print(f"{len(waiting)} runs submitted as Slurm's job {array}; they print to {folder / 'slurm'}", flush=True)
        with StopFlag() as stop:
            _wait(array, stop)
        for job, sent in zip(waiting, submitted, strict=True):
            _look(job, sent)
        if stop.requested is not None:
            return 130 if stop.requested == signal.SIGINT else Preempted.exit_code
    return next((job.status for job in jobs if job.status), 0)


def _parameters(config: Config, given: Mapping[str, str], at_once: int) -> dict[str, Any]:
    gpus = {"gpus_per_node": config.devices} if config.accelerator in ("cuda", "gpu") else {}
    ours = {"name": "mbrl_lightning", "nodes": config.num_nodes, "tasks_per_node": config.devices}
    ours |= {"cpus_per_task": config.threads, "slurm_array_parallelism": at_once}
    ours |= {} if given.keys() & {"slurm.time", "slurm.timeout_min"} else {"timeout_min": MINUTES}
    theirs: dict[str, Any] = {}
    for key, text in given.items():
        name = key.partition(".")[2]
        generic = name in ("mem_gb", "gpus_per_node", "cpus_per_task", "timeout_min", "name")
        theirs[name if generic else f"slurm_{name}"] = int(text) if text.isdigit() else text
    return ours | gpus | theirs


def _anew(job: Job) -> list[str]:
    """The words of a job without what was found of it when it was planned."""
    kept = [word for word in job.words if word.partition("=")[0] not in ("seed", "resume")]
    return [*kept, f"seeds={job.seed}"]


def _wait(array: str, stop: StopFlag) -> None:
    told, said = False, ""
    while (now := _queued(array)) is not None:
        if now not in ("", said):
            print(f"Slurm: {now}", flush=True)
            said = now
        if stop.requested is not None and not told:
            told = True
            _told("scancel", array)
        time.sleep(POLL)


def _queued(array: str) -> str | None:
    """How many of its runs wait, for what, or run; empty where nobody answers, None of what is over or long forgotten."""
    told = _told("squeue", "-h", "-r", "-j", array, "-o", "%T %r")
    if told.returncode != 0 and "Invalid job id" not in told.stderr:
        return ""
    states = Counter(line.removesuffix(" None") for line in told.stdout.splitlines())
    return ", ".join(f"{count} {state}" for state, count in states.items()) or None


def _told(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _look(job: Job, sent: Any) -> None:
    """What became of a run: the status it ended with, or 1 where Slurm or somebody else ended it."""
    found = sent.paths.result_pickle
    outcome, value = submitit.core.utils.pickle_load(found) if found.is_file() else ("gone", None)
    job.status = status = int(value or 0) if outcome == "success" else 1
    if status:
        log = sent.paths.stdout
        why = f"ended with status {status}; see {log}" if log.is_file() else "never started"
        print(f"{job.folder}: {why}", file=sys.stderr, flush=True)
