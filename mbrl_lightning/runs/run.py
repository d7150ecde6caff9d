"""The folder of a run: what may be put there, its configuration and its manifest. Imports no PyTorch."""

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any

from mbrl_lightning import __version__
from mbrl_lightning.config import read_run_config, to_yaml
from mbrl_lightning.config.console import log, rank
from mbrl_lightning.config.schema import Config, EnvConfig
from mbrl_lightning.errors import ConfigError, MBRLError, StorageError
from mbrl_lightning.runs import checkpoint
from mbrl_lightning.runs.results import Results
from mbrl_lightning.runs.rows import has_rows
from mbrl_lightning.runs.storage import (
    MARK,
    REPLACED,
    Lock,
    move,
    probe,
    read_file,
    remove,
    replace_file,
    storage_errors,
    sweep,
)

_LIBRARIES = ("torch", "torchrl", "tensordict", "lightning", "gymnasium", "mujoco", "omegaconf", "numpy")
_LOW_SPACE = 200 * 2**20  # bytes


def run_folder(config: Config) -> Path:
    """Where a run with this configuration lives: the folder it resumes, or out/conf/algorithm/seed<k>."""
    if config.resume:
        return Path(config.resume)
    return Path(config.out) / config.conf / config.algorithm / f"seed{config.seed}"


def absolute(env: EnvConfig) -> EnvConfig:
    """The same choice, its file found from any folder."""
    return dataclasses.replace(env, file=env.file and os.path.abspath(env.file))


class Run:
    """One run on disk. Making the object only checks; as a context manager it owns the folder.

    Of the processes of a distributed run only rank 0 makes, locks and writes anything (`writer`).

    Args:
        config: the run's configuration.

    Raises:
        ConfigError: if something was learned in the folder already and neither resume nor overwrite was asked for.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.folder = run_folder(config)
        self.checkpoints = self.folder / "checkpoints"
        self.figures = self.folder / "figures"
        self.videos = self.folder / "videos"
        self.results = self.folder / "results.csv"
        self.writer = config.devices * config.num_nodes == 1 or rank() == 0
        whole = Path(os.path.abspath(self.folder))
        self._aside = whole.parent / f"{whole.name}{REPLACED}"
        self._lock = Lock(self.folder / "lock")
        if self.writer:
            self._refuse_reuse()

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> "Run":
        """An existing run, to be read.

        Raises:
            ConfigError: if the folder holds no run.
        """
        config = read_run_config(folder)
        config.resume = os.fspath(folder)
        return cls(config)

    @property
    def manifest(self) -> dict[str, Any]:
        """Versions, wall-clock and state of the run so far; empty before it began."""
        try:
            content = json.loads(read_file(self.folder / "manifest.json", most=2**20))
        except (StorageError, ValueError, RecursionError):
            return {}
        return content if isinstance(content, dict) else {}

    @property
    def learned(self) -> bool:
        """Whether anything was learned or measured here; a start that came to nothing is in nobody's way."""
        return bool(checkpoint.steps(self.checkpoints)) or has_rows(self.results)

    @property
    def finished(self) -> bool:
        """Whether all iterations asked for are done, and what they gave is still there."""
        return checkpoint.newest(self.checkpoints) >= self.config.loop.iterations

    def finish(self, seconds: dict[str, float]) -> None:
        """Note where the time went.

        Args:
            seconds: wall-clock by stage [s].
        """
        self._note(finished_iterations=self.config.loop.iterations, seconds=seconds)

    def restore_results(self) -> None:
        """Mend the rows of a finished run from their record, should something have happened to them."""
        if self.writer:
            self._lock.acquire()
            try:
                Results(self.results, self.config.algorithm, self.config.conf, self.config.seed)
            finally:
                self._lock.release()

    def __enter__(self) -> "Run":
        if not self.writer:
            return self
        with storage_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self._lock.acquire()
        try:
            self._begin()
        except BaseException:
            self._settle()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.writer:
            return
        ended = error.code if isinstance(error, MBRLError) else kind.__name__ if kind else "done"
        with contextlib.suppress(StorageError):  # must not hide the error that ended the run
            self._note(ended=ended)
        self._settle()

    def _begin(self) -> None:
        self._refuse_reuse()  # again: another process may have been faster
        fresh: dict[str, Any] = {} if self.config.resume else {"finished_iterations": 0}
        if self.config.overwrite:
            self._set_aside()
        once: dict[str, Any] = {"resume": None, "overwrite": False, "seeds": None, "jobs": 1}  # not of the run
        once["env"] = absolute(self.config.env)
        replace_file(self.folder / "config.yaml", to_yaml(dataclasses.replace(self.config, **once)).encode())
        for folder in (self.folder, self.checkpoints, self.figures, self.videos):
            probe(folder)
            sweep(folder)
        free = shutil.disk_usage(self.folder).free
        if free < _LOW_SPACE:
            log.warning("%s: only %d MB free; checkpoints may fail", self.folder, free // 2**20)
        self._note(**fresh, ended=None, **_provenance())

    def _refuse_reuse(self) -> None:
        if self.config.resume or self.config.overwrite or not self.learned:
            return
        raise ConfigError(
            f"{self.folder} already holds a run",
            f"continue it with resume={self.folder}, replace it with overwrite=true, or set out= or seed=",
        )

    def _set_aside(self) -> None:
        """An older run steps aside as a whole, if it is one: the folder name may have been mistyped."""
        sweep(self.folder)
        strange = [path for path in self.folder.iterdir() if path != self._lock.path]
        if strange and not (self.folder / "config.yaml").is_file():
            raise ConfigError(
                f"overwrite=true, but {self.folder} does not hold a run",
                "empty the folder by hand, or set out=",
            )
        if self.learned:
            remove(self._aside)  # of a start before this one, which has learned since
            move(self.folder, self._aside)  # our lock with it
            before, self._lock = self._lock, Lock(self.folder / "lock")
            with storage_errors(self.folder):
                self.folder.mkdir()
            self._lock.acquire()
            before.release()

    def _settle(self) -> None:
        """The run that stepped aside goes once the new one has a checkpoint, and comes back if that failed before."""
        with contextlib.suppress(StorageError):
            if self._aside.is_dir() and checkpoint.newest(self.checkpoints) >= 0:
                remove(self._aside)
            elif self._aside.is_dir():
                remove(self.folder)
                move(self._aside, self.folder)
            sweep(self.folder.parent, f"{self._aside.name}{MARK}*")
        self._lock.release()

    def _note(self, **facts: Any) -> None:
        replace_file(self.folder / "manifest.json", (json.dumps(self.manifest | facts, indent=1) + "\n").encode())


def _provenance() -> dict[str, Any]:
    """What a result must be traced back to; no host or user names."""
    versions = {}
    for name in _LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "format": 1,
        "mbrl_lightning": __version__,
        "git": _git_revision(),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "versions": versions,
    }


def _git_revision() -> str | None:
    """Revision of the checkout that this package runs from, with `+` if it has changes; None if installed."""
    root = Path(__file__).resolve().parent.parent.parent
    if not (root / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
