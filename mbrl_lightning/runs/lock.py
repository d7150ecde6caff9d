"""Keeps two processes out of one run folder."""

import json
import os
import socket
from pathlib import Path

from mbrl_lightning.config.console import log
from mbrl_lightning.errors import StorageError
from mbrl_lightning.runs.storage import staging_name, storage_errors, write_synced


class Lock:
    """A file with process number and host, made exclusively.

    A lock whose process is gone from this host is taken over with a warning; one of another host is refused,
    since whether that process lives cannot be known from here.

    Args:
        path: of the lock file; its folder must exist when the lock is taken.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._held = False

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            StorageError: if another process holds it.
        """
        content = json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode()
        with storage_errors(self.path):
            try:
                write_synced(self.path, content)
            except FileExistsError:
                self._remove_stale()
                write_synced(self.path, content)
        self._held = True

    def release(self) -> None:
        """Give the lock back, if held."""
        if self._held:
            self.path.unlink(missing_ok=True)
            self._held = False

    def _remove_stale(self) -> None:
        try:
            owner = json.loads(self.path.read_text())
            pid, host = int(owner["pid"]), str(owner["host"])
        except (OSError, ValueError, KeyError, TypeError):
            pid, host = -1, "an unknown host"
        if host != socket.gethostname() or _alive(pid):
            raise StorageError(
                f"{self.path.parent} is in use by process {pid} on {host}",
                f"wait for it, or if it is dead remove {self.path}",
            )
        log.warning("taking over the stale lock of process %d, which is gone", pid)
        stolen = staging_name(self.path)
        os.rename(self.path, stolen)  # of several that see the stale lock only one gets past here
        stolen.unlink()


def _alive(pid: int) -> bool:
    if pid == os.getpid():  # a restarted container may give the same number to its only process
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
