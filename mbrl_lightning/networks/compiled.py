"""Losses as compiled functions, in runs that ask for it; where the compiler fails, as they are."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

log = logging.getLogger("mbrl_lightning")
Loss = Callable[[Any], Mapping[str, Tensor]]
"""A batch -> a mapping with `loss` and whatever else is to be logged."""


class Compiler:
    """Turns losses into what `torch.compile` makes of them, each once, with its gradient.

    Sizes are fixed by the first batch, or open from the start: a process that resumes with a batch of another size runs the
    same code, and so gives the same bits.

    Args:
        wanted: False leaves every loss as it is.
    """

    def __init__(self, wanted: bool) -> None:
        self.wanted, self._known = wanted, dict[Loss, Loss]()

    def __call__(self, loss: Loss, batch: Tensor | TensorDictBase, sizes_vary: bool) -> Loss:
        """`loss` compiled; itself, with one line that says why, where it or its gradient cannot be had so.

        Args:
            loss: a bound method or function, asked for again by being equal.
            batch: one that it will be given.
            sizes_vary: whether others are of other sizes.
        """
        if not self.wanted:
            return loss
        if loss not in self._known:
            self._known[loss] = self._tried(loss, batch, sizes_vary)
        return self._known[loss]

    def _tried(self, loss: Loss, batch: Tensor | TensorDictBase, sizes_vary: bool) -> Loss:
        name, began = getattr(loss, "__qualname__", repr(loss)), time.perf_counter()
        print(f"compiling {name}: up to a minute, a few seconds where it was done before", flush=True)
        compiled = torch.compile(loss, dynamic=sizes_vary)
        try:
            with torch.random.fork_rng(
                devices=[]
            ):  # the trial is not a step: nothing that follows may be drawn otherwise
                compiled(batch)["loss"].backward()
        except Exception as error:  # compilers have no one kind of error
            log.warning(
                "%s runs as it is: compiling failed (%s)", name, (str(error).splitlines() or [repr(error)])[0][:200]
            )
            return loss
        print(f"compiled {name} in {time.perf_counter() - began:.0f} s", flush=True)
        return compiled
