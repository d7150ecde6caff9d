"""Real interaction with an environment that counts: what is stored must be what happened."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fakes import CounterSimulator, Says, counter_spec
from tensordict import TensorDict

from mbrl_lightning.data.collect import Uniform, collect, consecutive, episode_returns
from mbrl_lightning.data.control import Control

TASKS = torch.tensor([[3.0], [4.0], [50.0]], dtype=torch.float64)


def still(observation: torch.Tensor) -> torch.Tensor:
    return torch.zeros(len(observation), 1)


def run(spec, steps: int, training: bool = True, tasks: torch.Tensor = TASKS, act=still, seed: int = 0):
    simulator = CounterSimulator(tasks)
    agent = Says(act)
    start, generator = agent.begin(len(tasks)), torch.Generator().manual_seed(seed)
    return collect(simulator, spec, agent, start, steps, generator, training=training), simulator


def past_task(following: torch.Tensor) -> torch.Tensor:
    """Ends after as many steps as the task says (an episode starts at a multiple of 100)."""
    return following[..., 0] % 100 >= following[..., 1]


class Remembers(Says):
    """Carries the numbers of the steps that it was told of, and how often it was asked."""

    def begin(self, tasks: int) -> TensorDict:
        return TensorDict({"seen": torch.zeros(tasks), "asked": torch.zeros(tasks)}, batch_size=[tasks])

    def act(self, belief: TensorDict, observation: torch.Tensor, noise=None) -> tuple[torch.Tensor, TensorDict]:
        action, belief = super().act(belief, observation)
        return action, belief.clone(False).update({"asked": belief["asked"] + 1, "taken": belief["seen"]})

    def adapt(self, belief: TensorDict, transitions: TensorDict) -> TensorDict:
        assert transitions.batch_size == belief.batch_size
        return belief.clone(False).set("seen", belief["seen"] + transitions["next", "observation"][:, 0] % 100)


def test_a_belief_is_carried_and_every_episode_begins_with_the_first_one():
    """An episode counts 1, 2, ...: before step t the agent has been told of 0 + 1 + ... + t - 1."""
    agent = Remembers(still)
    start = agent.begin(3)
    data = collect(CounterSimulator(TASKS), counter_spec(5, termination=past_task), agent, start, 12, torch.Generator())
    assert data["taken"].tolist() == (data["age"] * (data["age"] + 1) / 2).tolist()
    assert data["initial"].sum() > 3
    assert not start["seen"].any()


def test_next_observation_is_that_before_the_reset():
    data, _ = run(counter_spec(5, termination=past_task), 40)
    assert torch.equal(data["next", "observation"][..., 0], data["observation"][..., 0] + 1)  # without exception
    assert data["next", "done"].sum() > 10


def test_training_goes_on_after_an_end_and_every_row_is_real():
    data, simulator = run(counter_spec(5, termination=past_task), 40)
    assert data.shape == (3, 40)
    assert data["valid"].all()
    assert (simulator.stepped == 40).all()
    done, initial = data["next", "done"][..., 0], data["initial"]
    assert initial[:, 0].all()
    assert torch.equal(initial[:, 1:], done[:, :-1])
    running = ~done[:, :-1]
    assert torch.equal(data["observation"][:, 1:][running], data["next", "observation"][:, :-1][running])
    assert (data["observation"][..., 0][initial] % 100 == 0).all()


def test_end_by_termination_or_by_the_horizon_never_both():
    data, _ = run(counter_spec(4, termination=past_task), 40)  # task 4 terminates just at the horizon
    terminated, truncated = data["next", "terminated"][..., 0], data["next", "truncated"][..., 0]
    assert terminated[0].nonzero().squeeze(1).tolist() == list(range(2, 40, 3))
    assert terminated[1].nonzero().squeeze(1).tolist() == list(range(3, 40, 4))
    assert not truncated[:2].any()
    assert truncated[2].nonzero().squeeze(1).tolist() == list(range(3, 40, 4))
    assert not (terminated & truncated).any()
    assert torch.equal(data["next", "done"][..., 0], terminated | truncated)


def test_falls_cut_training_and_leave_evaluation_alone():
    spec = counter_spec(8, training_termination=past_task)
    training, _ = run(spec, 16)
    assert training["next", "terminated"][0, :, 0].nonzero().squeeze(1).tolist() == [2, 5, 8, 11, 14]
    evaluation, _ = run(spec, 8, training=False)
    assert not evaluation["next", "terminated"].any()
    assert evaluation["valid"].all()


def test_evaluation_stands_still_after_termination():
    spec = counter_spec(8, termination=past_task)
    data, simulator = run(spec, 8, training=False)
    assert simulator.stepped.tolist() == [3, 4, 8]  # ended rows are not even stepped
    assert data["valid"].sum(1).tolist() == [3, 4, 8]
    assert data["next", "reward"][..., 0].sum(1).tolist() == [3.0, 4.0, 8.0]
    over = ~data["valid"]
    assert (data["next", "reward"][over] == 0).all()
    assert torch.equal(data["observation"][over], data["next", "observation"][over])
    assert (data["initial"].sum(1) == 1).all()  # one episode a row


def test_evaluation_ends_when_all_rows_have():
    data, _ = run(counter_spec(8, termination=past_task), 8, training=False, tasks=TASKS[:2])
    assert data.shape == (2, 4)


def test_reward_sees_the_clipped_action_and_that_is_what_is_stored():
    spec = counter_spec(8, reward=lambda o, a, n: a[..., 0])
    data, _ = run(spec, 2, act=lambda o: torch.full((len(o), 1), -7.0))
    assert (data["action"] == -1).all()
    assert (data["next", "reward"] == -1).all()


def test_reward_is_of_the_transition_and_not_of_the_reset_state():
    data, _ = run(counter_spec(3, reward=lambda o, a, n: n[..., 0] - o[..., 0]), 9)
    assert (data["next", "reward"] == 1).all()


@pytest.mark.parametrize(("unit", "expected"), [("episode", [3.0, 8.0]), ("step", [3 / 8, 1.0])])
def test_episode_returns_are_over_the_whole_horizon(unit, expected):
    spec = counter_spec(8, unit=unit, termination=past_task)
    data, _ = run(spec, 8, training=False, tasks=TASKS[[0, 2]])
    assert episode_returns(data, spec).tolist() == pytest.approx(expected)


def drawn(spec, observation: torch.Tensor) -> torch.Tensor:
    uniform = Uniform(Control(spec))
    return uniform.act(uniform.begin(len(observation)), observation, torch.Generator().manual_seed(0))[0]


def test_random_actions_span_the_space_whatever_the_observation():
    continuous = counter_spec()
    actions = drawn(continuous, torch.zeros(5000, 2))
    assert actions.shape == (5000, 1)
    assert actions.min() < -0.99
    assert actions.max() > 0.99
    assert actions.abs().max() <= 1
    one_hot = drawn(counter_spec(discrete=True), torch.zeros(10, 2))
    assert (one_hot.sum(1) == 1).all()
    again = drawn(continuous, torch.full((5000, 2), 9.0))
    assert torch.equal(actions, again)


def test_same_seed_same_data():
    spec = counter_spec(5)
    assert torch.equal(run(spec, 20, seed=1)[0]["observation"], run(spec, 20, seed=1)[0]["observation"])
    assert not torch.equal(run(spec, 20, seed=1)[0]["observation"], run(spec, 20, seed=2)[0]["observation"])


def test_shapes_and_kinds_of_all_columns():
    data, _ = run(counter_spec(5), 7)
    assert isinstance(data, TensorDict)
    assert data["next", "reward"].shape == data["next", "done"].shape == (3, 7, 1)
    assert data["next", "terminated"].dtype == data["next", "truncated"].dtype == torch.bool
    assert data["initial"].shape == data["valid"].shape == (3, 7)


def test_of_consecutive_transitions_all_is_known_that_collecting_tells():
    """Rows of training, with an end by termination, one by the horizon, and one in mid-episode."""
    spec = counter_spec(6, termination=lambda o: o[..., 0] % 100 == 4, reward=lambda o, a, n: n[..., 0] + a[..., 0])
    draws = torch.Generator().manual_seed(1)
    tasks = torch.arange(1.0, 4.0).unsqueeze(1)
    uniform = Uniform(Control(spec))
    for rule in (spec.termination, lambda o: torch.zeros_like(o[..., 0], dtype=torch.bool)):
        own = replace(spec, termination=rule)
        data = collect(CounterSimulator(tasks), own, uniform, uniform.begin(3), 17, draws, draws)
        told = consecutive(own, data["observation"], data["action"], data["next", "observation"])
        for key in ("initial", "age", "valid", ("next", "reward"), ("next", "terminated"), ("next", "done")):
            assert torch.equal(told[key][:, :-1], data[key][:, :-1]), key
            assert told[key].dtype == data[key].dtype
