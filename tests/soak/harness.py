"""What the soak tests share: a child in which a command meets a fault, and the verdict on how it ended.

Children are forked from a process that has PyTorch loaded already. `stub` puts a loop that only keeps files in place of the
one that learns; everything around it, and every file, is as in a real run.
"""

from __future__ import annotations

import errno
import importlib
import io
import logging
import os
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

import mbrl_lightning.algorithms as algorithms
import mbrl_lightning.fit as fitting
import mbrl_lightning.loop as loops
import mbrl_lightning.runs.run as runs
from mbrl_lightning.config import to_yaml
from mbrl_lightning.config.console import guard
from mbrl_lightning.config.schema import Config
from mbrl_lightning.runs import checkpoint, seed_jobs
from mbrl_lightning.runs.results import Results, read_results
from mbrl_lightning.runs.signals import StopFlag

CODES = {0, 1, 2, 3, 4, 5, 75, 130, 141}
KILLED = 9
OPERATIONS = ("open", "write", "fsync", "rename", "replace", "mkdir", "unlink", "rmdir", "truncate")


class StubAlgorithm:
    """Learns nothing."""

    def state_dict(self) -> dict:
        return {}


class StubLoop:
    """Keeps files as `MetaLoop` does: rows and a checkpoint an iteration."""

    def __init__(self, cfg, family, algorithm, folder=None, stop=None, quiet=False, watch=None, fabric=None):
        self.cfg, self.folder, self.algorithm, self.iteration, self.times = cfg, folder, algorithm, 0, {"total": 1.0}
        self.results = Results(folder / "results.csv", cfg.algorithm, cfg.conf, cfg.seed)

    def restore(self, run, weights_only=False):
        self.iteration = checkpoint.load(run / "checkpoints")[1]["iteration"]
        self.results.truncate(self.iteration)

    def fit(self):
        while self.iteration < self.cfg.loop.iterations:
            self.iteration += 1
            for task in range(3):
                where = {"iteration": self.iteration, "real_steps": 10 * self.iteration}
                self.results.add("return/policy", self.iteration + task / 8, split="test", task=task, **where)
            self.results.flush()
            self.results.record()
            rows = [checkpoint.Segment({"x": torch.arange(k + 8)}) for k in range(self.iteration + 1)]
            state = {"algorithm": {}, "iteration": self.iteration, "segments": rows}
            checkpoint.save(self.folder / "checkpoints", self.iteration, state, self.cfg.loop.keep)
        return self.results


def stub() -> None:
    """In this process nothing is learned or drawn."""
    loops.MetaLoop = StubLoop
    algorithms.make_algorithm = lambda config, family: StubAlgorithm()
    seed_jobs._work_through = lambda waiting, config, stop: None  # each would be a process that loads PyTorch
    undrawn()


def training(config: Config) -> Callable[[], int]:
    """A run with a stub that learns, to be started in a child; the configuration was read before."""
    text = to_yaml(config)

    def work() -> int:
        stub()
        runs.to_yaml, runs._provenance = lambda _: text, dict  # half a second each time
        return guard(lambda: fitting._train(runs.Run(config), StopFlag()) and 0)

    return work


def undrawn() -> None:
    """In this process nothing is drawn: pictures take longer than training."""
    fitting._draw = lambda loop, run: None
    importlib.import_module("mbrl_lightning.report").report = lambda folders, out: f"{len(read_results(folders))} rows"


def child(
    work: Callable[[], int | None], seconds: float = 60, kill_after: float | None = None
) -> tuple[int | None, str]:
    """Exit status of a forked process, None if it had to be stopped after `seconds`, and what it printed."""
    with tempfile.TemporaryFile() as output, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other threads at a fork: the child uses none of them
        process = os.fork()
        if process == 0:
            status = 99
            try:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
                sys.stdout = sys.stderr = io.TextIOWrapper(io.FileIO(1, "w"), write_through=True)  # pytest has its own
                logging.root.handlers.clear()
                status = work() or 0
            except SystemExit as error:
                status = error.code if isinstance(error.code, int) else 1
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        until, ended = time.monotonic() + (seconds if kill_after is None else kill_after), None
        while ended is None and time.monotonic() < until:
            found, status = os.waitpid(process, os.WNOHANG)
            ended = abs(os.waitstatus_to_exitcode(status)) if found else None
            time.sleep(0.002)
        if ended is None:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            ended = None if kill_after is None else KILLED
        output.seek(0)
        return ended, output.read().decode(errors="replace")


def command(module: str, *words: str, stubbed: bool = True) -> Callable[[], int]:
    """A command line of the package, to be run in a child."""

    def work() -> int:
        stub() if stubbed else undrawn()
        return importlib.import_module(f"mbrl_lightning.{module}").main(list(words))

    return work


def verdict(status: int | None, text: str, allowed: set[int] = CODES) -> str:
    """What is wrong with how a command ended, or nothing."""
    if status is None:
        return "it hangs"
    if "Traceback" in text and "error[E-ENV]" not in text:  # an environment's own is shown above its error
        return f"a traceback:\n{text[-1500:]}"
    return "" if status in allowed else f"exit status {status}:\n{text[-800:]}"


def none_is_wrong(what: str, outcomes: Iterable[tuple[str, str]]) -> None:
    """Tells of each case with something wrong when it comes, and fails with all of them at the end."""
    faults, count = [], 0
    for count, (name, wrong) in enumerate(outcomes, 1):  # noqa: B007 - told below
        if wrong:
            faults.append(f"{name}: {wrong}")
            print(faults[-1], flush=True)
    print(f"{count} {what}: {len(faults)} wrong")
    assert not faults, "\n".join(faults)


def at_operation(number: int, fault: str, work: Callable[[], int]) -> Callable[[], int]:
    """`work` with a fault at one of its operations on the disk: `kill`, `ENOSPC` or `EIO`; 0 counts them into `count`."""

    def faulty() -> int:
        count = 0

        def wrap(name: str) -> None:
            original = getattr(os, name)

            def wrapped(*args, **kwargs):
                nonlocal count
                count += 1
                if count != number:
                    return original(*args, **kwargs)
                if name == "write":
                    original(args[0], bytes(args[1])[: len(args[1]) // 2])
                if fault == "kill":
                    os._exit(KILLED)
                code = getattr(errno, fault)
                raise OSError(code, os.strerror(code), *(args[:1] if isinstance(args[0], (str, os.PathLike)) else ()))

            setattr(os, name, wrapped)

        for name in OPERATIONS:
            wrap(name)
        status = work()
        Path("count").write_text(str(count))
        return status

    return faulty


def values(folder: Path) -> list[tuple]:
    """What a run measured, apart from the clock."""
    return [row for row in read_results(folder) if not row.metric.startswith("time/")]
