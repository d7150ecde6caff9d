"""Independent, reproducible, restorable random streams."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from mbrl_lightning.data.seeds import NAMES, Streams, globals_kept


def draws(streams: Streams, name: str, count: int = 4) -> list[float]:
    return torch.rand(count, generator=streams[name]).tolist()


def test_same_seed_same_streams_and_another_seed_others():
    assert [draws(Streams(3), name) for name in NAMES] == [draws(Streams(3), name) for name in NAMES]
    assert all(draws(Streams(3), name) != draws(Streams(4), name) for name in NAMES)
    assert len({tuple(draws(Streams(3), name)) for name in NAMES}) == len(NAMES)


@pytest.mark.parametrize("drained", ["evaluation", "tasks"])
def test_draining_one_stream_leaves_the_others_as_they_are(drained):
    used, fresh = Streams(1), Streams(1)
    draws(used, drained, 1000)
    for name in set(NAMES) - {drained}:
        assert draws(used, name) == draws(fresh, name)


def test_state_restores_every_stream_and_the_global_generator():
    streams = Streams(5)
    torch.manual_seed(8)
    for name in NAMES:
        draws(streams, name, 3)
    state = {key: value.clone() for key, value in streams.state_dict().items()}
    expected = [draws(streams, name) for name in NAMES] + [torch.rand(3).tolist()]
    other = Streams(99)
    other.load_state_dict(state)
    assert [draws(other, name) for name in NAMES] + [torch.rand(3).tolist()] == expected


def global_draws() -> tuple[float, float, float]:
    return float(torch.rand(())), float(np.random.rand()), random.random()  # noqa: NPY002 - the global one is meant


def test_seed_globals_seeds_torch_numpy_and_python():
    Streams(7).seed_globals()
    first = global_draws()
    Streams(7).seed_globals()
    assert global_draws() == first
    Streams(8).seed_globals()
    assert all(a != b for a, b in zip(global_draws(), first, strict=True))


def gaussians() -> tuple[float, float]:
    return float(np.random.normal()), random.gauss(0, 1)  # noqa: NPY002 - drawn in pairs, of which one is kept


def test_global_generators_are_saved_and_kept():
    """Environments draw from them: neither resuming nor evaluating may show."""
    streams = Streams(5)
    streams.seed_globals()
    gaussians()
    state = streams.state_dict()
    assert all(value.isfinite().all() for value in state.values())
    expected = [*gaussians(), *global_draws()]
    Streams(6).load_state_dict(state)
    with globals_kept():
        gaussians()
        Streams(8).seed_globals()
    assert [*gaussians(), *global_draws()] == expected


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_ends_of_the_seed_range(seed):
    assert len(draws(Streams(seed), "envs")) == 4
