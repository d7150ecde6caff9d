"""The errors a user can meet: each says its cause and its remedy and maps to an exit code."""

import difflib
import errno
from collections.abc import Iterable
from os import PathLike

_REMEDIES = {
    errno.ENOSPC: "free some space there, or set out= to another disk",
    errno.EDQUOT: "free some of the quota, or set out= to another disk",
    errno.EROFS: "that file system is read-only: set out= to one that can be written",
    errno.EACCES: "get the permission to read and write there, or set out=",
    errno.EPERM: "get the permission to write there, or set out=",
    errno.ENAMETOOLONG: "choose a shorter name, or a shorter out=",
    errno.ENOTDIR: "a part of that path is a file: move it away, or set out=",
    errno.EEXIST: "a part of that path is a file: move it away, or set out=",
    errno.EISDIR: "that is a folder where a file is expected: move it away",
    errno.EIO: "the disk fails: look after it, and set out= to another",
    errno.EMFILE: "allow more open files (ulimit -n)",
    errno.ENOSYS: "that file system has no locks: set out= to another",
}


class MBRLError(Exception):
    """Base of all errors raised on purpose: what is wrong, with the value that was found, and what to do about it.

    `exit_code` is the status the command line ends with, `code` a short stable name of the kind of error.
    """

    exit_code, code = 1, "E-GEN"

    def __init__(self, cause: str, remedy: str) -> None:
        super().__init__(cause, remedy)
        self.cause, self.remedy = cause, remedy

    def __str__(self) -> str:
        return f"error[{self.code}]: {self.cause}\n  remedy: {self.remedy}"


class ConfigError(MBRLError):
    """Wrong usage or configuration, found before any work is done."""

    exit_code, code = 2, "E-CFG"


class EnvError(MBRLError):
    """An environment raised, returned something that is not finite, or does not fit its specification."""

    exit_code, code = 3, "E-ENV"


class DivergedError(MBRLError):
    """A loss, gradient or rollout is not finite; the last good state is kept."""

    exit_code, code = 4, "E-DIV"


class StorageError(MBRLError):
    """A file cannot be written, or cannot be trusted when read."""

    exit_code, code = 5, "E-STO"

    @property
    def full(self) -> bool:
        """Whether the disk or the quota is full."""
        return getattr(self.__cause__, "errno", None) in (errno.ENOSPC, errno.EDQUOT)

    @classmethod
    def of(cls, error: OSError, path: str | PathLike[str] | None = None) -> "StorageError":
        """What the system said about a path, with the remedy of its kind; None: the path that the error names."""
        cause = f"{error.filename if path is None else path}: {error.strerror or error}"
        return cls(cause, _REMEDIES.get(error.errno or 0, "check the path and its permissions, or set out="))


class Preempted(MBRLError):
    """Stopped by SIGTERM or SIGUSR1 after saving; resumable."""

    exit_code, code = 75, "E-PRE"


class Interrupted(MBRLError):
    """Stopped by the user (SIGINT)."""

    exit_code, code = 130, "E-INT"


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """Text to append to a message about an unknown name: the nearest valid one, if any is near."""
    near = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.6)
    return f" (did you mean '{near[0]}'?)" if near else ""
