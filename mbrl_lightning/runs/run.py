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
from mbrl_lightning.config.schema import Config
from mbrl_lightning.errors import ConfigError, MBRLError, StorageError
from mbrl_lightning.runs.lock import Lock
from mbrl_lightning.runs.storage import probe, replace_text, storage_errors, sweep

_LIBRARIES = ("torch", "torchrl", "tensordict", "lightning", "gymnasium", "mujoco", "omegaconf", "numpy")
_LOW_SPACE = 200 * 2**20  # bytes


def run_folder(config: Config) -> Path:
    """Where a run with this configuration lives: the folder it resumes, or out/conf/algorithm/seed<k>."""
    if config.resume:
        return Path(config.resume)
    return Path(config.out) / config.conf / config.algorithm / f"seed{config.seed}"


class Run:
    """One run on disk. Making the object only checks; as a context manager it owns the folder.

    Of the processes of a distributed run only rank 0 makes, locks and writes anything (`writer`).

    Args:
        config: the run's configuration.

    Raises:
        ConfigError: if the folder already holds a run and neither resume nor overwrite was asked for.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.folder = run_folder(config)
        self.checkpoints = self.folder / "checkpoints"
        self.figures = self.folder / "figures"
        self.videos = self.folder / "videos"
        self.results = self.folder / "results.csv"
        self.writer = config.devices * config.num_nodes == 1 or rank() == 0
        self._lock = Lock(self.folder / "lock")
        if self.writer and not config.resume:
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
            content = json.loads((self.folder / "manifest.json").read_text())
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    @property
    def finished(self) -> bool:
        """Whether all iterations asked for are done."""
        done = self.manifest.get("finished_iterations", 0)
        return isinstance(done, int) and done >= self.config.loop.iterations

    def finish(self, seconds: dict[str, float]) -> None:
        """Mark the run as done.

        Args:
            seconds: wall-clock by stage [s].
        """
        self._note(finished_iterations=self.config.loop.iterations, seconds=seconds)

    def __enter__(self) -> "Run":
        if not self.writer:
            return self
        with storage_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self._lock.acquire()
        try:
            self._begin()
        except BaseException:
            self._lock.release()
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
        self._lock.release()

    def _begin(self) -> None:
        if self.config.overwrite:
            self._clear()
        for folder in (self.folder, self.checkpoints, self.figures, self.videos):
            probe(folder)
            with storage_errors(folder):
                sweep(folder)
        free = shutil.disk_usage(self.folder).free
        if free < _LOW_SPACE:
            log.warning("%s: only %d MB free; checkpoints may fail", self.folder, free // 2**20)
        asked_once: dict[str, Any] = {
            "resume": None,
            "overwrite": False,
            "seeds": None,
            "jobs": 1,
        }  # of this start, not of the run
        replace_text(self.folder / "config.yaml", to_yaml(dataclasses.replace(self.config, **asked_once)))
        self._note(ended=None, **_provenance())

    def _refuse_reuse(self) -> None:
        if not (self.folder / "config.yaml").exists() or self.config.overwrite:
            return
        raise ConfigError(
            f"{self.folder} already holds a run",
            f"continue it with resume={self.folder}, replace it with overwrite=true, or set out= or seed=",
        )

    def _clear(self) -> None:
        """Remove an older run, and only what is one: the folder name may have been mistyped."""
        entries = [path for path in self.folder.iterdir() if path != self._lock.path]
        if entries and not (self.folder / "config.yaml").is_file():
            raise ConfigError(
                f"overwrite=true, but {self.folder} does not hold a run",
                "empty the folder by hand, or set out=",
            )
        with storage_errors(self.folder):
            for path in sorted(entries, key=lambda path: path.name == "config.yaml"):  # what marks a run goes last
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def _note(self, **facts: Any) -> None:
        replace_text(self.folder / "manifest.json", json.dumps(self.manifest | facts, indent=1) + "\n")


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
