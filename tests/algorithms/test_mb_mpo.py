"""MB-MPO and ME-TRPO: whose trajectories are whose, what adapts, who collects; biased and noisy worlds."""

from __future__ import annotations

import pytest
import torch
from fakes import words

from mbrl_lightning.beliefs.gradient import repeat
from mbrl_lightning.data.collect import collect

SMALL = words(
    "env.name=point2d loop.iterations=2 loop.tasks_per_iteration=4 loop.episode_steps=30 loop.exploration_steps=0 "
    "loop.model_steps=6 loop.first_model_steps=6 dynamics.hidden=8 dynamics.members=3 dynamics.targets=16 "
    "meta.updates=2 meta.rollouts=4 meta.subsample=1 search.horizon=10"
)


@pytest.fixture
def fitted(make_loop):
    """`fitted(algorithm, section={...})`: a loop that has collected once and fitted its models."""

    def make(algorithm: str = "mb_mpo", **changes):
        loop = make_loop(algorithm, **SMALL | changes)
        loop.algorithm.collect(loop.world)
        loop._fit_dynamics()
        return loop

    return make


def improve(loop):
    found = loop.algorithm.improve(loop.world, loop.step)
    loop.algorithm.iteration += 1
    loop.world.iteration += 1
    return found


def worlds_of(loop):
    return loop.algorithm._worlds(loop.real, loop.step, loop.algorithm.generator)


def parameters(algorithm):
    start = {name: value.detach() for name, value in algorithm.policy.adaptable().items()}
    return dict(repeat(start.items(), algorithm.tasks, stacked=True))


def test_the_first_data_are_random_and_later_ones_are_of_the_adapted_policies_in_turn(fitted):
    loop = fitted()
    assert loop.real.num_steps == 4 * 30
    assert loop.real.transitions()["exploratory"].all()
    algorithm = loop.algorithm
    improve(loop)
    belief = algorithm.collectors(algorithm.begin(5))
    assert belief["policy"].batch_size == (5,)
    for name, value in algorithm.adapted.adaptable().items():
        assert torch.equal(belief["policy", name], value[[0, 1, 2, 0, 1]])
        assert not torch.equal(value[0], value[1])
        assert not torch.equal(value[:1], algorithm.policy.adaptable()[name])
    loop.algorithm.collect(loop.world)
    assert loop.real.num_steps == 8 * 30
    assert not loop.real.transitions()["exploratory"][120:].any()


def test_trajectories_of_policy_k_are_imagined_in_model_k(fitted):
    loop = fitted()
    algorithm = loop.algorithm
    algorithm.policy.norm.fit(loop.real.transitions()["observation"])
    with torch.no_grad():  # model k moves the point by k + 1 whatever is done
        for p in algorithm.dynamics.decoder.parameters():
            p.zero_()
        algorithm.dynamics.decoder[-1].parametrizations.weight.original1.fill_(1.0)
        shift = torch.arange(1.0, 4.0).view(3, 1, 1)
        norm = algorithm.dynamics.target_norm
        algorithm.dynamics.decoder[-1].bias.copy_((shift - norm.loc) * norm.inverse_std)
    algorithm.dynamics.low.fill_(-torch.inf)
    algorithm.dynamics.high.fill_(torch.inf)
    worlds = worlds_of(loop)
    data = worlds.rollout(lambda observation: {"action": torch.zeros(1, 12, 2)})[0].unflatten(0, (3, 4))
    moved = data["next", "observation"] - data["observation"]
    torch.testing.assert_close(moved, shift.view(3, 1, 1, 1).expand_as(moved), atol=1e-4, rtol=0)


def test_each_policy_adapts_to_its_own_model_and_the_returns_are_reported(fitted):
    loop = fitted()
    algorithm = loop.algorithm
    metrics = improve(loop)
    assert {"imagined/return", "imagined/adapted"} <= set(metrics)
    assert {"train/kl", "train/inner_kl", "train/rejected", "train/std"} <= set(metrics)
    batch, _, linear = algorithm._trajectories(worlds_of(loop))
    adapted = linear.adapted
    assert batch["target"].shape == (3, 4 * 10)
    assert batch["support"].shape == (3, 1, 4 * 10)
    losses = algorithm.outer.judge(batch, adapted).detach()
    assert abs(float(losses["kl"])) < 1e-5  # sampled by the adapted policies
    assert abs(float(losses["loss_objective"])) < 1e-5  # of standardised advantages
    again = algorithm.outer.adapt(batch, algorithm.policy.adaptable())
    for name, value in adapted.items():
        torch.testing.assert_close(value, again[name].detach(), rtol=0, atol=1e-6)


