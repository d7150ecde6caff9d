"""Measures of episodes in which the task switches: counted by hand on episodes made up for it."""

from __future__ import annotations

import pytest
import torch
from fakes import random_steps
from tensordict import TensorDict

from mbrl_lightning.config import compose
from mbrl_lightning.data.buffer import TaskBuffer
from mbrl_lightning.data.windows import Histories
from mbrl_lightning.envs import make_family
from mbrl_lightning.measuring.hidden_task import after_switches, rewards_by_task, since_switch
from mbrl_lightning.models.recurrent import HistoryDynamics, history_errors, reward_slope


def made_up(hidden: list[list[float]], reward: list[list[float]], valid: list[list[bool]] | None = None) -> TensorDict:
    rewards = torch.tensor(reward)
    kept = torch.ones_like(rewards).bool() if valid is None else torch.tensor(valid)
    tasks = torch.tensor(hidden, dtype=torch.float64).unsqueeze(-1)
    return TensorDict({"hidden": tasks, "valid": kept, "next": {"reward": rewards.unsqueeze(-1)}}, rewards.shape)


def test_steps_since_a_switch_are_counted_from_the_first_step_of_the_new_task():
    hidden = torch.tensor([[1.0, 1, -1, -1, -1, 1], [1, 1, 1, 1, 1, 1]]).unsqueeze(-1)
    assert since_switch(hidden).tolist() == [[-1, -1, 0, 1, 2, 0], [-1] * 6]


def test_rewards_are_grouped_by_task_and_by_time():
    tasks, rewards = [[1, 1, -1, -1]], [[10.0, 20.0, 1.0, 3.0]]
    told = {"before_switch": 15.0, "since_0_10": 2.0, "direction=-1": 2.0, "direction=1": 15.0}
    assert rewards_by_task(made_up(tasks, rewards), "direction") == {f"reward/{k}": v for k, v in told.items()}
    ended = made_up(tasks, rewards, [[True, False, True, False]])  # steps after the end of an episode do not count
    assert rewards_by_task(ended, "direction")["reward/before_switch"] == 10.0
    continuous = rewards_by_task(made_up([[float(i) for i in range(6)]], [[1.0] * 6]), "mass")
    assert not [name for name in continuous if "mass" in name], "listed value by value"


def test_rewards_after_every_switch_end_at_the_next_one_and_at_the_end():
    episodes = made_up(
        [[1, -1, -1, 1, 1], [2, 2, 3, 3, 4]],
        [[9.0, 1.0, 2.0, 3.0, 4.0], [9.0, 9.0, 5.0, 9.0, 9.0]],
        [[True] * 5, [True, True, True, False, False]],  # the second episode ends before its second switch
    )
    rewards, tasks = after_switches(episodes, 3)
    nan = torch.nan
    expected = torch.tensor([[1.0, 2.0, nan], [3.0, 4.0, nan], [5.0, nan, nan]])
    torch.testing.assert_close(rewards, expected, equal_nan=True)
    assert tasks.tolist() == [[-1], [1], [3]]
    assert after_switches(episodes, 1)[0].flatten().tolist() == [1.0, 3.0, 5.0]
    none = after_switches(made_up([[1, 1, 1]], [[1.0, 2.0, 3.0]]), 4)
    assert [part.shape for part in none] == [(0, 4), (0, 1)]


@pytest.fixture
def point():
    family = make_family("point_switch", horizon=60, switch_every_steps=15)
    cfg = compose({"conf": "point_switch", "algorithm": "m3po", "dynamics": {"hidden": 8, "layers": 1, "members": 2}})
    torch.manual_seed(0)
    dynamics = HistoryDynamics(family.spec, cfg.dynamics, cfg.history)
    generator = torch.Generator().manual_seed(0)
    data = random_steps(family, family.test, 60, generator, training=False)
    real = TaskBuffer(1)
    real.extend(data, real.add_tasks(family.test), exploratory=False)
    dynamics.see(real, 0.1, fit=True)
    return dynamics, data


def told_by_the_history(dynamics: HistoryDynamics):
    """The true reward, of a model that reads the direction off the last pair's reward and speed."""

    def predictions(observation, action, inputs):
        observation, action = observation.squeeze(1), action.squeeze(1)
        pair, norm = inputs["pairs"][:, -1], dynamics.inputs
        outcome = pair[:, -1:] / norm.outcome_norm.inverse_std + norm.outcome_norm.loc
        effort = 0.1 * pair[:, 2:4].square().sum(-1)
        direction = ((outcome[:, 0] + effort) * observation[:, 0]).sign()
        velocity = observation[:, :2] + 0.5 * (action - 0.5 * observation[:, :2])
        reward = direction * velocity[:, 0] - 0.1 * action.square().sum(-1)
        return torch.cat([velocity, reward.unsqueeze(-1)], -1).unsqueeze(1).expand(2, -1, -1, -1)

    return predictions


def test_a_model_that_reads_its_history_has_a_slope_and_errs_with_anothers(point, monkeypatch):
    dynamics, data = point
    blind = history_errors(dynamics, data, 4, torch.Generator().manual_seed(0))
    assert abs(blind["slope"]) < 0.3
    monkeypatch.setattr(dynamics, "predictions", told_by_the_history(dynamics))
    seeing = history_errors(dynamics, data, 4, torch.Generator().manual_seed(0))
    assert seeing["slope"] > 0.8  # a switch cannot be foreseen, and the first step has no history
    assert seeing["nmse"] < 0.15
    assert seeing["wrong_nmse"] > 0.3
    assert seeing["reward_nmse"] > seeing["nmse"]  # all else is exact


def test_persistence_has_no_slope(point, monkeypatch):
    """What fools an error and not a slope: the reward that was there before."""
    dynamics, data = point
    real = TaskBuffer(1)
    real.extend(data, torch.zeros(len(data), dtype=torch.long), exploratory=False)
    seen = Histories(real, dynamics.inputs, 4)
    batch = seen.before(torch.arange(len(seen))).set("action", seen.action)
    monkeypatch.setattr(dynamics, "predictions", lambda observation, *_: observation.expand(2, -1, -1, -1) + 0.0)
    hidden = data["hidden"][..., 0].flatten()
    assert not torch.nan_to_num(reward_slope(dynamics, batch, hidden)).any()


def test_the_likelihood_is_in_nats_of_the_standardised_targets(point):
    """A head that says mean 0, deviation 1 of everything: a standard normal's density of what happened."""
    dynamics, data = point
    said = torch.zeros(2, 600, dynamics.spec.target_dim), torch.zeros(2, 600, dynamics.spec.target_dim)
    dynamics.forward = lambda inputs, action: tuple(part[:, : len(action)] for part in said)
    errors = history_errors(dynamics, data[:10], 4, torch.Generator().manual_seed(0))
    flat = data[:10].flatten()
    target = dynamics.targets(flat["observation"], flat["next", "observation"])
    density = torch.distributions.Normal(0.0, 1.0).log_prob(target).sum(-1)
    assert errors["nll"] == pytest.approx(-float(density.mean()), rel=1e-4)
