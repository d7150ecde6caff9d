"""One root seed, one independent random stream per purpose.

Evaluation has streams of its own, so how often one evaluates cannot change what is learned. No stream belongs to a rank:
every rank draws the numbers of the whole batch and takes its share, so the number of processes does not change them either.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from torch import Tensor

NAMES = ("init", "tasks", "envs", "batches", "search", "evaluation")


def of_rank(generator: torch.Generator, fabric: Fabric) -> torch.Generator:
    """Randomness of a rank's own share of what is imagined; the common generator stays the same on all ranks."""
    if fabric.world_size == 1:
        return generator
    seed = int(torch.randint(2**62, (), generator=generator))
    return torch.Generator().manual_seed(seed + fabric.global_rank)


class Streams:
    """Named `torch.Generator`s spawned from one seed >= 0."""

    def __init__(self, seed: int) -> None:
        children = np.random.SeedSequence(seed).spawn(len(NAMES))
        self._generators = {
            name: torch.Generator().manual_seed(int(child.generate_state(1, np.uint64)[0] >> 1))
            for name, child in zip(NAMES, children, strict=True)
        }

    def __getitem__(self, name: str) -> torch.Generator:
        return self._generators[name]

    def seed_globals(self) -> None:
        """Seed torch's, numpy's and Python's global generators from the `init` stream (weights, TorchRL)."""
        seed = int(torch.randint(2**31, (), generator=self["init"]))
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - libraries that draw from the global state
        random.seed(seed)

    def state_dict(self) -> dict[str, Tensor]:
        """States of all streams and of the global generators, as tensors."""
        return {name: generator.get_state() for name, generator in self._generators.items()} | global_states()

    def load_state_dict(self, states: dict[str, Tensor]) -> None:
        """Restore what `state_dict` gave."""
        for name, generator in self._generators.items():
            generator.set_state(states[name])
        restore_globals(states)


def global_states() -> dict[str, Tensor]:
    """States of torch's (on the CPU), numpy's and Python's global generators, from which environments may draw."""
    numpy: Any = np.random.get_state()  # noqa: NPY002 - the global one is meant
    _, numbers, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "numpy": torch.tensor([*numpy[1].tolist(), *numpy[2:]], dtype=torch.float64),
        "python": torch.tensor([*numbers, gauss is not None, gauss or 0.0], dtype=torch.float64),
    }


def restore_globals(states: dict[str, Tensor]) -> None:
    """Restore what `global_states` gave."""
    torch.set_rng_state(states["torch"])
    *keys, place, has_gauss, cached = states["numpy"].tolist()
    words = np.array(keys, dtype=np.uint32)
    np.random.set_state(("MT19937", words, int(place), int(has_gauss), cached))  # noqa: NPY002
    *numbers, has_gauss, cached = states["python"].tolist()
    random.setstate((3, tuple(map(int, numbers)), cached if has_gauss else None))


@contextlib.contextmanager
def globals_kept() -> Iterator[None]:
    """The global generators are afterwards as before: what is measured in between cannot change what is learned."""
    states = global_states()
    try:
        yield
    finally:
        restore_globals(states)
