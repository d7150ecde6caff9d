"""Runs on a Ray cluster: that of RAY_ADDRESS, or one made of this machine for as long as they take."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from mbrl_lightning.config.schema import Config
from mbrl_lightning.errors import ConfigError, Preempted
from mbrl_lightning.runs.seed_jobs import Job, command_of
from mbrl_lightning.runs.signals import StopFlag

POLL = 1.0  # seconds


class Training:
    """One run on some node, as an actor: while it waits for the run it can still be told to stop it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, words: Sequence[str], folder: str, environment: dict[str, str], log: str) -> int:
        """Exit status of the command, given in `folder`, printing into `log`."""
        os.makedirs(os.path.dirname(log), exist_ok=True)
        with open(log, "ab") as output:
            self._process = subprocess.Popen(
                words, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
            status = self._process.wait()
        return status if status >= 0 else 128 - status  # by a signal: told the way shells do

    def stop(self, number: int) -> None:
        """Pass a signal on."""
        if self._process is not None:
            self._process.send_signal(number)


def train(jobs: Sequence[Job], config: Config, folder: Path, at_once: int) -> int:
    """Train what is not finished, as many at a time as the cluster has room for, and set each job's `status`.

    A signal is passed on to the runs, which save and end. A node that is lost loses its runs alone; the same command goes on.

    Args:
        jobs: as planned.
        config: of any of them: devices, threads.
        folder: on a disk that all nodes have; logs are in `folder`/ray.
        at_once: the most that are trained at a time.

    Returns:
        As `seed_jobs.train`.

    Raises:
        ConfigError: there is no such cluster, or it has no node with the threads and devices of a run.
    """
    waiting = [job for job in jobs if job.status is None]
    if not waiting:
        return next((job.status for job in jobs if job.status), 0)
    _require_somebody(os.environ.get("RAY_ADDRESS", ""))
    gpus = config.devices if config.accelerator in ("cuda", "gpu") else 0
    try:
        ray.init(log_to_driver=False, logging_level="ERROR", include_dashboard=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(f"Ray: {error}", "look at RAY_ADDRESS, or leave it away to use this machine") from error
    try:
        room = ray.cluster_resources()
        places = int(min(room.get("CPU", 0) // config.threads, room.get("GPU", 0) // gpus if gpus else float("inf")))
        if not places:
            cause = f"Ray: no room for a run of {config.threads} threads and {gpus} devices: there are {room}"
            raise ConfigError(cause, "choose smaller threads= or devices=, or another RAY_ADDRESS")
        actor = ray.remote(max_concurrency=2, num_cpus=config.threads, num_gpus=gpus)(Training)
        with StopFlag() as stop:
            _work_through(waiting, actor, folder, min(places, at_once), stop)
    finally:
        ray.shutdown()
    if stop.requested is not None:
        return 130 if stop.requested == signal.SIGINT else Preempted.exit_code
    return next((job.status for job in jobs if job.status), 0)


def _require_somebody(address: str) -> None:
    """A ConfigError where nobody listens: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if host and port.isdigit():
            socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        cause = f"Ray: nobody answers at RAY_ADDRESS={address}: {error}"
        raise ConfigError(cause, "correct it, or leave it away to use this machine") from error


def _work_through(waiting: list[Job], actor: Any, folder: Path, at_once: int, stop: StopFlag) -> None:
    running: dict[Any, tuple[Job, Any]] = {}
    told, here, environment = False, os.getcwd(), dict(os.environ)
    while running or (waiting and stop.requested is None):
        while waiting and len(running) < at_once and stop.requested is None:
            job, one = waiting.pop(0), actor.remote()
            log = folder / "ray" / f"{'_'.join(job.folder.parts[-3:])}.log"
            running[one.run.remote(command_of(job), here, environment, str(log.absolute()))] = job, one
            print(f"seed {job.seed}: {job.folder}, prints to {log}", flush=True)
        if stop.requested is not None and not told:
            told = True
            for _, one in running.values():
                one.stop.remote(int(stop.requested))
        for ended in ray.wait(list(running), timeout=POLL)[0]:
            job, one = running.pop(ended)
            try:
                job.status = ray.get(ended)
            except ray.exceptions.RayError as error:  # the node is gone, or somebody killed it
                job.status = 1
                print(f"{job.folder}: {type(error).__name__}", flush=True)
            ray.kill(one)
            print(f"{job.folder}: {'done' if job.status == 0 else f'ended with status {job.status}'}", flush=True)
