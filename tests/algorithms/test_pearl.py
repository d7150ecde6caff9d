"""PEARL: who learns from what, what the latent is drawn from and when, and which data make up a context."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import torch
from fakes import counter_family, plain_spec, shortened
from tensordict import TensorDict

from mbrl_lightning.algorithms import make_algorithm
from mbrl_lightning.algorithms.pearl import TransitionInputs
from mbrl_lightning.data.windows import Histories
from mbrl_lightning.envs import make_family
from mbrl_lightning.envs.family import draw_from
from mbrl_lightning.errors import ConfigError

SMALL = {
    "loop": {"tasks_per_iteration": 2, "episode_steps": 20},
    "pearl": {"latent_dim": 3, "hidden": [16], "context": 6, "hold": 4, "meta_batch": 2},
    "sac": {"batch": 16, "updates_per_step": 0.1},
}


def switching():
    """Hidden direction, turning round every sixth step."""
    return shortened(make_family("point_switch", horizon=20, switch_every_steps=6, jitter=0.0))


def with_sections(changes: dict) -> dict:
    return {name: SMALL.get(name, {}) | changes.get(name, {}) for name in {*SMALL, *changes}}


@pytest.fixture
def started(make_loop):
    """`started(family, rounds=1, section={...})`: a loop whose PEARL has gone through so many iterations."""

    def make(family=None, rounds: int = 1, **changes):
        loop = make_loop("pearl", family=family, **with_sections(changes))
        for _ in range(rounds):
            loop.algorithm.improve(loop.real, loop.step, loop.interact)
        return loop

    return make


def batch_of(loop) -> TensorDict:
    algorithm = loop.algorithm
    return algorithm._batch(loop.real, Histories(loop.real, algorithm.inputs, 0))


def recorded(algorithm, generator=None, belief=None, rows: int = 2):
    """An actor, and the latents that its policy is given, step by step."""
    latents: list[torch.Tensor] = []
    see = type(algorithm).see

    def spy(current, latent):
        latents.append(latent.clone())
        return see(algorithm, current, latent)

    algorithm.see = spy
    act = algorithm.actor(algorithm.prior(rows) if belief is None else belief, generator)
    act.begin(torch.ones(rows, dtype=torch.bool))
    return act, latents


# -- what learns from what


def gradients(loss: torch.Tensor, parameters) -> list:
    return list(torch.autograd.grad(loss, list(parameters), retain_graph=True, allow_unused=True))


def test_the_encoder_learns_from_the_q_loss_and_the_divergence_alone(started):
    loop = started(switching())
    algorithm = loop.algorithm
    losses = algorithm.losses(batch_of(loop))
    for name in ("loss_qvalue", "loss_kl"):
        assert all(g is not None and g.abs().sum() > 0 for g in gradients(losses[name], algorithm.encoder.parameters()))
    for name in ("loss_actor", "loss_alpha"):
        assert gradients(losses[name], algorithm.encoder.parameters()) == [None] * 4
    assert all(g is None for g in gradients(losses["loss_kl"], algorithm.policy.trained_parameters()))


def test_the_target_of_the_q_loss_is_a_constant(started):
    """The same gradient for the encoder when the latent of next observations is cut off."""
    loop = started(switching())
    algorithm, batch = loop.algorithm, batch_of(loop)
    whole = gradients(algorithm.losses(batch)["loss_qvalue"], algorithm.encoder.parameters())
    see, following = algorithm.see, batch["following"].flatten(0, 1)

    def cut(current, latent):
        return see(current, latent.detach() if torch.equal(current, following) else latent)

    algorithm.see = cut
    again = gradients(algorithm.losses(batch)["loss_qvalue"], algorithm.encoder.parameters())
    torch.testing.assert_close(whole, again)


@pytest.mark.parametrize("tasks", [1, 3])
def test_given_the_latents_a_step_is_one_of_sac(started, tasks):
    """With one task, z is one more constant input; SAC's own update on the same rows then moves SAC just as far."""
    loop = started(switching(), pearl=SMALL["pearl"] | {"meta_batch": tasks})
    algorithm = loop.algorithm
    batch = batch_of(loop)
    assert batch.batch_size == (tasks,)
    plain = copy.deepcopy(algorithm.policy)
    with torch.no_grad():
        belief = algorithm.encoder(batch["pairs"], batch["mask"])
        latent = belief["loc"] + belief["scale"] * batch["sample"]
    names = ("current", "following", "action", "reward", "terminated", "noise")
    rows = {name: torch.cat(list(batch[name])) for name in names}
    z = torch.cat([latent[m].expand(16 // tasks, -1) for m in range(tasks)])
    empty = {"pairs": torch.zeros(len(z), 0, 1), "mask": torch.zeros(len(z), 0, dtype=torch.bool)}
    after = {
        "inputs": {**empty, "current": torch.cat([rows["following"], z], -1)},
        "reward": rows["reward"],
        "terminated": rows["terminated"],
    }
    given = {
        "inputs": {**empty, "current": torch.cat([rows["current"], z], -1)},
        "action": rows["action"],
        "noise": rows["noise"],
        "next": after,
    }
    data = TensorDict(given, batch_size=[len(z)])
    optimizer = torch.optim.Adam(plain.trained_parameters(), lr=1e-3, fused=True)
    algorithm.optimizers["sac"] = torch.optim.Adam(
        [*algorithm.policy.trained_parameters(), *algorithm.encoder.parameters()], lr=1e-3, fused=True
    )
    before = [p.clone() for p in plain.parameters()]
    expected = plain.update(data, loop.step, optimizer)
    metrics = algorithm._learn(batch, loop.step)
    for mine, its, old in zip(algorithm.policy.parameters(), plain.parameters(), before, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-7)
        assert not torch.equal(its, old)
    assert metrics["loss_qvalue"] == pytest.approx(expected["loss_qvalue"], rel=1e-5)
    assert metrics["loss"] == pytest.approx(expected["loss"] + metrics["loss_kl"], rel=1e-5)


def test_the_divergence_is_summed_over_tasks(started):
    loop = started(switching())
    batch = batch_of(loop)
    belief = loop.algorithm.encoder(batch["pairs"], batch["mask"])
    variance = belief["scale"].square()
    by_hand = 0.5 * (variance + belief["loc"].square() - 1 - variance.log()).sum()
    torch.testing.assert_close(loop.algorithm.losses(batch)["loss_kl"], 0.1 * by_hand)


def test_two_ranks_average_to_the_gradient_of_the_whole_batch(started):
    loop = started(switching())
    algorithm, batch = loop.algorithm, batch_of(loop)
    trained = [*algorithm.policy.trained_parameters(), *algorithm.encoder.parameters()]
    whole = gradients(algorithm.losses(batch)["loss"], trained)
    halves = [gradients(algorithm.losses(batch[m : m + 1])["loss"], trained) for m in range(2)]
    for one, first, second in zip(whole, *halves, strict=True):
        torch.testing.assert_close(one, (first + second) / 2, rtol=1e-4, atol=1e-6)


def test_all_three_parts_move(started):
    loop = started(switching(), rounds=0)
    before = {name: p.clone() for name, p in loop.algorithm.named_parameters()}
    loop.algorithm.improve(loop.real, loop.step, loop.interact)
    assert not [name for name, p in loop.algorithm.named_parameters() if torch.equal(p, before[name])]


# -- which data make up what


def test_contexts_and_transitions_of_a_row_are_of_one_task(started):
    """The counter shows its task in every observation."""
    loop = started(counter_family(), rounds=3)
    batch = batch_of(loop)
    assert batch["pairs"].shape == (2, 6, 2 + 1 + 1 + 2)
    assert batch["mask"].all()
    shown = batch["current"][..., 1]
    assert torch.equal(shown, shown[:, :1].expand_as(shown))
    assert torch.equal(batch["pairs"][..., 1], shown[:, :1].expand(2, 6))
    torch.testing.assert_close(batch["following"][..., 0] * 0 + shown, batch["following"][..., 1])
    assert shown[0, 0] != shown[1, 0]


def test_contexts_come_from_the_prior_and_transitions_from_both(started):
    asked = []

    def spied(interact, *words, **options):
        asked.append((words[2], options["exploratory"]))
        return interact(*words, **options)

    loop = started(counter_family(), rounds=0, pearl=SMALL["pearl"] | {"prior_share": 0.3})
    for _ in range(3):
        loop.algorithm.improve(loop.real, loop.step, partial(spied, loop.interact))
    assert asked == [(20, True), (6, True), (14, False), (6, True), (14, False)]
    assert loop.real.num_steps == 3 * 2 * 20
    assert loop.step.count == 3 * round(0.1 * 40)
    rows, there = loop.real.recent_rows(torch.tensor([2, 3]), 10, 500, torch.Generator())
    assert loop.real.transitions()["exploratory"][rows[there]].all()
    assert there.sum(1).tolist() == [6, 6]  # the second iteration's tasks have no more


def test_the_posterior_of_what_was_just_seen_drives_the_second_half(started):
    loop = started(counter_family(), rounds=1)
    algorithm, beliefs = loop.algorithm, []
    actor = algorithm.actor
    algorithm.actor = lambda belief, generator: beliefs.append(belief) or actor(belief, generator)
    algorithm.improve(loop.real, loop.step, loop.interact)
    (belief,) = beliefs
    assert (belief["scale"] < 1).any()
    assert not torch.equal(belief["loc"][0], belief["loc"][1])


def test_tasks_of_a_finite_family_come_back(started):
    grid = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    loop = started(replace(counter_family(), draw=draw_from(grid)), rounds=4)
    assert len(loop.real.tasks) <= 2
    data = loop.real.transitions()
    assert torch.equal(loop.real.tasks[data["task"], 0].float(), data["observation"][:, 1])


def test_where_tasks_switch_each_transition_is_stored_with_its_own(started):
    """The reward tells the direction: r = d v'_x - 0.1 |a|^2."""
    loop = started(switching(), rounds=3)
    data = loop.real.transitions()
    assert sorted(loop.real.tasks[:, 0].tolist()) == [-1.0, 1.0]
    moved = data["next", "reward"][:, 0] + 0.1 * data["action"].square().sum(1)
    direction = loop.real.tasks[data["task"], 0].float()
    torch.testing.assert_close(moved, direction * data["next", "observation"][:, 0], rtol=1e-4, atol=1e-5)
    assert data["exploratory"].all()  # a meta-test's contexts are the acting policy's own
    batch = batch_of(loop)
    assert batch["mask"].all()


# -- what the latent is drawn from, and when


def test_before_any_transition_the_belief_is_standard_normal(started):
    belief = started(counter_family()).algorithm.prior(3)
    assert belief.batch_size == (3,)
    assert torch.equal(belief["loc"], torch.zeros(3, 3))
    assert torch.equal(belief["scale"], torch.ones(3, 3))
    assert torch.equal(belief["latent"], belief["loc"])


@pytest.mark.parametrize("size", [1, 5, 40])
def test_a_context_of_any_size_is_a_belief(started, size):
    loop = started(counter_family())
    context = loop.real.draw_targets(torch.tensor([0, 1]), size, torch.Generator().manual_seed(0))
    belief = loop.algorithm.adapt(context)
    seen = loop.algorithm.inputs.pair(context["observation"], context["action"], context["next", "observation"])
    torch.testing.assert_close(belief, loop.algorithm.encoder(seen))
    assert not belief["loc"].requires_grad
    assert not torch.equal(belief["loc"][0], belief["loc"][1])


def test_another_tasks_belief_is_another_policy(started):
    algorithm = started(counter_family()).algorithm
    belief = algorithm.prior(2)
    belief["loc"] = torch.tensor([[1.0, 1.0, 1.0], [-1.0, -1.0, -1.0]])
    observation = torch.ones(2, 2)
    actions = []
    for given in (belief, belief[torch.tensor([1, 0])]):
        act = algorithm.actor(given)
        act.begin(torch.ones(2, dtype=torch.bool))
        actions.append(act(observation))
    assert not torch.equal(actions[0], actions[1])
    torch.testing.assert_close(actions[0], actions[1].flip(0))


def test_a_given_belief_is_kept_and_drawn_from_once_an_episode(started):
    algorithm = started(counter_family()).algorithm
    belief = algorithm.prior(2)
    belief["loc"] = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    belief["scale"] = torch.full((2, 3), 0.1)
    act, latents = recorded(algorithm, None, belief)
    for _ in range(6):
        act(torch.randn(2, 2))
    assert all(torch.equal(latent, belief["loc"]) for latent in latents)
    act, latents = recorded(algorithm, torch.Generator().manual_seed(0), belief)
    for step in range(8):  # the horizon
        if step == 6:
            act.begin(torch.tensor([False, True]))
        act(torch.randn(2, 2))
    assert 0 < (latents[0] - belief["loc"]).abs().max() < 0.5
    assert all(torch.equal(latent, latents[0]) for latent in latents[:6])
    assert all(torch.equal(latent, latents[6]) for latent in latents[6:])
    assert torch.equal(latents[6][0], latents[0][0])
    assert not torch.equal(latents[6][1], latents[0][1])


def test_where_tasks_switch_it_is_inferred_anew_from_the_last_transitions(started):
    algorithm = started(switching()).algorithm  # context 6, hold 4
    act, latents = recorded(algorithm)
    seen, taken = torch.randn(11, 2, 3), []
    for step, observation in enumerate(seen):
        if step == 9:
            act.begin(torch.tensor([True, False]))
        taken.append(act(observation))
    assert all(torch.equal(latent, torch.zeros(2, 3)) for latent in latents[:4])
    for step in (4, 8):
        first = max(step - 6, 0)
        pairs = [algorithm.inputs.pair(seen[t], taken[t], seen[t + 1]) for t in range(first, step)]
        expected = algorithm.encoder(torch.stack(pairs, 1))["loc"]
        torch.testing.assert_close(latents[step], expected)
        assert not torch.equal(latents[step], latents[step - 1])
    assert torch.equal(latents[7], latents[4])
    assert torch.equal(latents[9][0], torch.zeros(3))  # its episode began
    assert torch.equal(latents[9][1], latents[8][1])


def test_exploring_draws_from_the_prior_every_so_many_steps(started):
    algorithm = started(counter_family()).algorithm
    _, latents = recorded(algorithm)
    act = algorithm.exploration(2, torch.Generator().manual_seed(0))
    act.begin(torch.ones(2, dtype=torch.bool))
    for _ in range(9):
        act(torch.randn(2, 2))
    assert [torch.equal(a, b) for a, b in pairwise(latents)] == [True, True, True, False] * 2
    assert (latents[0] != 0).all()


def test_a_context_teaches_nothing_where_the_policy_finds_out_by_itself(started):
    loop = started(switching())
    context = loop.real.draw_targets(torch.tensor([0, 1]), 5, torch.Generator().manual_seed(0))
    assert not loop.algorithm.adapts
    torch.testing.assert_close(loop.algorithm.adapt(context), loop.algorithm.prior(2))
    loop.fit()
    metrics = {row.metric for row in loop.results.rows}
    assert "return/wrong_belief" not in metrics
    assert {"return/policy", "return/sampled", "reward/direction=1", "train/loss_kl", "real/return"} <= metrics


def test_where_it_adapts_the_whole_meta_test_is_made(make_loop):
    loop = make_loop("pearl", family=counter_family(), **SMALL)
    rows = loop.fit().rows
    assert {row.shot for row in rows if row.metric == "return/policy"} == {0, 8}
    assert [row for row in rows if row.metric == "return/wrong_belief"]
    assert not [row for row in rows if row.metric.startswith(("model/", "probe/", "imagined/"))]


# -- inputs


def test_statistics_are_those_of_the_first_iteration_for_good(started):
    loop = started(switching(), rounds=1)
    data, norms = loop.real.transitions(), loop.algorithm.inputs.state_dict()
    torch.testing.assert_close(loop.algorithm.inputs.outcome_norm.mean, data["next", "reward"].double().mean(0))
    loop.algorithm.improve(loop.real, loop.step, loop.interact)
    assert all(torch.equal(value, norms[name]) for name, value in loop.algorithm.inputs.state_dict().items())


def test_a_transition_is_observation_action_reward_and_next_observation():
    inputs = TransitionInputs(plain_spec())
    observation, action, following = torch.randn(4, 3), torch.rand(4, 2), torch.randn(4, 3)
    parts = [observation, action, action.sum(-1, keepdim=True), following]
    pair = inputs.pair(observation, action, following)
    torch.testing.assert_close(pair, torch.cat(parts, -1))
    assert pair.shape[-1] == inputs.pair_dim


def test_discrete_actions_are_refused(tiny):
    with pytest.raises(ConfigError, match="discrete"):
        make_algorithm(tiny("pearl"), make_family("acrobot"))


@pytest.mark.parametrize(("changes", "text"), [
    ({"sac": {"batch": 3}, "pearl": {"meta_batch": 4}}, "sac.batch=3"),
    ({"devices": 2, "pearl": {"meta_batch": 3}}, "pearl.meta_batch=3: not divisible"),
    ({"pearl": {"prior_share": 0.0}}, "pearl.prior_share=0.0: must be more than 0"),
])  # fmt: skip
def test_sizes_that_do_not_fit_are_refused(tiny, changes, text):
    with pytest.raises(ConfigError, match=text):
        tiny("pearl", **changes)


def test_another_algorithm_may_have_any_meta_batch(tiny):
    tiny("dr_ppo", devices=2, pearl={"meta_batch": 3}, search={"method": "ppo"})


# -- learning


@pytest.mark.slow
def test_it_finds_the_hidden_direction_and_a_blind_policy_does_not(make_loop):
    """Seen with seeds 0-2: 226, 202, 240 of 1,600 real steps, blind 0 and -2; knowing the direction gives about 320."""
    returns = {}
    for blind in (False, True):
        loop = make_loop(
            "pearl",
            family=make_family("point_switch"),
            loop={"iterations": 4, "tasks_per_iteration": 2, "episode_steps": 200},
            policy={"hidden": [64, 64]},
            sac={"gamma": 0.95, "tau": 0.01},
            pearl={"hidden": [64, 64], "context": 10, "hold": 5},
        )
        if blind:
            see = loop.algorithm.see
            loop.algorithm.see = lambda current, latent, see=see: see(current, 0 * latent)
        values = [row.value for row in loop.fit().rows if row.metric == "return/policy"]
        returns[blind] = sum(values) / len(values)
        assert loop.real.num_steps == 1600
    assert returns[False] > 120
    assert abs(returns[True]) < 30
