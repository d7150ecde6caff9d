"""Transitions at rest: what a draw may contain, and what survives a checkpoint."""

from __future__ import annotations

import pytest
import torch
from fakes import CounterSimulator, Says, counter_spec, fingerprint, generator
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict

from mbrl_lightning.data.buffer import TaskBuffer
from mbrl_lightning.data.collect import collect
from mbrl_lightning.errors import EnvError
from mbrl_lightning.runs import checkpoint


def episode(tasks: torch.Tensor, steps: int, seed: int = 0, horizon: int = 5) -> TensorDict:
    """Counter data; the observation's second entry is the task's number, so that every row can be told."""

    def act(observation: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(observation), 1)

    agent, draws = Says(act), generator(seed)
    return collect(CounterSimulator(tasks), counter_spec(horizon), agent, agent.begin(len(tasks)), steps, draws)


def numbers(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).unsqueeze(1)


def filled(lengths: dict[float, int], policy_steps: int = 0, capacity: int = 1000) -> TaskBuffer:
    """One task for each number, with so many exploratory rows; `policy_steps` more by the policy, action 1."""
    buffer = TaskBuffer(1, capacity)
    for number, steps in lengths.items():
        index = buffer.add_tasks(numbers(number))
        buffer.extend(episode(numbers(number), steps, seed=int(number)), index, exploratory=True)
        if policy_steps:
            data = episode(numbers(number), policy_steps, seed=100 + int(number))
            data["action"] = torch.ones_like(data["action"])
            buffer.extend(data, index, exploratory=False)
    return buffer


def test_only_valid_rows_are_kept_and_counted():
    buffer = TaskBuffer(1)
    data = episode(numbers(1, 2), 6)
    data["valid"][0, 2:] = False
    buffer.extend(data, buffer.add_tasks(numbers(1, 2)), exploratory=True)
    assert len(buffer) == buffer.num_steps == 8
    assert buffer.rows(exploratory=True)[1].tolist() == [2, 6]


@pytest.mark.parametrize("seed", range(5))
def test_context_is_of_the_right_task_exploratory_and_without_repetition(seed):
    buffer = filled({1: 12, 2: 9, 3: 15}, policy_steps=20)
    tasks = torch.tensor([2, 0, 1, 2])
    context = buffer.draw_context(tasks, 9, generator(seed))
    assert context.shape == (4, 9)
    assert torch.equal(context["observation"][..., 1], (tasks + 1.0).unsqueeze(1).expand(4, 9))
    assert context["exploratory"].all()
    assert (context["action"] == 0).all()
    steps = torch.stack([context["episode"], context["age"]], -1)
    assert all(len(set(map(tuple, row))) == 9 for row in steps.tolist())


def test_context_is_cut_to_what_the_poorest_task_has():
    buffer = filled({1: 12, 2: 3})
    assert buffer.draw_context(torch.tensor([0, 1]), 10, generator()).shape == (2, 3)
    assert buffer.draw_context(torch.tensor([0]), 10, generator()).shape == (1, 10)
    assert buffer.draw_context(torch.tensor([0]), 0, generator()).shape == (1, 0)


def test_targets_are_of_the_right_task_and_any_policys():
    buffer = filled({1: 10, 2: 30}, policy_steps=10)
    targets = buffer.draw_targets(torch.tensor([1, 0]), 400, generator())
    assert torch.equal(targets["observation"][..., 1], torch.tensor([[2.0], [1.0]]).expand(2, 400))
    shares = targets["exploratory"].float().mean(1)
    assert shares.tolist() == pytest.approx([0.75, 0.5], abs=0.1)  # in proportion to what there is


def test_tasks_with_exploratory_data_are_drawn_evenly():
    buffer = filled({1: 5, 2: 5, 3: 5})
    bare = buffer.add_tasks(numbers(9))
    buffer.extend(episode(numbers(9), 5), bare, exploratory=False)
    assert sorted(buffer.draw_tasks(3, generator()).tolist()) == [0, 1, 2]  # without repetition while it can
    assert torch.bincount(buffer.draw_tasks(7, generator())).tolist() in ([3, 2, 2], [2, 3, 2], [2, 2, 3])


