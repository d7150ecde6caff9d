"""Several seeds in one command: a process each, `jobs` at a time, finished ones skipped."""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from mbrl_lightning.config import differences, each_seed, read_run_config
from mbrl_lightning.config.schema import Config
from mbrl_lightning.errors import ConfigError
from mbrl_lightning.runs.run import Run, absolute, run_folder
from mbrl_lightning.runs.signals import StopFlag
from mbrl_lightning.runs.storage import storage_errors

_OWN_KEYS = ("seeds", "jobs", "seed", "overwrite")
_POLL = 0.1  # seconds


@dataclasses.dataclass
class Job:
    """One seed to train: folder of its run, words of its process, exit status once done (at once if it is finished)."""

    seed: int
    folder: Path
    words: list[str]
    status: int | None = None

    @property
    def log(self) -> Path:
        """Where it prints to when several run side by side."""
        return self.folder.with_name(f"{self.folder.name}.log")


def plan(config: Config, words: Sequence[str]) -> list[Job]:
    """What is to be done for each seed of a configuration, made of these words: start, resume, or nothing.

    A ConfigError if a run of one of the seeds exists with another configuration.
    """
    kept = [word for word in words if word.partition("=")[0] not in _OWN_KEYS]
    jobs, problems = [], []
    for one in each_seed(config):
        job = Job(one.seed, run_folder(one), [*kept, f"seed={one.seed}"])
        jobs.append(job)
        run = Run(dataclasses.replace(one, resume=str(job.folder)))
        if config.overwrite:
            job.words.append("overwrite=true")
        elif run.learned:
            here = one if one.env.file is None else dataclasses.replace(one, env=absolute(one.env))
            before = read_run_config(job.folder, one.env.file)
            problems += [f"{job.folder}: {line}" for line in differences(before, here)]
            job.words = [word for word in job.words if not word.startswith("init_from=")]  # the run knows it
            job.words.append(f"resume={job.folder}")
            job.status = 0 if run.finished else None
    if problems:
        text = "\n  - ".join(["runs of these seeds exist with another configuration:", *problems])
        raise ConfigError(text, "set out= to keep both, or overwrite=true to replace them")
    return jobs


def train_seeds(config: Config, words: Sequence[str]) -> tuple[int, list[Path]]:
    """Train all seeds; see `train`."""
    return train(plan(config, words), config)


def train(jobs: Sequence[Job], config: Config) -> tuple[int, list[Path]]:
    """Work through what was planned, as many processes at a time as `config` says.

    A signal is passed on once to every running process; they save and end, and no other is started.

    Returns:
        Exit status of the first one, in the order given, that failed, 0 if none did; and the folders of the finished
        runs, none of them after a signal.
    """
    for job in jobs:
        if job.status == 0:
            print(f"seed {job.seed}: {job.folder} is finished, skipped", flush=True)
    with StopFlag() as stop:
        _work_through([job for job in jobs if job.status is None], config, stop)
    if stop.requested is not None:
        return 130 if stop.requested == signal.SIGINT else 75, []
    return next((job.status for job in jobs if job.status), 0), [job.folder for job in jobs if job.status == 0]


def _work_through(waiting: list[Job], config: Config, stop: StopFlag) -> None:
    running: dict[int, tuple[Job, subprocess.Popen[bytes]]] = {}  # by slot
    told = False
    try:
        while running or (waiting and stop.requested is None):
            for slot in set(range(config.jobs)) - running.keys():
                if waiting and stop.requested is None:
                    job = waiting.pop(0)
                    running[slot] = (job, _start(job, slot, config))
            if stop.requested is not None and not told:
                told = True
                for _, process in running.values():
                    process.send_signal(stop.requested)
            for slot, (job, process) in list(running.items()):
                if (status := process.poll()) is not None:
                    job.status = status if status >= 0 else 128 - status  # by a signal: told the way shells do
                    del running[slot]
                    _announce(job, config)
            time.sleep(_POLL)
    finally:  # a second signal, or an error of ours: leave no process behind
        for _, process in running.values():
            process.kill()
        for _, process in running.values():
            process.wait()


def _start(job: Job, slot: int, config: Config) -> subprocess.Popen[bytes]:
    """A process in a group of its own: the terminal's Ctrl-C reaches it once, through us."""
    environment = os.environ | {StopFlag.PARENT: str(os.getpid())}
    environment.setdefault("OMP_NUM_THREADS", str(config.threads))
    devices = _cuda_devices() if config.accelerator in ("cuda", "gpu") and config.devices == 1 else []
    if devices:
        environment["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]
    print(f"seed {job.seed}: {job.folder}", flush=True)
    with storage_errors(job.log), contextlib.ExitStack() as opened:
        output = None
        if config.jobs > 1:  # side by side their lines would mix
            job.log.parent.mkdir(parents=True, exist_ok=True)
            output = opened.enter_context(open(job.log, "ab"))
        words, null, errors = command_of(job), subprocess.DEVNULL, output and subprocess.STDOUT
        return subprocess.Popen(
            words, env=environment, stdin=null, stdout=output, stderr=errors, start_new_session=True
        )


def command_of(job: Job) -> list[str]:
    """The command line of its process."""
    return [sys.executable, "-m", "mbrl_lightning.fit", *job.words]


def _cuda_devices() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name]
    return sorted(path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*"))


def _announce(job: Job, config: Config) -> None:
    if job.status == 0:
        print(f"seed {job.seed}: done", flush=True)
        return
    print(f"seed {job.seed}: failed with exit status {job.status}", file=sys.stderr, flush=True)
    if config.jobs > 1:
        print(end_of(job.log), file=sys.stderr)


def end_of(log: Path) -> str:
    """The last lines of what a run has printed, as they are told."""
    tail = log.read_text(errors="replace").splitlines()[-5:]
    return "\n".join([f"  the end of {log}:", *(f"  {line}" for line in tail)])
