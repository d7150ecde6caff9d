"""Writing files so that a crash leaves the old content or the new one, never a part of either."""

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from mbrl_lightning.errors import StorageError

FULL = (errno.ENOSPC, errno.EDQUOT)
_MARK = ".tmp-"


def staging_name(target: Path) -> Path:
    """A fresh path beside `target`: on the same file system, so that renaming it is atomic."""
    return target.with_name(f"{target.name}{_MARK}{uuid.uuid4().hex[:8]}")


def sync_folder(folder: Path) -> None:
    """Make renames and new names in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_synced(path: Path, data: bytes | memoryview) -> None:
    """Write a new file and wait until it is on the disk; the name must not exist yet."""
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_text(path: Path, text: str) -> None:
    """Replace a small file as a whole.

    Raises:
        StorageError: if it cannot be written; the old content is then still there.
    """
    stage = staging_name(path)
    with storage_errors(path):
        try:
            write_synced(stage, text.encode())
            os.replace(stage, path)
        except OSError:
            stage.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def sweep(folder: Path) -> None:
    """Remove what interrupted writes left in a folder. Only for the process that holds the run's lock."""
    for path in folder.glob(f"*{_MARK}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def probe(folder: Path) -> None:
    """Write and remove a file: a read-only folder must show before hours of training, not after.

    Raises:
        StorageError: if the folder cannot be made or written.
    """
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        stage = staging_name(folder / "probe")
        write_synced(stage, b"probe")
        stage.unlink()


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into a StorageError that names the path and the remedy.

    Raises:
        StorageError: in place of any OSError.
    """
    try:
        yield
    except OSError as error:
        remedy = "free some space" if error.errno in FULL else "check the path and its permissions, or set out="
        raise StorageError(f"{path}: {error.strerror or error}", remedy) from error
