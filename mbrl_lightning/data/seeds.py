"""One root seed, one independent random stream per purpose.

Evaluation has streams of its own, so how often one evaluates cannot change what is learned. No stream belongs to a rank:
every rank draws the numbers of the whole batch and takes its share, so the number of processes does not change them either.
"""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor

NAMES = ("init", "tasks", "envs", "batches", "search", "evaluation")


class Streams:
    """Named `torch.Generator`s spawned from one seed.

    Args:
        seed: root seed, >= 0.
    """

    def __init__(self, seed: int) -> None:
        children = np.random.SeedSequence(seed).spawn(len(NAMES))
        self._generators = {
            name: torch.Generator().manual_seed(int(child.generate_state(1, np.uint64)[0] >> 1))
            for name, child in zip(NAMES, children, strict=True)
        }

    def __getitem__(self, name: str) -> torch.Generator:
        return self._generators[name]

    def seed_globals(self) -> None:
        """Seed torch's, numpy's and Python's global generators from the `init` stream (network initialisation, TorchRL)."""
        seed = int(torch.randint(2**31, (), generator=self["init"]))
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - libraries that draw from the global state
        random.seed(seed)

    def state_dict(self) -> dict[str, Tensor]:
        """States of all streams and of torch's global generator, as byte tensors."""
        states = {name: generator.get_state() for name, generator in self._generators.items()}
        return states | {"torch": torch.get_rng_state()}

    def load_state_dict(self, states: dict[str, Tensor]) -> None:
        """Restore what `state_dict` gave."""
        for name, generator in self._generators.items():
            generator.set_state(states[name])
        torch.set_rng_state(states["torch"])