def test_start_states_are_first_ones_or_any_that_did_not_end():
    buffer = TaskBuffer(1)
    data = episode(numbers(3, 4), 30)
    data["next", "terminated"] = data["next", "observation"][..., :1] % 100 == 3
    buffer.extend(data, buffer.add_tasks(numbers(3, 4)), exploratory=True)
    first = buffer.start_states(200, generator(), initial=True)
    assert (first[:, 0] % 100 == 0).all()
    seen = set((buffer.start_states(500, generator(), initial=False)[:, 0] % 100).tolist())
    assert seen == {0, 1, 3, 4}  # from 2 the next step ended the episode
    data["next", "terminated"].fill_(True)  # episodes of one step: there is no other state
    single = TaskBuffer(1)
    single.extend(data, single.add_tasks(numbers(3, 4)), exploratory=True)
    assert single.start_states(5, generator(), initial=False).shape == (5, 2)


@pytest.mark.parametrize("key", ["observation", "action", ("next", "observation"), ("next", "reward")])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_data_that_are_not_finite_are_refused_whole(key, bad):
    buffer = filled({1: 4})
    before = fingerprint(buffer.state_dict())
    data = episode(numbers(1, 2), 6)
    data[key][1, 3, 0] = bad
    with pytest.raises(EnvError, match="non-finite"):
        buffer.extend(data, torch.tensor([0, 0]), exploratory=True)
    assert fingerprint(buffer.state_dict()) == before


def test_recordings_without_episodes_are_told_apart_where_they_are_done():
    data = episode(numbers(1, 2), 12)
    known, recorded = TaskBuffer(1), TaskBuffer(1)
    known.extend(data, known.add_tasks(numbers(1, 2)), exploratory=True)
    bare = data.exclude("initial", "age", "episode", "valid")
    recorded.extend(bare, recorded.add_tasks(numbers(1, 2)), exploratory=True)
    assert fingerprint(recorded.state_dict()) == fingerprint(known.state_dict())
    with pytest.raises(EnvError, match="reward"):
        recorded.extend(bare.exclude(("next", "reward")), torch.tensor([0, 1]), exploratory=True)


def test_beyond_its_capacity_the_oldest_rows_go():
    buffer = filled({1: 6, 2: 6, 3: 6}, capacity=10)
    assert len(buffer) == 10
    assert buffer.num_steps == 18  # all real steps are counted
    assert buffer.rows(exploratory=False)[1].tolist() == [0, 4, 6]
    assert set(buffer.draw_tasks(20, generator()).tolist()) == {1, 2}
    context = buffer.draw_context(torch.tensor([1, 2]), 4, generator())
    assert torch.equal(context["observation"][..., 1], torch.tensor([[2.0], [3.0]]).expand(2, 4))


@pytest.mark.parametrize("capacity", [1000, 10], ids=["room", "wrapped"])
def test_state_restores_content_and_what_comes_after(capacity):
    buffer, other = filled({1: 6, 2: 7}, capacity=capacity), TaskBuffer(1, capacity)
    other.load_state_dict(buffer.state_dict())
    assert fingerprint(other.state_dict()) == fingerprint(buffer.state_dict())
    for each in (buffer, other):  # the next rows replace the same old ones
        each.extend(episode(numbers(3), 4, seed=9), each.add_tasks(numbers(3)), exploratory=True)
    assert fingerprint(other.state_dict()) == fingerprint(buffer.state_dict())
    draws = [each.draw_targets(torch.tensor([1, 2]), 20, generator(4)) for each in (buffer, other)]
    assert torch.equal(draws[0]["observation"], draws[1]["observation"])
    assert buffer.num_steps == other.num_steps == 17


