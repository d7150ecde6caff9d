"""The flag that asks a run to stop at its next safe point."""

import contextlib
import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

from mbrl_lightning.errors import Interrupted, Preempted

_DEAF = 60.0  # seconds
_NUMBERS = [int(getattr(signal, name)) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


class StopFlag:
    """Turns SIGINT, SIGTERM and SIGUSR1 into a flag that the loop reads where it can save.

    A second signal ends the process at once by SystemExit (open files and locks are released); a third one
    without any clean-up, and so does one that is not heard for a minute, since the process waits for another one that
    stands still. Outside the main thread no handler can be set, and the flag stays down.
    """

    PARENT = "MBRL_PARENT"  # set for processes that must not outlive the one that started them

    def __init__(self) -> None:
        self._signal: int | None = None
        self._count = 0
        self._before: dict[int, Any] = {}
        # Processes further down inherit the variable, but it is not about them.
        self._parent = os.getppid() if os.environ.get(self.PARENT) == str(os.getppid()) else 0

    @property
    def requested(self) -> int | None:
        """Number of the signal that came, or None; SIGTERM also when the starting process is gone."""
        if self._signal is None and self._parent and os.getppid() != self._parent:
            return int(signal.SIGTERM)
        return self._signal

    def heed(self, remedy: str) -> None:
        """Stop here, by an Interrupted or Preempted with that remedy, if a signal came."""
        if self.requested is not None:
            kind = Interrupted if self.requested == signal.SIGINT else Preempted
            raise kind(f"stopped by signal {self.requested} before anything was done", remedy)

    def __enter__(self) -> "StopFlag":
        with contextlib.suppress(ValueError):  # not the main thread
            for number in _NUMBERS:
                self._before[number] = signal.signal(number, self._receive)
            reader, self._writer = os.pipe()
            os.set_blocking(self._writer, False)
            self._woken = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
            threading.Thread(target=self._watch, args=(reader,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._before:
            signal.set_wakeup_fd(self._woken)
            os.close(self._writer)
        self._before.clear()

    def _watch(self, reader: int) -> None:
        came = 0
        with os.fdopen(reader, "rb", buffering=0) as signals:
            while number := signals.read(1):
                came += number[0] in _NUMBERS
                until = time.monotonic() + _DEAF
                while self._count < came and time.monotonic() < until:
                    time.sleep(0.05)
                if self._count < came:
                    os.write(2, b"stopped while it waited for another process; the last checkpoint counts\n")
                    os._exit(75)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._count += 1
        status = 130 if number == signal.SIGINT else 75
        if self._count > 2:
            os._exit(status)
        if self._count == 2:
            sys.exit(status)
        self._signal = number
        os.write(2, b"stopping after this iteration; a second signal stops at once\n")
