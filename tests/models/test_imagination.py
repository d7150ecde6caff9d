"""Imagined streams over models whose every prediction is known."""

from __future__ import annotations

import pytest
import torch
from fakes import plain_spec
from tensordict import TensorDict

from mbrl_lightning.errors import DivergedError
from mbrl_lightning.models.imagination import ImaginedStreams, mean_return, require_imaginable


class Adder:
    """next observation = observation + first action; remembers what it was called with."""

    def __init__(self, **fields):
        self.spec = plain_spec(observation=2, action=1, **fields)
        self.calls = []

    def imagine(self, observation, action, belief, noise, members, disturbance):
        self.calls.append({"noise": noise, "members": members, "disturbance": disturbance, "action": action})
        return observation + action


def nothing(tasks: int) -> TensorDict:
    return TensorDict({"latent": torch.zeros(tasks, 0)}, batch_size=[tasks])


def constant(value: float):
    return lambda observation: {"action": torch.full((*observation.shape[:-1], 1), value)}


def streams(model: Adder, start: torch.Tensor, horizon: int, **options) -> ImaginedStreams:
    return ImaginedStreams(model, nothing(len(start)), start, horizon, **options)


def test_transitions_chain_and_rewards_see_the_clipped_action():
    model = Adder()
    data = streams(model, torch.zeros(2, 3, 2), 10).rollout(constant(5.0), 4)
    assert data.shape == (2, 3, 4)
    assert data["observation"][0, 0, :, 0].tolist() == [0, 1, 2, 3]  # clipped to 1 for the model
    assert torch.equal(data["next", "observation"][..., :-1, :], data["observation"][..., 1:, :])
    assert (data["next", "reward"] == 1).all()  # and for the reward
    assert (data["action"] == 5).all()  # but stored as the policy gave it
    assert not data["next", "done"].any()


def test_discrete_actions_are_not_clipped():
    model = Adder(discrete=True)
    streams(model, torch.zeros(1, 1, 2), 10).rollout(constant(5.0), 1)
    assert model.calls[0]["action"].item() == 5


def sevens(count: int) -> torch.Tensor:
    return torch.full((count, 2), 7.0)


def test_truncated_at_the_horizon_then_anew_from_a_start():
    data = streams(Adder(), torch.full((1, 2, 2), 7.0), 3, restart=sevens).rollout(constant(1.0), 7)
    following = data["next"]
    assert following["truncated"][0, 0, :, 0].tolist() == [False, False, True, False, False, True, False]
    assert not following["terminated"].any()
    assert data["age"][0, 0].tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert data["observation"][0, 0, :, 0].tolist() == [7, 8, 9, 7, 8, 9, 7]
    assert following["observation"][0, 0, :, 0].tolist() == [8, 9, 10, 8, 9, 10, 8]  # before the new start


def test_streams_run_on_from_one_rollout_to_the_next():
    both = streams(Adder(), torch.zeros(1, 2, 2), 4, restart=sevens)
    first, second = both.rollout(constant(1.0), 3), both.rollout(constant(1.0), 3)
    assert second["observation"][0, 0, 0, 0] == first["next", "observation"][0, 0, -1, 0] == 3
    assert second["next", "truncated"][0, 0, :, 0].tolist() == [True, False, False]
    assert second["age"][0, 0].tolist() == [3, 0, 1]


@pytest.mark.parametrize("field", ["termination", "training_termination"])
def test_termination_and_falls_are_terminal_and_not_truncations(field):
    model = Adder(**{field: lambda following: (following[..., 0] >= 2) & (following[..., 0] < 5)})
    start = torch.tensor([[[0.0, 0.0], [1.0, 0.0]]])
    following = streams(model, start, 2, restart=sevens).rollout(constant(1.0), 3)["next"]
    assert following["terminated"][0, :, :, 0].tolist() == [[False, True, False], [True, False, False]]
    assert following["truncated"][0, :, :, 0].tolist() == [[False, False, False], [False, False, True]]
    assert torch.equal(following["done"], following["terminated"] | following["truncated"])