def test_state_is_a_copy_of_plain_tensors(tmp_path):
    buffer = filled({1: 6})
    state = buffer.state_dict()
    checkpoint.save(tmp_path, 1, state, keep=1)
    before = fingerprint(state)
    buffer.extend(episode(numbers(1), 6, seed=8), torch.tensor([0]), exploratory=True)
    assert fingerprint(state) == before
    assert fingerprint(checkpoint.load(tmp_path)[1]) == before
    other = TaskBuffer(1)
    other.load_state_dict(checkpoint.load(tmp_path)[1])
    checkpoint.save(tmp_path, 2, other.state_dict(), keep=2)
    assert len(list((tmp_path / "segments").iterdir())) == 1  # the same file


@pytest.mark.parametrize("capacity", [1000, 26], ids=["room", "wrapped"])
def test_a_state_keeps_the_blocks_whose_rows_are_the_same(monkeypatch, capacity):
    monkeypatch.setattr("mbrl_lightning.data.buffer.BLOCK", 8)
    buffer, other = filled({1: 6, 2: 7, 3: 7}, capacity=capacity), TaskBuffer(1, capacity)
    first = buffer.state_dict()["segments"]
    assert [len(rows["task"]) for rows in first] == [8, 8, 4]
    buffer.extend(episode(numbers(3), 7, seed=9), torch.tensor([2]), exploratory=True)
    second = buffer.state_dict()["segments"]
    kept = [old is new for old, new in zip(first, second, strict=False)]
    assert kept == [capacity > 26, True, False]  # wrapped: the 27th row is in place of the first
    other.load_state_dict(buffer.state_dict())
    assert fingerprint(other.state_dict()) == fingerprint(buffer.state_dict())


def test_a_state_from_before_there_were_blocks_is_restored():
    buffer, other = filled({1: 6, 2: 7}, capacity=10), TaskBuffer(1, 10)
    state = buffer.state_dict()
    (rows,) = state.pop("segments")
    other.load_state_dict(state | {"data": dict(rows)})
    assert fingerprint(other.state_dict()) == fingerprint(buffer.state_dict())
    other.load_state_dict(TaskBuffer(1, 10).state_dict() | {"data": {}})


def test_an_empty_buffer_has_a_state_too():
    buffer = TaskBuffer(2)
    buffer.load_state_dict(TaskBuffer(2).state_dict())
    assert len(buffer) == buffer.num_steps == 0


def test_a_state_takes_the_place_of_what_was_held():
    buffer, other = filled({1: 6}), filled({3: 5, 4: 9})
    other.load_state_dict(buffer.state_dict())
    assert fingerprint(other.state_dict()) == fingerprint(buffer.state_dict())
    assert len(other) == len(buffer)


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4), count=st.integers(0, 8), tasks=st.integers(1, 6))
def test_any_sizes(lengths, count, tasks):
    buffer = filled({number + 1.0: steps for number, steps in enumerate(lengths)})
    drawn = buffer.draw_tasks(tasks, generator())
    context = buffer.draw_context(drawn, count, generator())
    assert context.shape == (tasks, min(count, min(lengths[task] for task in drawn.tolist())))
    assert (context["observation"][..., 1] == (drawn + 1.0).unsqueeze(1)).all()
    assert buffer.draw_targets(drawn, count, generator()).shape == (tasks, count)


# -- several tasks in one row, tasks that come back, and recent contexts (PEARL)


def test_equal_tasks_share_an_index_and_new_ones_are_registered():
    buffer = TaskBuffer(2)
    first = torch.tensor([[3.0, 0.0], [1.0, 5.0], [3.0, 0.0]], dtype=torch.float64)
    assert buffer.index_of(first).tolist() == [0, 1, 0]
    more = torch.tensor([[[0.0, 9.0], [1.0, 5.0]], [[0.0, 9.0], [-1.0, 2.0]]], dtype=torch.float64)
    assert buffer.index_of(more).tolist() == [[2, 1], [2, 3]]
    assert buffer.tasks.tolist() == [[3, 0], [1, 5], [0, 9], [-1, 2]]
    assert buffer.index_of(first.flip(0)).tolist() == [0, 1, 0]
    assert buffer.index_of(first[:0]).tolist() == []
    assert len(buffer.tasks) == 4


