"""Where the host reads a tensor: every such place makes a GPU wait for Python."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any
from unittest.mock import patch

import torch

from mbrl_lightning.models.imagination import ImaginedStreams
from mbrl_lightning.networks.step import GradientStep

READS = ("__float__", "__bool__", "__int__", "__index__", "__array__", "item", "tolist", "numpy", "nonzero")


DEPTH = [0]
FOUND: Counter[str] = Counter()


def note() -> None:
    """Write down the line that reads, where it is inside; the buffer of real transitions rests on the host, as compilers do."""
    frame = sys._getframe(2)
    if DEPTH[-1] and not re.search("data/buffer.py$|torch/_(dynamo|subclasses)/", frame.f_code.co_filename):
        FOUND[f"{frame.f_code.co_filename}:{frame.f_lineno}"] += 1


def reading(name: str) -> Any:
    """A patch of a method of tensors that reads."""
    original = getattr(torch.Tensor, name)

    def read(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        note()
        return original(self, *args, **kwargs)

    return patch.object(torch.Tensor, name, read)


def indexing(self: torch.Tensor, index: Any, original: Any = torch.Tensor.__getitem__) -> Any:
    """A mask says how many rows there are only to who reads it."""
    parts = index if isinstance(index, tuple) else (index,)
    if any(isinstance(part, torch.Tensor) and part.dtype == torch.bool for part in parts):
        note()
    return original(self, index)


def within(owner: type, name: str, by: int) -> Any:
    """A patch of a method: inside of it (`by` 1) or no longer (0)."""
    original = getattr(owner, name)

    @wraps(original)
    def run(*args: Any, **kwargs: Any) -> Any:
        DEPTH.append(by and DEPTH[-1] + by)
        try:
            return original(*args, **kwargs)
        finally:
            DEPTH.pop()

    return patch.object(owner, name, run)


@contextmanager
def host_reads() -> Iterator[Counter[str]]:
    """Counts reads, `file:line` -> how many, inside gradient steps and imagined rollouts; the look of a block is outside."""
    FOUND.clear()
    with ExitStack() as stack:
        for name in READS:
            stack.enter_context(reading(name))
        stack.enter_context(patch.object(torch.Tensor, "__getitem__", indexing))
        for owner, name, by in (
            (GradientStep, "__call__", 1),
            (ImaginedStreams, "rollout", 1),
            (GradientStep, "check", 0),
        ):
            stack.enter_context(within(owner, name, by))
        yield FOUND
