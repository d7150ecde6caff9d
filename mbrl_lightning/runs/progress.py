"""One line an iteration: how far, how well, where the time goes, how long to go; and the same numbers to loggers.

Inside an iteration the stage and its counts are told: on a terminal every second, in place; elsewhere in the first
iteration alone, which tells nothing else yet, after 10, 20, 40, ... seconds.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

from mbrl_lightning.config import flattened
from mbrl_lightning.config.schema import Config
from mbrl_lightning.runs.loggers import Loggers

STAGES = ("collect", "model", "policy", "evaluate")
SHOWN = {
    "imagined/return": "imagined",
    "real/return": "real",
    "return/policy": "unseen",
    "train/model_loss": "model loss",
    "model/nmse": "nMSE",
}


class Progress:
    """Prints the line and tells the loggers (see `Loggers`), if `active` (rank 0)."""

    def __init__(self, cfg: Config, active: bool, folder: Path | None) -> None:
        self.cfg, self.loop, self.active, self.folder = cfg, cfg.loop, active, folder
        self.first: tuple[int, float] | None = None
        self.stage, self.began, self.terminal = "", time.monotonic(), sys.stdout.isatty()
        self.loggers = Loggers(cfg, folder if active else None, flattened(asdict(cfg)))

    @contextmanager
    def watching(self, counts: Callable[[], str], wait: float = 1.0) -> Iterator[None]:
        """Meanwhile tell, every `wait` seconds at most, the stage and its `counts`, in words; see the module."""
        ended, self.began = threading.Event(), time.monotonic()
        thread = threading.Thread(target=self._watch, args=(ended, counts, wait), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _watch(self, ended: threading.Event, counts: Callable[[], str], wait: float) -> None:
        due, begin, end = 10 * wait, "\r\033[K" * self.terminal, "" if self.terminal else "\n"
        with suppress(OSError, ValueError):  # nobody listens any more
            while self.active and not ended.wait(wait):
                gone = time.monotonic() - self.began
                if self.terminal or (self.first is None and gone >= due):
                    due = 2 * gone
                    text = f"{self.stage}: {counts()}, {timedelta(seconds=int(gone))} gone"
                    print(begin + text, end=end, flush=True)
            print(begin, end="", flush=True)  # what is said next begins a line

    def line(self, iteration: int, steps: int, metrics: dict[str, float], times: dict[str, float]) -> None:
        """Report the iteration and real steps done so far, metrics by name, seconds by stage and their `total`."""
        self.loggers.log(metrics | {f"time/{k}": v for k, v in times.items()}, steps)
        if not self.active:
            return
        total = self.loop.iterations
        values = [f"{label} {metrics[name]:.4g}" for name, label in SHOWN.items() if name in metrics]
        shares = [f"{stage} {times[stage] / times['total']:.0%}" for stage in STAGES if stage in times]
        gone, left = (timedelta(seconds=round(s)) for s in (times["total"], self._left(iteration, times)))
        head = f"[{iteration:{len(str(total))}}/{total}] {steps} real steps"
        parts = [head, ", ".join(values), ", ".join(shares), f"{gone} gone, {left} to go"]
        self.began = time.monotonic()
        print("\r\033[K" * self.terminal + " | ".join(filter(None, parts)), flush=True)

    def _left(self, iteration: int, times: dict[str, float]) -> float:
        """Seconds to go at the pace since this start, and those of the last iteration's longer fit."""
        if self.first is None:
            self.first = (iteration - 1, times["total"] / iteration * (iteration - 1))
        pace = (times["total"] - self.first[1]) / (iteration - self.first[0])
        loop, ahead = self.loop, self.loop.iterations - iteration
        fitted = loop.first_model_steps + (iteration - 1) * loop.model_steps
        longer = times.get("model", 0.0) / max(fitted, 1) * loop.last_model_steps if ahead > 0 else 0.0
        return pace * ahead + longer
