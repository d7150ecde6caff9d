"""The folder of a run: what may be put there, its configuration and its manifest. Imports no PyTorch."""

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from mbrl_lightning import __version__
from mbrl_lightning.config import to_yaml
from mbrl_lightning.config.console import log, rank
from mbrl_lightning.config.schema import Config, EnvConfig
from mbrl_lightning.errors import ConfigError, MBRLError, StorageError
from mbrl_lightning.runs import checkpoint, storage
from mbrl_lightning.runs.results import Results, has_rows

_LIBRARIES = ("torch", "torchrl", "tensordict", "lightning", "gymnasium", "mujoco", "omegaconf", "numpy")
_LOW_SPACE = 200 * 2**20  # bytes


def run_folder(config: Config) -> Path:
    """Where a run with this configuration lives: the folder it resumes, or out/conf/algorithm/seed<k>."""
    return Path(config.resume or f"{config.out}/{config.conf}/{config.algorithm}/seed{config.seed}")


def absolute(env: EnvConfig) -> EnvConfig:
    """The same choice, its file found from any folder."""
    return dataclasses.replace(env, file=env.file and os.path.abspath(env.file))


def manifest_of(folder: Path) -> dict[str, Any]:
    """What the run in a folder says of itself; nothing where it says nothing."""
    try:
        content = json.loads(storage.read_file(folder / "manifest.json", most=2**20))
    except (StorageError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


@contextlib.contextmanager
def version_told(folder: Path) -> Iterator[None]:
    """What is wrong with a run that another version of this package wrote is told with both versions."""
    wrote = manifest_of(folder).get("mbrl_lightning", __version__)
    if wrote != __version__:
        log.warning("%s was written by mbrl_lightning %s, this is %s", folder, wrote, __version__)
    try:
        yield
    except (ConfigError, StorageError) as error:
        if wrote == __version__:
            raise
        cause = f"{error.cause}\n  the run was written by mbrl_lightning {wrote}, this is {__version__}"
        raise type(error)(cause, f"use version {wrote} with it; or {error.remedy}") from error


class Run:
    """One run on disk. Making the object only checks; as a context manager it owns the folder.

    Of the processes of a distributed run only rank 0 makes, locks and writes anything (`writer`). A ConfigError if something
    was learned in the folder already and neither resume nor overwrite was asked for.
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
        self._aside = whole.with_name(f"{whole.name}{storage.REPLACED}")
        self._lock = contextlib.ExitStack()
        if self.writer:
            self._refuse_reuse()

    @property
    def manifest(self) -> dict[str, Any]:
        """Versions, wall-clock and state of the run so far; empty before it began."""
        return manifest_of(self.folder)

    @property
    def learned(self) -> bool:
        """Whether anything was learned or measured here; a start that came to nothing is in nobody's way."""
        return bool(checkpoint.steps(self.checkpoints)) or has_rows(self.results)

    @property
    def finished(self) -> bool:
        """Whether all iterations asked for are done, and what they gave is still there."""
        return checkpoint.newest(self.checkpoints, self.config.loop.iterations) >= 0

    def announced(self) -> str:
        """What is about to be run and where it goes; how long it took last time, where a run of it stands beside."""
        config, done = self.config, (checkpoint.steps(self.checkpoints) or [0])[0] if self.config.resume else 0
        what = f"{config.algorithm} on {config.conf}, seed {config.seed} -> {self.folder}"
        return f"{what}: iteration {done + 1} of {config.loop.iterations}{_last_time(self.folder.parent)}"

    def finish(self, seconds: dict[str, float]) -> None:
        """Note where the time went: wall-clock by stage [s]."""
        self._note(finished_iterations=self.config.loop.iterations, seconds=seconds)

    def restored_results(self) -> Results:
        """Rows of a finished run, mended from their record, should something have happened to them."""
        with storage.locked(self.folder) if self.writer else contextlib.nullcontext():
            return Results(self.results, self.config.algorithm, self.config.conf, self.config.seed)

    def __enter__(self) -> "Run":
        if self.writer:
            with storage.storage_errors(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
            self._lock.enter_context(storage.locked(self.folder))
            try:
                self._begin()
            except BaseException:
                self._settle()
                raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self.writer:
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
        kept = dataclasses.replace(self.config, **once, env=absolute(self.config.env))
        storage.replace_file(self.folder / "config.yaml", to_yaml(kept).encode())
        for folder in (self.folder, self.checkpoints, self.figures, self.videos):
            storage.probe(folder)
            storage.sweep(folder)
        free = shutil.disk_usage(self.folder).free
        if free < _LOW_SPACE:
            log.warning("%s: only %d MB free; checkpoints may fail", self.folder, free // 2**20)
        self._note(**fresh, ended=None, **_provenance())

    def _refuse_reuse(self) -> None:
        if self.learned and not self.config.resume and not self.config.overwrite:
            raise ConfigError(
                f"{self.folder} already holds a run",
                f"continue it with resume={self.folder}, replace it with overwrite=true, or set out= or seed=",
            )

    def _set_aside(self) -> None:
        """An older run steps aside as a whole, if it is one: the folder name may have been mistyped."""
        storage.sweep(self.folder)
        strange = [path for path in self.folder.iterdir() if path.name != "lock"]
        if strange and not (self.folder / "config.yaml").is_file():
            cause = f"overwrite=true, but {self.folder} does not hold a run"
            raise ConfigError(cause, "empty the folder by hand, or set out=")
        if self.learned:
            storage.remove(self._aside)  # of a start before this one, which has learned since
            storage.move(self.folder, self._aside)  # our lock with it
            with self._lock.pop_all(), storage.storage_errors(self.folder):
                self.folder.mkdir()
                self._lock.enter_context(storage.locked(self.folder))

    def _settle(self) -> None:
        """The run that stepped aside goes once the new one has a checkpoint, and comes back if that failed before."""
        with self._lock, contextlib.suppress(StorageError):
            if self._aside.is_dir() and checkpoint.newest(self.checkpoints) >= 0:
                storage.remove(self._aside)
            elif self._aside.is_dir():
                storage.remove(self.folder)
                storage.move(self._aside, self.folder)
            storage.sweep(self.folder.parent, f"{self._aside.name}{storage.MARK}*")

    def _note(self, **facts: Any) -> None:
        text = json.dumps(self.manifest | facts, indent=1) + "\n"
        storage.replace_file(self.folder / "manifest.json", text.encode())


def _last_time(runs: Path) -> str:
    """How long the newest finished run of any seed took, in words; nothing where there is none that tells."""
    found = {path: path.lstat().st_mtime for path in runs.glob("seed*/manifest.json")}
    for path in sorted(found, key=found.__getitem__, reverse=True):
        told = manifest_of(path.parent)
        with contextlib.suppress(KeyError, TypeError, ValueError, OverflowError):  # whatever a manifest says
            if count := int(told["finished_iterations"]):
                return f"; last time {count} took {timedelta(seconds=round(told['seconds']['total']))}"
    return ""


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
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
