"""Models that adapt to the last transitions: what adapting gains where it can, and that it gains nothing where it cannot."""

import pytest
import torch
from fakes import generator, plain_spec
from tensordict import TensorDict

from mbrl_lightning.config.methods import L2AConfig
from mbrl_lightning.config.schema import DynamicsConfig
from mbrl_lightning.data.windows import Segments
from mbrl_lightning.models.adaptive import adaptation_errors, make_adaptive

PAST, FUTURE = 6, 6


def walked(count: int, actions: int, draws: torch.Generator, follow, steps: int = 30) -> TensorDict:
    """Episodes `[count, steps]` of random actions, from zero; `follow` maps state, action and age to the next state."""
    state, rows = torch.zeros(count, 2), []
    for age in range(steps):
        action = torch.rand(count, actions, generator=draws) * 2 - 1
        following = follow(state, action, age)
        row = {"observation": state, "action": action, "valid": torch.ones(count, dtype=torch.bool)}
        row |= {"age": torch.full((count,), age), "episode": torch.arange(count), "stride": torch.ones(count).long()}
        rows.append(TensorDict(row | {"next": {"observation": following}}, batch_size=[count]))
        state = following
    return torch.stack(rows, 1)


def episodes(count: int, seed: int, lasting: bool = True) -> TensorDict:
    """s' = 0.9 s + 0.3 (+-a): the sign is the episode's, or (not `lasting`) each step's own, which nothing foretells."""
    signs = torch.randint(2, (30, count, 1), generator=generator(100 + seed)) * 2.0 - 1
    return walked(count, 2, generator(seed), lambda s, a, age: 0.9 * s + 0.3 * signs[0 if lasting else age] * a)


def dead_inputs(dead: list[int], seed: int, count: int = 40) -> TensorDict:
    """s' = 0.5 s + A a with one of four actions without effect for the whole episode."""
    mix, off = torch.randn(4, 2, generator=generator(9)), torch.randint(len(dead), (count,), generator=generator(seed))
    works = 1.0 - torch.nn.functional.one_hot(torch.tensor(dead)[off], 4)
    return walked(count, 4, generator(100 + seed), lambda s, a, _: 0.5 * s + torch.tanh((works * a) @ mix))


def model(members: int = 1, **changes):
    torch.manual_seed(0)
    settings = {"past": PAST, "future": FUTURE, "hidden": 8} | changes
    cfg = DynamicsConfig(hidden=16, layers=1, members=members, lr=5e-3)
    dynamics = make_adaptive(plain_spec(2, 2), cfg, L2AConfig(**settings))
    dynamics.observe(episodes(10, 0).reshape(-1))
    return dynamics


def fit(dynamics, data: TensorDict, past: int, future: int, steps: int):
    draws, optimizer = generator(), dynamics.configure_optimizers()
    segments = Segments(data, dynamics.columns, past, future)
    for _ in range(steps):
        optimizer.zero_grad()
        dynamics.training_step(next(segments.batches(1, 32, draws)))["loss"].backward()
        optimizer.step()
    return dynamics


def trained(dynamics, lasting: bool = True, steps: int = 200):
    return fit(dynamics, episodes(40, 1, lasting).reshape(-1), PAST, FUTURE, steps)


def gain(dynamics, lasting: bool = True) -> float:
    """Error after adapting over the error before."""
    found = adaptation_errors(dynamics, episodes(8, 2, lasting).unsqueeze(1), PAST, FUTURE)
    assert found["nmse_before"].shape == (8,)
    return float(found["nmse_after"].mean() / found["nmse_before"].mean())


@pytest.mark.parametrize("kind", ["gradient", "recurrent"])
def test_adapting_helps_where_the_past_tells_the_task(kind):
    dynamics = model(adaptation=kind)
    untrained = gain(dynamics)
    assert gain(trained(dynamics)) < 0.5 < untrained


@pytest.mark.parametrize("kind", ["gradient", "recurrent"])
def test_and_gains_nothing_where_it_does_not(kind):
    assert gain(trained(model(adaptation=kind), lasting=False), lasting=False) > 0.93


def test_without_adaptation_before_is_after():
    for dynamics in (model(adaptation="none"), model(inner_steps=0), model(inner_lr=0.0, learned=False)):
        assert dynamics.idle
        assert gain(trained(dynamics, steps=3)) == 1.0


def test_a_learned_size_of_zero_is_no_adaptation_yet():
    dynamics = model(inner_lr=0.0, learned=True)
    assert gain(dynamics) == pytest.approx(1.0, abs=1e-6)
    trained(dynamics, steps=3)
    assert dynamics.inner.sizes.abs().max() > 0  # but it can become one


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("kind", ["gradient", "recurrent"])
def test_what_is_masked_may_be_anything_and_a_past_that_is_masked_leaves_the_prior(kind, members):
    dynamics, seen = model(members, adaptation=kind), episodes(3, 5)[:, :PAST].clone()
    asked = torch.randn(3, 6, 2), torch.rand(3, 6, 2)
    mask = torch.arange(PAST) >= torch.tensor([[0], [PAST], [4]])
    told = []
    for rubbish in (0.0, 7.0):
        for name in ("observation", "action"):
            seen[name][~mask] = rubbish
        told.append(dynamics.predict(*asked, dynamics.infer(seen.clone().set("mask", mask))))
    torch.testing.assert_close(told[0], told[1])
    prior = dynamics.predict(*asked, TensorDict({}, batch_size=[3]))
    assert [torch.allclose(*rows) for rows in zip(told[0], prior, strict=True)] == [False, True, False]