def test_a_stream_of_one_episode_earns_nothing_after_its_end():
    """A body that ends after 3 of 30 steps earns .1 a step and 3 in all, and its gradient is that of the 3 steps."""
    model = Adder(termination=lambda following: following[..., 0] > 2.5, horizon=30, reward=lambda o, a, n: a[..., 0])
    force = torch.tensor(1.0, requires_grad=True)
    one = streams(model, torch.zeros(1, 2, 2), 31)
    data = one.rollout(lambda o: {"action": force.expand(*o.shape[:-1], 1)}, 30)
    assert data["valid"].sum(-1).tolist() == [[3, 3]]
    assert data["next", "done"].sum().item() == 2
    assert data["next", "reward"].sum(2).tolist() == [[[3.0], [3.0]]]
    data["next", "reward"].sum().backward()
    assert force.grad.item() == 6
    assert mean_return(data, model.spec).item() == pytest.approx(0.1)
    assert one.rollout(constant(1.0), 2)["next", "reward"].sum() == 0  # nor in a later rollout


def test_starts_are_drawn_once_a_rollout_and_given_to_ended_streams_in_turn():
    asked = []

    def restart(count: int) -> torch.Tensor:
        asked.append(count)
        return 100.0 + torch.arange(count, dtype=torch.float32).unsqueeze(1).expand(-1, 2)

    model = Adder(termination=lambda following: (following[..., 0] >= 2) & (following[..., 0] < 50))
    start = torch.tensor([[[0.0, 0.0], [1.0, 0.0]], [[-9.0, 0.0], [1.0, 0.0]]])
    data = streams(model, start, 100, restart=restart).rollout(constant(1.0), 3)
    assert asked == [4]
    assert data["observation"][:, 1, 1, 0].tolist() == [100, 101]
    assert data["observation"][0, 0, 2, 0] == 102
    assert data["observation"][1, 0, :, 0].tolist() == [-9, -8, -7]  # the others run on


def test_code_noise_and_members_stay_with_their_stream():
    model, noise = Adder(), torch.randn(1, 4, 3)
    streams(model, torch.zeros(1, 4, 2), 2, code_noise=noise, members=slice(1, 3)).rollout(constant(1.0), 5)
    assert all(call["noise"] is noise and call["members"] == slice(1, 3) for call in model.calls)


def test_noise_is_drawn_anew_each_step_from_the_given_generator():
    def disturbances(noise: float, seed: int) -> list[torch.Tensor | None]:
        model, generator = Adder(), torch.Generator().manual_seed(seed)
        streams(model, torch.zeros(2, 3, 2), 9, noise=noise, generator=generator).rollout(constant(0.0), 2)
        return [call["disturbance"] for call in model.calls]

    assert disturbances(0.0, 0) == [None, None]
    first = disturbances(0.5, 1)
    assert first[0].shape == (2, 3, 2)
    assert not torch.equal(first[0], first[1])
    assert all(torch.equal(a, b) for a, b in zip(first, disturbances(0.5, 1), strict=True))
    torch.testing.assert_close(disturbances(1.0, 1)[0], 2 * first[0])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_state_that_is_not_finite_earns_what_no_step_is_taken_on(bad):
    start = torch.zeros(1, 2, 2)
    start[0, 1] = bad
    reward = streams(Adder(), start, 5).rollout(constant(1.0), 2)["next", "reward"]
    assert reward[0, 0].isfinite().all()
    assert reward[0, 1].isnan().all()
    with pytest.raises(DivergedError, match="imagined state"):
        require_imaginable(reward)


@pytest.mark.parametrize(
    ("rewards", "ends", "expected"),
    [
        ([1.0, 1.0, 1.0, 1.0], [False, True, False, True], 2.0),  # two episodes of 2 steps
        ([1.0, 2.0], [False, False], 300.0),  # without any end it is scaled to the horizon
    ],
)
def test_mean_return_counts_episodes_by_their_ends_or_by_the_horizon(rewards, ends, expected):
    reward, done = torch.tensor(rewards).view(1, 1, -1, 1), torch.tensor(ends).view(1, 1, -1, 1)
    rollout = TensorDict({"next": {"reward": reward, "done": done}}, batch_size=[1, 1, len(rewards)])
    assert float(mean_return(rollout, plain_spec(horizon=200, unit="episode"))) == pytest.approx(expected)
    assert float(mean_return(rollout, plain_spec(horizon=200, unit="step"))) == pytest.approx(expected / 200)
