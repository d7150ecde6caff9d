"""The errors a user can meet: each says its cause and its remedy and maps to an exit code."""

import difflib
from collections.abc import Iterable


class MBRLError(Exception):
    """Base of all errors raised on purpose.

    Args:
        cause: what is wrong, with the value that was found.
        remedy: what to do about it.

    Attributes:
        exit_code: status the command line ends with.
        code: short stable name of the kind of error.
    """

    exit_code = 1
    code = "E-GEN"

    def __init__(self, cause: str, remedy: str) -> None:
        super().__init__(cause, remedy)
        self.cause = cause
        self.remedy = remedy

    def __str__(self) -> str:
        return f"error[{self.code}]: {self.cause}\n  remedy: {self.remedy}"


class ConfigError(MBRLError):
    """Wrong usage or configuration, found before any work is done."""

    exit_code = 2
    code = "E-CFG"


class EnvError(MBRLError):
    """An environment raised, returned something that is not finite, or does not fit its specification."""

    exit_code = 3
    code = "E-ENV"


class DivergedError(MBRLError):
    """A loss, gradient or rollout is not finite; the last good state is kept."""

    exit_code = 4
    code = "E-DIV"


class StorageError(MBRLError):
    """A file cannot be written, or cannot be trusted when read."""

    exit_code = 5
    code = "E-STO"


class Preempted(MBRLError):
    """Stopped by SIGTERM or SIGUSR1 after saving; resumable."""

    exit_code = 75
    code = "E-PRE"


class Interrupted(MBRLError):
    """Stopped by the user (SIGINT)."""

    exit_code = 130
    code = "E-INT"


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """Text to append to a message about an unknown name: the nearest valid one, if any is near."""
    near = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.6)
    return f" (did you mean '{near[0]}'?)" if near else ""