@pytest.mark.parametrize("kind", ["gradient", "recurrent"])
def test_rows_are_shared_out_among_adapted_members_as_among_plain_ones(kind):
    dynamics = model(3, adaptation=kind)
    belief = dynamics.infer(episodes(2, 5)[:, :PAST])
    observation = 0.1 * torch.randn(2, 1, 2).expand(-1, 3, -1)  # well inside what was seen: nothing is clamped
    action = torch.rand(2, 1, 2).expand(-1, 3, -1)
    apart = dynamics.imagine(observation, action, belief)  # one row a member
    alone = [dynamics.imagine(observation[:, :1], action[:, :1], belief, members=slice(e, e + 1)) for e in range(3)]
    torch.testing.assert_close(apart, torch.cat(alone, 1))
    torch.testing.assert_close(dynamics.predict(observation[:, :1], action[:, :1], belief)[:, 0], apart.mean(1))
    assert not torch.allclose(apart[:, 0], apart[:, 1])


def test_errors_are_measured_on_whole_segments_alone():
    dynamics, short = model(), episodes(4, 2).unsqueeze(1)
    reference = adaptation_errors(dynamics, short, PAST, FUTURE)
    short["valid"][0, :, PAST + FUTURE - 1 :] = False  # one step short of a segment
    short["next", "observation"][0, :, PAST + FUTURE - 1 :] = 50.0
    found = adaptation_errors(dynamics, short, PAST, FUTURE)
    assert torch.isnan(found["nmse_after"][0])
    assert torch.isfinite(found["nmse_after"][1:]).all()
    assert torch.isfinite(reference["nmse_after"]).all()


def test_episodes_shorter_than_past_and_future_have_nothing_to_measure():
    short = episodes(4, 2)[:, : PAST + FUTURE - 1].unsqueeze(1)
    assert all(torch.isnan(value).all() for value in adaptation_errors(model(), short, PAST, FUTURE).values())


@pytest.mark.parametrize("adaptation", ["gradient", "recurrent"])
def test_the_loss_that_is_measured_is_the_one_that_is_trained(adaptation):
    dynamics, data = model(adaptation=adaptation), episodes(4, 2)[:, : PAST + FUTURE]
    found = adaptation_errors(dynamics, data.unsqueeze(1), PAST, FUTURE)
    rows = data.reshape(-1)
    segments = Segments(rows, dynamics.columns, PAST, FUTURE).at(torch.arange(4) * (PAST + FUTURE) + PAST)
    past, future = segments["past"], segments["future"]
    assert past["mask"].all()
    assert future["mask"].all()
    for name, mask in (("loss_after", past["mask"]), ("loss_before", torch.zeros_like(past["mask"]))):
        wanted = dynamics.errors(future, dynamics.believe(past["inputs"], past["target"], mask)).mean((1, 2))
        torch.testing.assert_close(found[name], wanted.detach(), rtol=1e-4, atol=1e-6)


def test_an_output_that_stands_still_outweighs_all_others_in_the_share_of_variance_alone():
    dynamics, data = model(), episodes(4, 2).unsqueeze(1)
    still = data.clone()
    step = still["next", "observation"][..., 1] - still["observation"][..., 1]
    still["next", "observation"][..., 1] = still["observation"][..., 1] + 0.01 * step
    moving, standing = (adaptation_errors(dynamics, each, PAST, FUTURE) for each in (data, still))
    assert standing["nmse_before"].mean() > 100 * moving["nmse_before"].mean()
    assert standing["loss_before"].mean() < 3 * moving["loss_before"].mean()


def test_step_sizes_learn_at_a_rate_of_their_own():
    dynamics = model(inner_lr=0.5, size_lr=0.02)
    optimizer = dynamics.configure_optimizers()
    start = {name: value.detach().clone() for name, value in dynamics.named_parameters()}
    for parameter in dynamics.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    moved = {name: float((start[name] - value.detach()).abs().max()) for name, value in dynamics.named_parameters()}
    for name in ("inner.sizes", "inner.gain_size"):
        assert moved.pop(name) == pytest.approx(0.02, rel=1e-4)  # Adam's first step is as long as its rate
    assert max(moved.values()) == pytest.approx(dynamics.cfg.lr, rel=1e-2)
    assert len(optimizer.param_groups) == 2
    assert len(model(learned=False).configure_optimizers().param_groups) == 1


def left_after_adapting_to_a_dead_input(adapts: str, unseen: int) -> float:
    torch.manual_seed(0)
    cfg = DynamicsConfig(hidden=32, layers=1, lr=3e-3)
    dynamics = make_adaptive(plain_spec(2, 4), cfg, L2AConfig(past=8, future=8, adapts=adapts, size_lr=0.05))
    seen = dead_inputs([i for i in range(4) if i != unseen], 1).reshape(-1)
    dynamics.observe(seen)
    fit(dynamics, seen, 8, 8, steps=600)
    found = adaptation_errors(dynamics, dead_inputs([unseen], 2).unsqueeze(1), 8, 8)
    return float(found["nmse_after"].mean() / found["nmse_before"].mean())


def test_gains_carry_over_to_an_input_that_never_failed_before():
    left = {adapts: left_after_adapting_to_a_dead_input(adapts, 0) for adapts in ("all", "gains", "weights")}
    assert max(left["all"], left["gains"]) < 0.35, left
    assert max(left["all"], left["gains"]) < 0.6 * left["weights"], left
