"""The one place that writes, renames and locks files. A crash leaves the old content or the new one, never a part of either.

What cannot be done is a `StorageError` that names the path, the cause and the remedy of its kind.
"""

import contextlib
import os
import shutil
import stat
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from mbrl_lightning.errors import StorageError

MARK = ".tmp-"  # in the name of everything that is not whole yet, or about to go
REPLACED = f"{MARK}replaced"
MOST = 2**30  # bytes of a file that is read as a whole


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into a StorageError."""
    try:
        yield
    except OSError as error:
        raise StorageError.of(error, path) from error


def read_file(path: Path, most: int = MOST) -> bytes:
    """The content of a regular file; pipes, devices and huge files are refused before anything is read."""
    with storage_errors(path):
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # opening a pipe would wait for a writer
        with os.fdopen(handle, "rb") as file:
            facts = os.fstat(handle)
            if not stat.S_ISREG(facts.st_mode) or facts.st_size > most:
                what = f"{facts.st_size} bytes" if stat.S_ISREG(facts.st_mode) else "not a regular file"
                raise StorageError(f"{path}: {what}", "move it away: no file of a run is like that")
            return file.read()


def replace_file(path: Path, data: bytes) -> None:
    """Write a file as a whole, its folder included; on any failure the old content is still there."""
    with _staged(path) as stage:
        _write(stage, data, os.O_CREAT | os.O_EXCL)


def publish(target: Path, files: Mapping[str, bytes]) -> None:
    """Write a folder of files as a whole, in the order given, in place of what has that name, which stays on any failure."""
    with _staged(target) as stage:
        os.mkdir(stage)
        for name, data in files.items():
            _write(stage / name, data, os.O_CREAT | os.O_EXCL)
        _sync(stage)
        remove(target)


def append(path: Path, data: bytes) -> None:
    """Add to a file all of `data` or, on any failure, nothing."""
    with storage_errors(path):
        size = os.stat(path).st_size
        try:
            _write(path, data, os.O_APPEND)
        except BaseException:  # also an interrupt: no half row stays behind
            with contextlib.suppress(OSError):
                os.truncate(path, size)
            raise


def move(source: Path, target: Path) -> None:
    """Give a file or folder another name beside it."""
    with storage_errors(source):
        os.rename(source, target)
        _sync(target.parent)


def remove(path: Path) -> None:
    """Remove a file or folder, if there: it is gone at once or not at all; what cannot be deleted is left to `sweep`."""
    if os.path.lexists(path):
        dying = _stage(path)
        move(path, dying)
        _discard(dying)


def sweep(folder: Path, names: str = f"*{MARK}*") -> None:
    """Remove what interrupted writes left in a folder. Only for the process that holds the run's lock."""
    for path in folder.glob(names):
        _discard(path)


def probe(folder: Path) -> None:
    """Make a folder; write and remove a file: what is read-only must show before hours of training, not after."""
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        stage = _stage(folder / "probe")
        _write(stage, b"probe", os.O_CREAT | os.O_EXCL)
        os.unlink(stage)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep others out of a folder that is there; a StorageError if it is held. It is free when its holder ends, however."""
    from filelock import FileLock, Timeout

    path = folder / "lock"  # which stays
    lock = FileLock(path, timeout=0)
    with storage_errors(path):
        try:
            lock.acquire()
        except Timeout as error:
            raise StorageError(f"{folder} is in use by another process", "wait for it to end, or end it") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            lock.release()


def _stage(target: Path) -> Path:
    """A fresh path beside `target`: on the same file system, so that renaming it is atomic."""
    return target.with_name(f"{target.name}{MARK}{uuid.uuid4().hex[:8]}")


@contextlib.contextmanager
def _staged(target: Path) -> Iterator[Path]:
    """A fresh path beside `target`, in place of which it is put at the end of the block, or which goes if that fails."""
    stage = _stage(target)
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield stage
            os.rename(stage, target)
        except BaseException:
            _discard(stage)
            raise
        _sync(target.parent)


def _write(path: Path, data: bytes, how: int) -> None:
    """Write and wait until it is on the disk."""
    handle = os.open(path, os.O_WRONLY | how, 0o666)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(handle, rest) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync(folder: Path) -> None:
    """Make renames and new names in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _discard(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            os.unlink(path)
