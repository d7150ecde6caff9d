"""Windows of pairs: what one gather gives must be what walking back step by step gives."""

from __future__ import annotations

import pytest
import torch
from fakes import CounterSimulator, Says, counter_spec, generator

from mbrl_lightning.beliefs.history import HistoryInputs
from mbrl_lightning.data.buffer import TaskBuffer
from mbrl_lightning.data.collect import collect, collect_parts
from mbrl_lightning.data.windows import Histories, Segments, transition

TASKS = torch.tensor([[3.0], [4.0], [50.0]], dtype=torch.float64)


def past_task(following: torch.Tensor) -> torch.Tensor:
    return following[..., 0] % 100 >= following[..., 1]


NOISY = Says(lambda generator, observation: torch.rand(len(observation), 1, generator=generator) * 2 - 1, noisy=True)
START = NOISY.begin(len(TASKS))


def filled(
    every: int | None, steps: int = 30, capacity: int = 1000, calls: int = 2, **fields
) -> tuple[TaskBuffer, list]:
    """A buffer of episodes that end at different times, and the episodes as lists of (observation, action, next)."""
    spec = counter_spec(6, termination=past_task, outcome=lambda n: n[..., :1] * 2, **fields)
    real, walked, draws = TaskBuffer(1, capacity), [], generator()
    for _ in range(calls):
        index, first = real.add_tasks(TASKS), real.episodes if every else None
        parts = []
        simulator = CounterSimulator(TASKS)
        for part in collect_parts(simulator, spec, NOISY, START, steps, draws, every or steps, draws):
            real.extend(part, index, exploratory=False, first_episode=first)
            parts.append(part)
        data = torch.cat(parts, 1)
        for row in data:
            for step in row:
                if bool(step["initial"]):
                    walked.append([])
                walked[-1].append((step["observation"], step["action"], step["next", "observation"]))
    return real, walked


def histories(real: TaskBuffer, length: int, fitted_to: TaskBuffer | None = None) -> tuple[Histories, HistoryInputs]:
    inputs = HistoryInputs(counter_spec(6, outcome=lambda n: n[..., :1] * 2))
    inputs.fit((fitted_to or real).transitions())
    return Histories(real, inputs, length), inputs


@pytest.mark.parametrize("every", [None, 7, 1])
@pytest.mark.parametrize("length", [1, 3, 10])
def test_windows_are_what_one_would_have_remembered(every, length):
    real, walked = filled(every)
    (seen, inputs), wanted = histories(real, length), {}
    for episode in walked:
        for now, (observation, action, following) in enumerate(episode):
            pairs = [inputs.pair(*step) for step in episode[max(now - length, 0) : now + 1]]
            wanted[float(action)] = pairs, inputs.current(observation), inputs.current(following)
    assert len(wanted) == len(seen) == 180
    batch = seen.columns(torch.arange(len(seen)))
    for row in batch:
        pairs, current, following = wanted[float(row["action"])]
        assert int(row["mask"].sum()) == len(pairs)
        assert row["mask"][-len(pairs) :].all()  # padding is on the left
        assert torch.equal(row["pairs"][-len(pairs) :], torch.stack(pairs))
        assert not row["pairs"][: -len(pairs)].any()
        assert torch.equal(row["current"], current)
        assert torch.equal(row["following"], following)


def test_histories_before_and_after_a_step_share_what_both_remember():
    real, _ = filled(5)
    batch = transition(histories(real, 4)[0].columns(torch.arange(len(real))))
    before, after = batch["inputs"], batch["next", "inputs"]
    assert torch.equal(before["pairs"][:, 1:], after["pairs"][:, :-1])
    assert after["mask"][:, -1].all()
    assert not before["mask"][real.transitions()["initial"]].any()  # nothing is known at the start of an episode


def test_a_full_buffer_forgets_windows_with_their_rows():
    whole, _ = filled(5, calls=4)
    ring, _ = filled(5, calls=4, capacity=100)
    assert len(ring) == 100
    by_action = {float(a): row for row, a in enumerate(whole.transitions()["action"])}
    old, new, same = histories(whole, 6)[0], histories(ring, 6, whole)[0], 0
    for row in range(100):
        there = torch.tensor([by_action[float(new.action[row])]])
        pairs, mask = new.window(torch.tensor([row]))
        full, full_mask = old.window(there)
        kept = mask & full_mask
        assert torch.equal(mask, kept)  # never more than there was
        assert torch.equal(pairs[mask], full[mask])
        same += int(torch.equal(mask, full_mask))
    assert same > 80  # only the oldest rows have lost something