def test_a_row_may_change_its_task_on_the_way():
    buffer = TaskBuffer(1)
    data = episode(numbers(1, 2), 6)
    index = torch.tensor([[0, 0, 1, 1, 1, 0], [1, 1, 1, 2, 2, 2]])
    buffer.add_tasks(numbers(1, 2, 3))
    buffer.extend(data, index, exploratory=True)
    assert torch.equal(buffer.transitions()["task"], index.flatten())
    assert buffer.rows(exploratory=True)[1].tolist() == [3, 6, 3]
    stepwise = TaskBuffer(1)
    stepwise.add_tasks(numbers(1, 2, 3))
    stepwise.extend(data, index, exploratory=True, first_episode=0)
    assert torch.equal(stepwise.transitions()["task"], index.T.flatten())


@pytest.mark.parametrize("capacity", [1000, 40], ids=["room", "wrapped"])
def test_recent_rows_are_the_newest_exploratory_ones_of_their_task(capacity):
    """30 steps of one episode for each of two tasks, in turns, the last 10 by the policy: of steps 0-19 the newest are wanted."""
    buffer = TaskBuffer(1, capacity)
    data, index = episode(numbers(1, 2), 30, horizon=99), buffer.add_tasks(numbers(1, 2))
    for first in range(0, 30, 5):
        buffer.extend(data[:, first : first + 5], index, exploratory=first < 20)
    start = data["observation"][:, 0, 0]
    for seed in range(5):
        rows, there = buffer.recent_rows(torch.tensor([1, 0]), 4, 6, generator(seed))
        assert there.all()
        drawn = buffer.transitions()[rows]
        assert drawn["task"].tolist() == [[1] * 4, [0] * 4]
        steps = drawn["observation"][..., 0] - start[[1, 0]].unsqueeze(1)
        assert all(set(row) <= set(range(14, 20)) and len(set(row)) == 4 for row in steps.tolist())


def test_a_task_with_fewer_rows_leaves_the_rest_open():
    buffer = filled({1: 2, 2: 9}, policy_steps=5)
    buffer.add_tasks(numbers(3))
    rows, there = buffer.recent_rows(torch.tensor([0, 1, 2]), 4, 100, generator())
    assert there.sum(1).tolist() == [2, 4, 0]
    assert len(set(rows[0][there[0]].tolist())) == 2
    assert buffer.transitions()["exploratory"][rows[there]].all()
    rows, there = buffer.recent_rows(torch.tensor([1]), 4, 3, generator())  # fewer recent ones than asked for
    assert there.sum() == 3


@pytest.mark.parametrize("capacity", [1000, 30], ids=["room", "wrapped"])
def test_the_table_of_rows_is_that_of_all_rows_however_they_came(capacity):
    """Tasks that are new, that come back, or have no rows yet; asked for after each addition or two."""
    buffer = TaskBuffer(1, capacity)
    for turn in range(14):
        new = buffer.add_tasks(numbers(2.0 * turn, 2.0 * turn + 1))
        index = torch.stack([new[0], torch.tensor(turn // 2)])
        buffer.extend(episode(numbers(1, 2), 1 + turn % 4), index, exploratory=turn % 3 > 0)
        if turn % 5 == 4:
            continue
        other = TaskBuffer(1, capacity)
        other.load_state_dict(buffer.state_dict())
        for exploratory in (True, False):
            for one, two in zip(buffer.rows(exploratory), other.rows(exploratory), strict=True):
                assert torch.equal(one, two)
        starts = [each.start_states(20, generator(turn), 0.5) for each in (buffer, other)]
        assert torch.equal(*starts)


def test_rows_come_in_the_order_of_their_age():
    buffer = filled({1: 6, 2: 2, 3: 6}, capacity=10)  # wrapped: the newest lie before the oldest
    table, counts = buffer.rows(exploratory=False)
    ages = buffer.transitions()["age"][table[2, : counts[2]]]
    assert ages.tolist() == [0, 1, 2, 3, 4, 0]  # an episode of 5 steps and the first of the next
