"""Runs as a job array of Slurm, by submitit: one that is preempted saves, ends with status 75 and is queued again."""

from __future__ import annotations

import contextlib
import io
import logging
import re
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
from mbrl_lightning.config.words import Words, yaml_values
from mbrl_lightning.errors import ConfigError, Preempted, did_you_mean
from mbrl_lightning.runs.checkpoint import newest
from mbrl_lightning.runs.seed_jobs import Job, command_of, end_of, plan
from mbrl_lightning.runs.signals import StopFlag

POLL = 2.0  # seconds
MINUTES = 24 * 60  # submitit's own default is five of them
READ = re.compile(r"[\[{].*|true|false|0|[1-9]\d*|\d+\.\d+")  # an account 0012 is a text
NUMBERS: dict[Any, tuple[tuple[type, ...], str]] = {int: ((int,), "a whole number"), float: ((int, float), "a number")}
LISTS = ("setup", "teardown", "srun_args")
STOPPED = ("CANCELLED", "TIMEOUT", "PREEMPTED", "NODE_FAIL", "BOOT_FAIL", "DEADLINE", "REVOKED")
OVER = (*STOPPED, "COMPLETED", "FAILED", "OUT_OF_MEMORY")

# Slurm sends it to the run, too, where submitit's own signal would be deadly.
submitit.slurm.slurm.SlurmJobEnvironment.USR_SIG = "USR1"


class Training:
    """One run, as submitit takes it to a node; what is left to do of it is looked up there, after every start."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = [*words]

    def __call__(self) -> int:
        """Exit status of the run; 75 of one that is queued again, unless it was cancelled or has no time for one iteration."""
        (job,) = plan(load_config(self.words), self.words)
        if job.status == 0:
            return 0
        logging.getLogger("submitit").setLevel(logging.ERROR)  # it says "completed successfully" after any status
        nearly_over: list[int] = []
        signal.signal(signal.SIGUSR1, lambda number, _: nearly_over.append(number))
        before = newest(job.folder / "checkpoints")
        status = subprocess.run(command_of(job), stdin=subprocess.DEVNULL, check=False).returncode
        if status in (-signal.SIGTERM, -signal.SIGUSR1):  # before it could listen
            status = Preempted.exit_code
        if status == Preempted.exit_code:
            number = submitit.JobEnvironment().job_id  # SLURM_JOB_ID is the whole array's for one of its runs
            if nearly_over and newest(job.folder / "checkpoints") == before:
                print("the time was over before one iteration was saved: give a longer slurm.time=", flush=True)
            elif _told("squeue", "-h", "-j", number, "-o", "%T").stdout.strip() == "RUNNING":
                subprocess.run(["scontrol", "requeue", number], check=False)
        return status if status >= 0 else 128 - status  # by a signal: told the way shells do


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
    if len(waiting) < len(jobs):
        print(f"{len(jobs) - len(waiting)} of {len(jobs)} runs are finished, skipped", flush=True)
    if waiting:
        with StopFlag() as stop:
            submitted = _submit(waiting, folder / "slurm", _parameters(config, parameters, at_once), stop)
            array = submitted[0].job_id.partition("_")[0]
            print(f"{len(waiting)} runs submitted as Slurm's job {array}; they print to {folder / 'slurm'}", flush=True)
            states = _wait(array, stop)
        for job, sent in zip(waiting, submitted, strict=True):
            _look(job, sent, states.get(sent.job_id, ""), stop.requested is not None)
        if stop.requested is not None:
            return 130 if stop.requested == signal.SIGINT else Preempted.exit_code
    return next((job.status for job in jobs if job.status), 0)


def _submit(jobs: Sequence[Job], folder: Path, parameters: Mapping[str, Any], stop: StopFlag) -> list[Any]:
    """What submitit knows of each job; what sbatch says against them is told by us alone."""
    remedy = "correct slurm.NAME=VALUE, or ask whoever runs the cluster"
    executor = submitit.AutoExecutor(folder, cluster="slurm")
    try:
        executor.update_parameters(**parameters)
        with contextlib.redirect_stderr(io.StringIO()):
            return executor.submit_array([Training(_anew(job)) for job in jobs])
    except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
        stop.heed("give the command again")  # a terminal's Ctrl-C ends sbatch, too
        said = "; ".join(line.removeprefix("sbatch: error: ") for line in str(error).splitlines())
        raise ConfigError(f"Slurm refuses: {said}", remedy) from error
    except (AssertionError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"submitit refuses: {error}", remedy) from error


def _parameters(config: Config, given: Mapping[str, str], at_once: int) -> dict[str, Any]:
    gpus = {"gpus_per_node": config.devices} if config.accelerator in ("cuda", "gpu") else {}
    ours = {"name": "mbrl_lightning", "nodes": config.num_nodes, "tasks_per_node": config.devices}
    ours |= {"cpus_per_task": config.threads, "slurm_array_parallelism": at_once, "slurm_stderr_to_stdout": True}
    ours |= {} if given.keys() & {"slurm.time", "slurm.timeout_min"} else {"timeout_min": MINUTES}
    theirs = _values({key.partition(".")[2]: text for key, text in given.items()})
    extra = theirs.get("additional_parameters", {})
    if isinstance(extra, dict):
        theirs["additional_parameters"] = {"requeue": True} | extra  # some clusters do not unless asked
    generic = ("mem_gb", "gpus_per_node", "cpus_per_task", "timeout_min", "name", "nodes", "tasks_per_node")
    return ours | gpus | {name if name in generic else f"slurm_{name}": value for name, value in theirs.items()}


def _values(given: Mapping[str, str]) -> dict[str, Any]:
    """Texts as submitit wants them: numbers, lists and tables in YAML's brackets, true and false, the rest as it is."""
    types = submitit.AutoExecutor._typed_parameters() | {"time": int, "array_parallelism": int}
    known = submitit.SlurmExecutor._valid_parameters() | types.keys()
    words = Words({name: text for name, text in given.items() if types.get(name) is not str and READ.fullmatch(text)})
    values: dict[str, Any] = {**given, **yaml_values(words)}
    for name, value in values.items():
        if name not in known:
            words.problems.append(f"slurm.{name}: unknown{did_you_mean(name, known)}")
        elif not isinstance(value, (numeric := NUMBERS.get(types.get(name), ((object,), "")))[0]):
            minutes = " of minutes" if name.startswith("time") else ""
            words.problems.append(f"slurm.{name}={value}: {numeric[1]}{minutes} is expected")
        elif name in LISTS and isinstance(value, str):
            values[name] = [value]
    words.raise_problems("correct slurm.NAME=VALUE; submitit's documentation has them")
    return values


