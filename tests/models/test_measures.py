"""Measures on models, episodes and latents whose answers are known."""

from __future__ import annotations

import pytest
import torch
from fakes import plain_spec
from tensordict import TensorDict

from mbrl_lightning.models.measures import (
    first_valid,
    linear_probe,
    multi_step_error,
    one_step_error,
    share_of_variance,
    until_fall,
)


class Model:
    """A model that predicts `rule(observation, action)`."""

    def __init__(self, rule, spec=None):
        self.spec, self.rule = spec or plain_spec(observation=2, action=1), rule

    def predict(self, observation, action, belief, noise=None):
        return self.rule(observation, action)


def truth(observation: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
    return 0.9 * observation + action * torch.tensor([1.0, 3.0])


def still(observation: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
    return observation


def episodes(tasks: int = 3, steps: int = 200, ends: dict[int, int] | None = None) -> TensorDict:
    """Episodes of `truth` under random actions; task `t` ends after `ends[t]` steps and stands still from there."""
    generator = torch.Generator().manual_seed(0)
    observation, rows = torch.randn(tasks, 2, generator=generator), []
    alive = torch.ones(tasks, dtype=torch.bool)
    for t in range(steps):
        action = 2 * torch.rand(tasks, 1, generator=generator) - 1
        for task, end in (ends or {}).items():
            alive = alive & ~((torch.arange(tasks) == task) & (t >= end))
        following = torch.where(alive.unsqueeze(1), truth(observation, action), observation)
        rows.append((observation, action, following, alive.clone()))
        observation = following
    columns = [torch.stack(column, 1) for column in zip(*rows, strict=True)]
    return TensorDict(
        {"observation": columns[0], "action": columns[1], "next": {"observation": columns[2]}, "valid": columns[3]},
        batch_size=[tasks, steps],
    )


NOTHING = TensorDict({"latent": torch.zeros(3, 0)}, batch_size=[3])


# -- one-step error


def test_an_output_that_never_changes_is_in_no_mean():
    """A planar body's centre of mass never leaves its plane: a millimetre of error there is infinitely many variances."""
    change = torch.cat([torch.randn(500, 2), torch.zeros(500, 1)], 1)
    squared = torch.tensor([[0.5, 0.1, 1e-6]]).expand(500, 3)
    variance = change.var(0, correction=0)
    expected = (squared[:, :2] / variance[:2]).mean(1)
    for units in (torch.tensor([1.0, 1.0, 1.0]), torch.tensor([1.0, 1e-9, 1.0]), torch.full((3,), 1e-6)):
        shares = share_of_variance(squared * units.square(), variance * units.square())
        torch.testing.assert_close(shares, expected)


def test_what_is_not_finite_is_not_left_out():
    assert share_of_variance(torch.tensor([[torch.nan, 0.1]]), torch.ones(2)).isnan().all()


def test_a_perfect_model_has_no_error_and_the_null_model_that_of_no_change():
    data = episodes()
    perfect, null = one_step_error(Model(truth), data, NOTHING), one_step_error(Model(still), data, NOTHING)
    for name in ("mse", "nmse"):
        assert perfect[name].shape == (3,)
        assert perfect[name].max() < 1e-10
        torch.testing.assert_close(null[name], null[f"null_{name}"])
        torch.testing.assert_close(null[f"null_{name}"], perfect[f"null_{name}"])
        assert (null[name] > 0.1).all()


def test_raw_and_normalised_error_by_hand():
    data = episodes(tasks=3, steps=50)
    error = one_step_error(Model(lambda o, a: truth(o, a) + torch.tensor([0.5, 2.0])), data, NOTHING)
    torch.testing.assert_close(error["mse"], torch.full((3,), (0.25 + 4.0) / 2))
    change = (data["next", "observation"] - data["observation"]).reshape(-1, 2)
    expected = torch.tensor([0.25, 4.0]) / change.var(0, correction=0)
    torch.testing.assert_close(error["nmse"], expected.mean().expand(3))
    torch.testing.assert_close(error["outputs"], expected)


def test_errors_of_angles_are_taken_the_short_way_round():
    def wrap(o, n):
        return torch.remainder(n - o + torch.pi, 2 * torch.pi) - torch.pi

    seen, after = torch.full((1, 4, 1), 3.1), {"observation": torch.full((1, 4, 1), 3.2 - 2 * torch.pi)}
    data = TensorDict({"observation": seen, "action": torch.zeros(1, 4, 1), "next": after}, batch_size=[1, 4])
    model = Model(lambda o, a: o + 0.1, plain_spec(observation=1, action=1, change=wrap))
    assert one_step_error(model, data, NOTHING[:1])["mse"].max() < 1e-9


# -- several steps


def test_several_steps_are_open_loop_along_the_real_actions():
    """A constant error of one step adds up over ten: 1 + .9 + ... + .9^9."""
    data = episodes(tasks=1, steps=400)
    off = multi_step_error(Model(lambda o, a: truth(o, a) + 0.1), data, NOTHING[:1])
    first = torch.arange(39) * 10
    change = data["next", "observation"][0, first + 9] - data["observation"][0, first]
    size = 0.1 * sum(0.9**t for t in range(10))
    torch.testing.assert_close(off, (size**2 / change.var(0, correction=0)).mean().unsqueeze(0), rtol=1e-3, atol=0)


def test_steps_after_the_end_of_an_episode_do_not_count():
    whole = multi_step_error(Model(still), episodes(tasks=1, steps=100), NOTHING[:1])
    ended = episodes(tasks=1, steps=400, ends={0: 100})
    shortened_error = multi_step_error(Model(still), ended, NOTHING[:1])
    assert float(shortened_error) == pytest.approx(float(whole), rel=0.15)  # not a quarter of it


@pytest.mark.parametrize("steps", [1, 2, 9, 10, 11])
def test_short_episodes(steps):
    assert multi_step_error(Model(truth), episodes(tasks=3, steps=steps), NOTHING).max() < 1e-6


def test_valid_transitions_are_picked_evenly_and_only_they():
    data = episodes(tasks=3, steps=60, ends={0: 20, 2: 45})
    data["time"] = torch.arange(60).expand(3, 60)
    picked = first_valid(data, 1000)
    assert picked.shape == (3, 20)
    assert picked["valid"].all()
    assert picked["time"][0].tolist() == list(range(20))
    assert picked["time"][1].tolist() == list(range(0, 60, 3))
    assert first_valid(data, 7).shape == (3, 7)


# -- linear probe


def latents(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 5, generator=generator), torch.randn(5, 2, generator=torch.Generator().manual_seed(99))


@pytest.mark.parametrize("factor", [1e-4, 1.0, 1e4])
def test_probe_finds_a_linear_map_whatever_the_scale_of_the_latent(factor):
    (train, weights), (test, _) = latents(64, 1), latents(50, 2)
    scores = linear_probe(factor * train, train @ weights + 3.0, factor * test, test @ weights + 3.0)
    assert scores.shape == (2,)
    assert (scores > 0.99).all()


def test_probe_finds_nothing_in_noise_and_nothing_in_a_collapsed_latent():
    (train, _), (test, _) = latents(64, 1), latents(50, 2)
    generator = torch.Generator().manual_seed(3)
    parameters, test_parameters = torch.randn(64, 2, generator=generator), torch.randn(50, 2, generator=generator)
    assert (linear_probe(train, parameters, test, test_parameters) < 0.1).all()
    flat = linear_probe(torch.ones(64, 5), parameters, torch.ones(50, 5), test_parameters)
    assert (flat < 0.1).all()
    assert torch.isfinite(flat).all()


def test_probe_of_an_empty_latent_is_zero():
    assert linear_probe(torch.zeros(9, 0), torch.randn(9, 2), torch.zeros(4, 0), torch.randn(4, 2)).tolist() == [0, 0]


# -- falls


def test_errors_are_measured_up_to_the_first_fall():
    spec = plain_spec(training_termination=lambda following: following[..., 0] > 2)
    heights = torch.tensor([[0.0, 1.0, 3.0, 0.0, 3.0]]).unsqueeze(-1)
    episodes = TensorDict({"valid": torch.ones(1, 5, dtype=torch.bool), "next": {"observation": heights}}, [1, 5])
    assert until_fall(episodes, spec)["valid"].tolist() == [[True, True, True, False, False]]
    assert until_fall(episodes, plain_spec())["valid"].all()