def test_me_trpo_has_one_task_in_which_every_step_asks_a_random_model(fitted):
    loop = fitted("me_trpo")
    algorithm = loop.algorithm
    assert algorithm.tasks == 1
    assert algorithm.shots(full=True) == [0]
    algorithm.policy.norm.fit(loop.real.transitions()["observation"])
    batch, returns, _ = algorithm._trajectories(worlds_of(loop))
    assert batch["target"].shape == (1, 3 * 4 * 10)
    assert "support" not in batch.keys()  # noqa: SIM118 - a TensorDict has no `in`
    assert set(returns) == {"imagined/return"}
    worlds = worlds_of(loop)
    observation, action = torch.randn(1, 12, 2), torch.zeros(1, 12, 2)
    asked_of = [(observation, action, worlds.belief, None, slice(k, k + 1)) for k in range(3)]
    each, asked = torch.cat([algorithm.dynamics.imagine(*given) for given in asked_of]).detach(), set()
    for _ in range(20):
        following = worlds.imagine(observation, action, worlds.belief).detach()
        gap = (following - each).abs().amax(-1)  # [3, 12]
        assert float(gap.amin(0).max()) < 1e-5  # every row is some member's prediction
        choice = gap.argmin(0)
        assert torch.bincount(choice, minlength=3).tolist() == [4, 4, 4]
        asked.add(tuple(choice.tolist()))
    assert len(asked) > 15


def test_biased_and_noisy_worlds_are_off_by_as_much_as_they_say(fitted):
    loop = fitted(meta={"bias": 1.0, "noise": 0.1, "rollouts": 400})
    algorithm = loop.algorithm
    worlds = worlds_of(loop)
    asked, norm = (torch.zeros(1, 1200, 2), torch.zeros(1, 1200, 2), worlds.belief), algorithm.dynamics.target_norm
    off = (worlds.imagine(*asked) - algorithm.dynamics.imagine(*asked))[0]
    off = off / (norm.inverse(torch.ones(2)) - norm.inverse(torch.zeros(2)))
    bias = off.view(3, -1).mean(1)
    torch.testing.assert_close(bias, worlds.bias[0, ::400, 0], atol=0.02, rtol=0)
    torch.testing.assert_close(off.view(3, -1).std(1), torch.full((3,), 0.1), atol=0.02, rtol=0)
    assert ((bias > 0) & (bias < 1)).all()
    assert not torch.equal(worlds_of(loop).bias, worlds.bias)  # drawn anew
    assert (worlds_of(fitted()).bias == 0).all()


@pytest.mark.parametrize("change", [
    {"dynamics": {"members": 1}, "evaluation": {"shots": [0.0, 1.0]}},
    {"env": {"name": "acrobot", "options": {}}, "evaluation": {"shots": [0.0]}},
], ids=["one model", "discrete actions"])  # fmt: skip
def test_a_whole_run(make_loop, change):
    found = {row.metric for row in make_loop("mb_mpo", **SMALL | change).fit().rows}
    assert {"return/policy", "return/fine_tuned", "return/sampled", "train/accepted"} <= found


@pytest.mark.parametrize("meta", [{"inner_lr": 0.0}, {"inner_steps": 0}], ids=str)
def test_an_inner_step_of_zero_is_no_adaptation(fitted, meta):
    loop = fitted(meta=meta)
    algorithm = loop.algorithm
    algorithm.policy.norm.fit(loop.real.transitions()["observation"])
    batch, _, linear = algorithm._trajectories(worlds_of(loop))
    adapted = linear.adapted
    for name, value in parameters(algorithm).items():
        assert torch.equal(adapted[name], value)
    assert "support" not in batch.keys()  # noqa: SIM118 - a TensorDict has no `in`
    belief = algorithm.begin(2)
    assert algorithm.fine_tune(belief, loop.real, loop.step, algorithm.generator) is None
    assert algorithm.collectors(belief) is belief


def test_a_meta_test_adapts_to_each_task_on_its_own_transitions(fitted):
    loop = fitted()
    algorithm, family = loop.algorithm, loop.family
    improve(loop)
    agent, belief = algorithm.explorer(3)
    assert agent is algorithm
    draws = torch.Generator().manual_seed(0)
    context = collect(family.simulate(family.test), family.spec, agent, belief, 60, draws, draws)
    assert (context["action"].std((0, 1)) > 0).all()
    # nothing seen, one step of an episode, or a draw from the data: theta itself
    drawn = loop.real.draw_context(torch.tensor([0, 1, 2]), 9, draws)
    for nothing in (context[:, :0], context[:, 0], drawn):
        assert "policy" not in algorithm.adapt(belief, nothing).keys()  # noqa: SIM118 - a TensorDict has no `in`
    adapted, alone = algorithm.adapt(belief, context), algorithm.adapt(belief[1:2], context[1:2])
    assert adapted["latent"].shape == (3, 0)
    for name, value in algorithm.policy.adaptable().items():
        own = adapted["policy", name]
        torch.testing.assert_close(own[1:2], alone["policy", name], rtol=0, atol=1e-6)
        assert not torch.equal(own[0], own[1])
        assert (own[0] - value.detach()[0]).abs().max() < 1.0


def test_surprise_is_the_error_on_what_the_last_models_policies_saw(fitted):
    loop = fitted()
    assert loop.algorithm._surprise(loop.real.transitions(), loop.real.num_steps) == {}  # nothing new
    improve(loop)
    loop.algorithm.collect(loop.world)
    transitions, dynamics = loop.real.transitions(), loop.algorithm.dynamics
    new = transitions[120:]
    x, y = dynamics.inputs(new["observation"], new["action"]), dynamics.targets(new)
    expected = (dynamics.decoder(x.expand(3, -1, -1)) - y).square().mean().detach()
    found = loop.algorithm._surprise(transitions, loop.real.num_steps)["surprise"]
    assert found == pytest.approx(float(expected))