def _anew(job: Job) -> list[str]:
    """The words of a job without what was found of it when it was planned."""
    kept = [word for word in job.words if word.partition("=")[0] not in ("seed", "resume")]
    return [*kept, f"seeds={job.seed}"]


def _wait(array: str, stop: StopFlag) -> dict[str, str]:
    """The last that Slurm said of each run, once all are over."""
    states, told, said = dict[str, str](), False, ""
    try:
        while (now := _queued(array, states)) is not None:
            if now != said:
                print(f"Slurm: {now}", flush=True)
                said = now
            if stop.requested is not None and not told:
                told = _told("scancel", array).returncode == 0
            time.sleep(POLL)
    except SystemExit:  # a second signal: leave nothing behind that a next command would meet
        _told("scancel", array)
        raise
    return states


def _queued(array: str, states: dict[str, str]) -> str | None:
    """How many of its runs wait, for what, or run, or why nobody answers; None of what is over or long forgotten."""
    told = _told("squeue", "-h", "-r", "-t", "all", "-j", array, "-o", "%i %T %r")
    if told.returncode != 0 and "Invalid job id" not in told.stderr:
        return f"squeue fails, waiting for it: {told.stderr.strip()}"
    states |= dict(line.split(" ", 1) for line in told.stdout.splitlines())
    there = Counter(states[line.split()[0]].removesuffix(" None") for line in told.stdout.splitlines())
    return ", ".join(f"{count} {state}" for state, count in there.items() if state.split()[0] not in OVER) or None


def _told(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _look(job: Job, sent: Any, state: str, asked: bool) -> None:
    """What became of a run: the status it ended with, or where Slurm ended it 75 if that says nothing against it, else 1."""
    found, log = sent.paths.result_pickle, sent.paths.stdout
    outcome, value = submitit.core.utils.pickle_load(found) if found.is_file() else ("gone", None)
    ended = 1 if state.partition(" ")[0] not in STOPPED else Preempted.exit_code
    job.status = status = int(value or 0) if outcome == "success" else ended if outcome == "gone" else 1
    if status == 0:
        print(f"{job.folder}: done", flush=True)
        return
    why = f"ended with status {status}" if log.is_file() else "never started"
    why += f" (Slurm: {state.removesuffix(' None')})" if state and not state.startswith("COMPLETED") else ""
    if status == Preempted.exit_code and (asked or not log.is_file()):
        why += "; the same command goes on with it"
    elif log.is_file():
        why += f"; see {log}\n{end_of(log)}"
    else:
        why += f"; can its node write to {log.parent}?"
    print(f"{job.folder}: {why}", file=sys.stderr, flush=True)
