"""A ring holds what cutting the end off a growing table holds, in the same order."""

from __future__ import annotations

import pytest
import torch
from fakes import generator
from tensordict import TensorDict

from mbrl_lightning.data.ring import Ring, drawn_share


@pytest.mark.parametrize("capacity", [1, 7, 20, 10_000])
def test_the_newest_rows_are_held_oldest_first(capacity):
    ring, table = Ring(capacity), TensorDict({"x": torch.zeros(0, 2), "mask": torch.zeros(0).bool()}, batch_size=[0])
    for count in (3, 4, 0, 1, 9, 45, 2):
        new = TensorDict({"x": torch.randn(count, 2), "mask": torch.rand(count) < 0.5}, batch_size=[count])
        ring.append(new)
        table = torch.cat([table, new])[-capacity:]
        held = ring[torch.arange(len(ring))]
        assert len(ring) == len(table)
        assert (held == table).all()
    drawn, picked = ring.draw(5, generator(3)), torch.randint(len(table), (5,), generator=generator(3))
    assert (drawn == table[picked]).all()


def test_rows_are_copied_a_few_times_at_most_however_many_follow():
    ring, rooms = Ring(), set()
    for _ in range(500):
        ring.append(TensorDict({"x": torch.ones(3)}, batch_size=[3]))
        rooms.add(ring.columns["x"].data_ptr())
    assert len(rooms) < 12
    assert float(ring.columns["x"][: len(ring)].sum()) == 1500


def test_a_share_takes_the_same_numbers_whatever_it_is():
    counts, after = [], set()
    for share in (0.0, 0.5, 1.0):
        draws = generator(0)
        counts.append(drawn_share(100, share, draws))
        after.add(float(torch.rand((), generator=draws)))
    assert counts[0] == 0 < counts[1] < counts[2] == 100
    assert len(after) == 1