@pytest.mark.parametrize("capacity", [1000, 100])
def test_histories_that_read_on_are_those_built_anew(capacity):
    first, _ = filled(5, calls=1, capacity=capacity)
    (seen, inputs), spec = histories(first, 4), counter_spec(6, termination=past_task)
    for _ in range(3):
        draws, begun = generator(len(first)), first.episodes
        for part in collect_parts(CounterSimulator(TASKS), spec, NOISY, START, 30, draws, 5, draws):
            first.extend(part, torch.arange(len(TASKS)), exploratory=False, first_episode=begun)
            seen.read()
    new = Histories(first, inputs, 4)
    rows = torch.arange(len(new))
    assert (seen.columns(rows) == new.columns(rows)).all()
    assert (seen.before(rows) == new.before(rows)).all()
    assert len(seen) == len(first)
    kept = Histories.of(first, inputs, 4)
    assert Histories.of(first, inputs, 4) is kept
    state = filled(7, calls=1)[0].state_dict()
    first.load_state_dict(state)
    assert torch.equal(
        Histories.of(first, inputs, 4).action, first.transitions()["action"]
    )  # none of what was there before


def test_parts_are_the_whole():
    spec = counter_spec(6, termination=past_task)
    whole = collect(CounterSimulator(TASKS), spec, NOISY, START, 40, generator(0), generator(1))
    parts = list(collect_parts(CounterSimulator(TASKS), spec, NOISY, START, 40, generator(0), 7, generator(1)))
    assert [part.shape[1] for part in parts] == [7, 7, 7, 7, 7, 5]
    assert (torch.cat(parts, 1) == whole).all()
    assert len(whole["episode"].unique()) == int(whole["initial"].sum())


def segments(real: TaskBuffer, past: int, future: int) -> Segments:
    data = real.transitions()
    return Segments(
        data, lambda rows: {"inputs": rows["observation"], "target": rows["next", "observation"]}, past, future
    )


def test_batches_that_are_put_together_at_once_are_those_of_one_by_one():
    cut, draws = segments(filled(None)[0], 3, 2), generator(1)
    alone = [next(cut.batches(1, 5, draws)) for _ in range(20)]
    together = list(cut.batches(20, 5, generator(1)))
    assert len(together) == 20
    assert all((one == two).all() for one, two in zip(alone, together, strict=True))


@pytest.mark.parametrize("every", [None, 7, 1])
@pytest.mark.parametrize(("past", "future"), [(1, 1), (3, 2), (10, 4)])
def test_segments_are_stretches_of_one_episode(every, past, future):
    real, walked = filled(every)
    cut, data = segments(real, past, future), real.transitions()
    of = {tuple(map(float, step[0])): (episode, t) for episode in walked for t, step in enumerate(episode)}
    assert len(of) < len(data)  # some states occur twice, so that only the walk below tells whether it is the right one
    order = torch.argsort(data["episode"] * 1000 + data["age"])
    rows = torch.arange(len(data))
    batch = cut.at(rows)
    walks = {int(e): order[data["episode"][order] == e] for e in data["episode"].unique()}
    for row in rows.tolist():
        walk, age = walks[int(data["episode"][row])], int(data["age"][row])
        for part, reach in (("past", range(-past, 0)), ("future", range(future))):
            for column, shift in enumerate(reach):
                there = 0 <= age + shift < len(walk)
                assert bool(batch[part, "mask"][row, column]) == there
                if there:
                    assert torch.equal(batch[part, "inputs"][row, column], data["observation"][walk[age + shift]])
                    assert torch.equal(
                        batch[part, "target"][row, column], data["next", "observation"][walk[age + shift]]
                    )
    assert bool(batch["future", "mask"][:, 0].all())  # the row itself
    assert not bool(batch["past", "mask"][data["initial"]].any())


def test_segments_of_a_full_buffer_hold_nothing_overwritten():
    real, _ = filled(1, capacity=50)
    cut, data = segments(real, 4, 4), real.transitions()
    batch = cut.at(torch.arange(len(data)))
    columns = torch.cat([batch["past", "inputs"], batch["future", "inputs"]], 1)
    mask = torch.cat([batch["past", "mask"], batch["future", "mask"]], 1)
    steps = columns[:, 1:, 0] - columns[:, :-1, 0]  # the counter adds one a step, inside an episode
    both = mask[:, 1:] & mask[:, :-1]
    assert bool((steps[both] == 1).all())
    assert both.any(1).sum() > 30
