"""How two ways of doing the same work are compared: in turns, many times, by the median of the ratios."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

Work = Callable[[], object]


@dataclass(frozen=True)
class Ratio:
    """Two times and what they were wanted to be to each other.

    Attributes:
        group: which part of the library.
        case: sizes.
        slow: name of the side whose time is divided.
        fast: name of the side that it is divided by.
        slow_ms: its median time [ms].
        fast_ms: the other's [ms].
        ratio: median over repeats of slow / fast.
        low: smallest of the repeats.
        high: largest.
        repeats: how many.
        floor: the ratio wanted at least, or None.
        ceiling: the ratio wanted at most, or None.
    """

    group: str
    case: str
    slow: str
    fast: str
    slow_ms: float
    fast_ms: float
    ratio: float
    low: float
    high: float
    repeats: int
    floor: float | None = None
    ceiling: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None where there is none."""
        if self.floor is not None:
            return self.ratio >= self.floor
        return self.ratio <= self.ceiling if self.ceiling is not None else None


@dataclass(frozen=True)
class Memory:
    """What one call allocates.

    Attributes:
        case: sizes.
        side: which of the two.
        peak: most bytes held at once beyond those held before.
        largest: bytes of the largest single tensor.
    """

    case: str
    side: str
    peak: int
    largest: int


@dataclass(frozen=True)
class Share:
    """Wall-clock of a short run by stage.

    Attributes:
        case: configuration.
        seconds: by stage, with `total`.
        outside: share of the total in no stage.
        ceiling: what is wanted at most.
    """

    case: str
    seconds: dict[str, float]
    outside: float
    ceiling: float

    @property
    def met(self) -> bool:
        """Whether the target is reached."""
        return self.outside <= self.ceiling


def compare(sides: Mapping[str, Work], repeats: int, calls: int, warm: int = 1) -> dict[str, list[float]]:
    """Time every side in turn, `repeats` times, in alternating order, so that drift of the machine hits all.

    Times are CPU time of this process, which runs one thread: what else the machine does then counts less.

    Args:
        sides: name to work.
        repeats: rounds.
        calls: calls timed together in one round.
        warm: untimed calls of each side before.

    Returns:
        Seconds per call for every side, one entry a round.
    """
    names = list(sides)
    for name in names:
        for _ in range(warm):
            sides[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(repeats):
        for name in names if turn % 2 == 0 else reversed(names):
            began = time.process_time()
            for _ in range(calls):
                sides[name]()
            seconds[name].append((time.process_time() - began) / calls)
    return seconds


def ratio(
    group: str,
    case: str,
    seconds: Mapping[str, list[float]],
    slow: str,
    fast: str,
    floor: float | None = None,
    ceiling: float | None = None,
) -> Ratio:
    """Ratio of two sides that `compare` timed.

    Args:
        group: see `Ratio`.
        case: see `Ratio`.
        seconds: from `compare`.
        slow: side in the numerator.
        fast: side in the denominator.
        floor: wanted at least.
        ceiling: wanted at most.
    """
    each = [a / b for a, b in zip(seconds[slow], seconds[fast], strict=True)]
    return Ratio(
        group,
        case,
        slow,
        fast,
        1e3 * statistics.median(seconds[slow]),
        1e3 * statistics.median(seconds[fast]),
        statistics.median(each),
        min(each),
        max(each),
        len(each),
        floor,
        ceiling,
    )


def memory(case: str, side: str, work: Work) -> Memory:
    """Memory of one call by the allocator's own account (PyTorch's profiler), CPU tensors alone.

    Args:
        case: see `Memory`.
        side: see `Memory`.
        work: called once unmeasured, once measured.
    """
    work()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]")
    held = peak = largest = 0
    for _, change in changes:
        held += change
        peak, largest = max(peak, held), max(largest, change)
    return Memory(case, side, peak, largest)
