"""Simulators shared out among ranks, which are threads here."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from fakes import CounterSimulator, counter_family, generator

from mbrl_lightning.data.shared import SharedSimulator, shared
from mbrl_lightning.errors import DivergedError, EnvError


class Bodies(CounterSimulator):
    """Counters one by one, whose task is hidden and, as the first of them says, changes from step to step."""

    one_by_one = True

    def __init__(self, tasks):
        super().__init__(tasks)
        self.tasks = tasks.clone()

    def step(self, action, mask=None):
        if bool((action[mask] > 9).any()):
            raise EnvError("a body broke", "mend it")
        self.tasks = self.tasks + (torch.ones(len(self.tasks)) if mask is None else mask).unsqueeze(1)
        return super().step(action, mask)


def ranks(work, world=2):
    """What `work` gives on each of the ranks that meet in `gather`."""
    meet, parts = threading.Barrier(world, timeout=20), [None] * world

    def run(rank):
        def share(batch):
            return batch.chunk(world)[rank]

        def gather(part):
            parts[rank] = part
            meet.wait()
            whole = torch.cat(parts)
            meet.wait()
            return whole

        fabric = SimpleNamespace(world_size=world, device=torch.device("cpu"))
        return work(SimpleNamespace(fabric=fabric, share=share, gather=gather))

    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(run, range(world)))


def walked(simulator):
    """Two steps, a reset of some rows, and a step of others; and how often each row was stepped here."""
    draws, rows = generator(), torch.arange(16)
    seen = [simulator.reset(draws)]
    seen += [simulator.step(torch.zeros(16, 1)), simulator.step(torch.zeros(16, 1)), simulator.tasks]
    seen += [simulator.reset(draws, rows % 3 == 0), simulator.step(torch.zeros(16, 1), rows > 5), simulator.tasks]
    return torch.cat(seen, 1), getattr(simulator, "_inner", simulator).stepped


TASKS = torch.arange(16, dtype=torch.float64).unsqueeze(1)
FAMILY = replace(counter_family(), build=Bodies)


def test_ranks_step_their_own_rows_and_see_what_one_process_sees():
    whole, stepped = walked(Bodies(TASKS))
    (first, own), (second, others) = ranks(lambda step: walked(shared(FAMILY, step).simulate(TASKS)))
    assert torch.equal(first, whole)
    assert torch.equal(second, whole)
    assert torch.equal(own, torch.where(torch.arange(16) < 8, stepped, 0))
    assert torch.equal(own + others, stepped)


@pytest.mark.parametrize(("action", "kind"), [(10.0, EnvError), (torch.nan, DivergedError)])
def test_a_fault_in_one_rank_s_row_is_told_on_all(action, kind):
    def work(step):
        simulator = shared(FAMILY, step).simulate(TASKS)
        simulator.reset(generator())
        with pytest.raises(kind) as caught:
            simulator.step(torch.where(torch.arange(16) == 9, action, 0.0).unsqueeze(1))
        return str(caught.value)

    first, second = ranks(work)
    assert ("another process" in first) == (kind is EnvError)
    assert "another process" not in second


@pytest.mark.parametrize(
    ("build", "rows", "world", "split"),
    [
        (Bodies, 16, 2, True),
        (Bodies, 15, 2, False),  # does not divide
        (Bodies, 14, 2, False),  # an exchange takes longer
        (CounterSimulator, 16, 2, False),  # a batch, of which a part takes as long
        (Bodies, 16, 1, False),
    ],
)
def test_only_what_saves_time_is_shared_out(build, rows, world, split):
    tasks = torch.ones(rows, 1)
    family = replace(FAMILY, build=build)
    for built in ranks(lambda step: shared(family, step).simulate(tasks), world):
        assert isinstance(built, SharedSimulator) == split
        built.close()
