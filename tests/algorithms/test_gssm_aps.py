"""GSSM with amortised policy search, and with fine-tuning: what improves, what must not move."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from fakes import fingerprint, shortened
from tensordict import TensorDict

from mbrl_lightning.algorithms import make_algorithm
from mbrl_lightning.data.seeds import of_rank
from mbrl_lightning.envs import make_family
from mbrl_lightning.errors import ConfigError
from mbrl_lightning.models.imagination import ImaginedStreams
from mbrl_lightning.policies.pathwise import PathwiseLoss

SMALL = {
    "dynamics": {"members": 2, "context": 16},
    "search": {"restarts": 3, "holdout": 1, "updates": 3, "tasks": 4},
    "loop": {"iterations": 4},
}


@pytest.fixture
def trained(make_loop):
    """A loop with data and a fitted model, about to improve its policy."""

    def make(algorithm: str = "gssm_aps", family=None, **changes):
        merged = {key: SMALL.get(key, {}) | changes.get(key, {}) for key in {*SMALL, *changes}}
        loop = make_loop(algorithm, family=family, **merged)
        loop.algorithm.collect(loop.world)
        loop._fit_dynamics()
        return loop

    return make


def improve(loop) -> dict[str, float]:
    found = loop.algorithm.improve(loop.world, loop.step)
    loop.algorithm.iteration += 1
    loop.world.iteration += 1
    return found


def believed(loop) -> TensorDict:
    """After ten random steps in each of two tasks."""
    context = loop.real.draw_context(torch.tensor([0, 1]), 10, torch.Generator().manual_seed(0))
    return loop.algorithm.adapt(loop.algorithm.begin(2), context)


def tune(loop, belief: TensorDict) -> TensorDict | None:
    return loop.algorithm.fine_tune(belief, loop.real, loop.step, loop.algorithm.generator)


@pytest.mark.parametrize("learn_scale", [False, True])
@pytest.mark.parametrize(("algorithm", "method"), [("gssm_aps", "pathwise"), ("gssm_aps", "ppo"), ("gssm", "pathwise")])
def test_improving_the_policy_leaves_the_model_and_the_data(trained, algorithm, method, learn_scale):
    loop = trained(algorithm, search={"method": method}, dynamics={"learn_scale": learn_scale})
    dynamics, policy = loop.algorithm.dynamics, fingerprint(loop.algorithm.policy.state_dict())
    held = fingerprint(dynamics.state_dict()) | fingerprint(loop.real.state_dict())
    learned = {name: p.requires_grad for name, p in dynamics.named_parameters()}
    dynamics.zero_grad()
    metrics = improve(loop)
    assert fingerprint(dynamics.state_dict()) | fingerprint(loop.real.state_dict()) == held
    assert fingerprint(loop.algorithm.policy.state_dict()) != policy
    assert all(p.grad is None for p in dynamics.parameters())
    assert {name: p.requires_grad for name, p in dynamics.named_parameters()} == learned
    assert learned.pop("log_scale") == learn_scale
    assert all(learned.values())
    assert "imagined/return" in metrics


def test_belief_is_the_posterior_mean_of_all_contexts_so_far_with_no_graph(trained):
    loop = trained()
    algorithm, whole = loop.algorithm, believed(loop)
    context = loop.real.draw_context(torch.tensor([0, 1]), 10, torch.Generator().manual_seed(0))
    begun = algorithm.begin(2)
    assert torch.equal(whole["latent"], whole["loc"])
    assert not whole["latent"].requires_grad
    nothing = algorithm.dynamics.infer(context[:, :0])
    torch.testing.assert_close(begun.select(*nothing.keys()), nothing)
    torch.testing.assert_close(algorithm.adapt(algorithm.adapt(begun, context[:, :3]), context[:, 3:]), whole)
    assert algorithm.adapt(whole, context[:, 0]) is whole  # the one step just made


@pytest.mark.parametrize("holdout", [0, 1])
def test_the_deployed_policy_is_the_best_restart_under_the_held_out_members(trained, holdout):
    loop = trained(search={"holdout": holdout})
    algorithm = loop.algorithm
    improve(loop)
    ranking = algorithm.search.ranking.tolist()
    assert sorted(ranking) == [0, 1, 2]
    for name, value in algorithm.policy.net.named_parameters():
        assert torch.equal(value, algorithm.search.restarts.net.get_parameter(name)[ranking[0] : ranking[0] + 1])
    assert fingerprint(algorithm.policy.norm.state_dict()) == fingerprint(algorithm.search.restarts.norm.state_dict())

    state = algorithm.generator.get_state()
    algorithm.search._select(loop.algorithm, loop.real, loop.step, 8)  # what it drew, once more
    algorithm.generator.set_state(state)
    members = slice(1, 2) if holdout else slice(0, 2)
    batch = algorithm.imagined_tasks(loop.real, loop.step, 4 * 4, loop.cfg.search.rollouts)
    with torch.no_grad():
        returns = PathwiseLoss(algorithm.search.restarts, algorithm.dynamics, 8, 1.0, members)(batch)["imagined_return"]
    assert algorithm.search.ranking.tolist() == returns.argsort(descending=True).tolist()


def test_held_out_members_do_not_train_the_policy(trained):
    states = []
    for shift in (0.0, 1.0):
        loop = trained()
        with torch.no_grad():
            for p in loop.algorithm.dynamics.decoder.parameters():
                p[1:] += shift  # the held-out one
        improve(loop)
        states.append(fingerprint(dict(loop.algorithm.search.restarts.net.named_parameters())))
    assert states[0] == states[1]


def test_searching_raises_the_imagined_return(trained):
    loop = trained(search={"updates": 25, "lr": 0.02, "horizon": 15})
    algorithm = loop.algorithm
    with torch.no_grad():  # start states from which something can be won
        algorithm.dynamics.target_norm.loc.zero_()
    before = algorithm.search._select(loop.algorithm, loop.real, loop.step, 15)["imagined/return"]
    assert improve(loop)["imagined/return"] > before


def test_exploring_rows_are_driven_by_the_better_half_of_the_restarts(trained):
    algorithm = trained(search={"restarts": 4}).algorithm
    algorithm.search.ranking.copy_(torch.tensor([2, 0, 3, 1]))
    belief = algorithm.begin(5)
    explored = algorithm.collectors(belief)
    assert belief.get("policy", None) is None  # the caller's belief is left alone
    for name, value in algorithm.search.restarts.net.named_parameters():
        assert torch.equal(explored["policy", name], value[[2, 0, 2, 0, 2]])
    deployed = trained(search={"method": "ppo"}).algorithm
    assert deployed.collectors(belief) is belief


def test_imagined_batches_have_full_shorter_and_empty_contexts_and_one_latent_a_task(trained):
    loop = trained()
    batches = [loop.algorithm.imagined_tasks(loop.real, loop.step, 2, 2) for _ in range(150)]
    lengths, belief = [batch["context"].shape[1] for batch in batches], batches[0]["belief"]
    assert set(lengths) >= {0, 16}
    assert 0.6 < lengths.count(16) / 150 < 0.95
    torch.testing.assert_close(belief["latent"], belief["loc"] + belief["scale"] * batches[0]["sample"])
    assert not torch.equal(belief["latent"], belief["loc"])


def test_ranks_imagine_with_noise_of_their_own_and_keep_the_common_generator_in_step(trained):
    algorithm = trained(search={"method": "ppo"}).algorithm
    state, draws, after = algorithm.generator.get_state(), [], []
    for rank in (0, 1):
        algorithm.generator.set_state(state)
        own = of_rank(algorithm.generator, SimpleNamespace(world_size=2, global_rank=rank))
        draws.append(torch.rand(4, generator=own).tolist())
        after.append(algorithm.generator.get_state())
    assert draws[0] != draws[1]
    assert torch.equal(*after)
    assert not torch.equal(after[0], state)
    alone = of_rank(algorithm.generator, SimpleNamespace(world_size=1, global_rank=0))
    assert alone is algorithm.generator


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_share_of_rollouts_from_initial_states(trained, share):
    loop = trained()
    data = loop.real.transitions()
    initial = {tuple(row) for row in data["observation"][data["initial"]].tolist()}
    starts = loop.real.start_states(40, torch.Generator().manual_seed(0), share).tolist()
    found = sum(tuple(row) in initial for row in starts)
    assert (found == 40) if share == 1 else (20 * share * 2 <= found < 20 * share * 2 + 12)


def test_learning_rate_falls_over_the_run(trained):
    loop = trained()
    rates = []
    for _ in range(4):
        improve(loop)
        rates.append(loop.algorithm.optimizers["policy"].param_groups[0]["lr"] / loop.cfg.search.lr)
    assert rates == pytest.approx([1.0, 0.75, 0.5, 0.25])


@pytest.mark.parametrize("method", ["pathwise", "ppo"])
def test_no_updates_at_all(trained, method):
    loop = trained(search={"method": method, "updates": 0})
    improve(loop)


def test_imagined_return_of_a_family_that_sums_is_that_of_an_episode(trained):
    """Otherwise it could not be compared with the real return."""
    family = shortened(make_family("cartpole"))
    per_step = improve(trained(family=family))["imagined/return"]
    summed = replace(family, spec=replace(family.spec, unit="episode"))
    assert improve(trained(family=summed))["imagined/return"] == pytest.approx(family.spec.horizon * per_step, rel=1e-4)


def test_discrete_actions_need_ppo(tiny):
    with pytest.raises(ConfigError, match="discrete"):
        make_algorithm(tiny("gssm_aps", env={"name": "acrobot"}), make_family("acrobot"))
    make_algorithm(tiny("gssm_aps", env={"name": "acrobot"}, search={"method": "ppo"}), make_family("acrobot"))


def test_a_reward_without_gradient_is_named_as_such(trained):
    family = shortened(make_family("cartpole"))
    flat = replace(family, spec=replace(family.spec, reward=lambda o, a, n: (n[..., 0] > 0).float()))
    with pytest.raises(ConfigError, match=r"search\.method=ppo"):
        improve(trained(family=flat))


@pytest.mark.parametrize("method", ["pathwise", "ppo"])
def test_fine_tuning_gives_each_task_its_own_policy_and_leaves_the_deployed_one(trained, method):
    loop = trained("gssm", search={"method": method}, evaluation={"fine_tune_updates": 3, "fine_tune_lr": 0.05})
    improve(loop)
    algorithm = loop.algorithm
    belief, before = believed(loop), fingerprint(algorithm.state_dict())
    tuned = tune(loop, belief)
    assert fingerprint(algorithm.state_dict()) == before
    assert all(p.requires_grad for name, p in algorithm.dynamics.named_parameters() if name != "log_scale")
    for name, value in algorithm.policy.net.named_parameters():
        own = tuned["policy", name]
        assert own.shape == (2, *value.shape[1:])
        assert not torch.equal(own[0], own[1])
        assert not torch.equal(own[0], value[0])
        assert (own - value).abs().max() < 0.5  # it started from the deployed policy
    observation = torch.randn(2, loop.family.spec.observation_dim)
    assert not torch.equal(algorithm.policy.act(observation, tuned), algorithm.policy.act(observation, belief))


def test_fine_tuning_raises_the_imagined_return_of_its_task(trained):
    loop = trained(
        "gssm", evaluation={"fine_tune_updates": 40, "fine_tune_lr": 0.02}, search={"horizon": 15, "holdout": 0}
    )
    improve(loop)
    algorithm, belief = loop.algorithm, believed(loop)
    tuned = tune(loop, belief)
    starts = loop.real.start_states(2 * 8, torch.Generator().manual_seed(1), initial=True).view(2, 8, -1)

    def imagined(held) -> torch.Tensor:
        rows = held[torch.arange(2).repeat_interleave(8)]
        streams = ImaginedStreams(algorithm.dynamics, belief, starts, 99)
        with torch.no_grad():
            data = streams.rollout(
                lambda o: {"action": algorithm.policy.act(o.flatten(0, 1), rows).unflatten(0, (2, 8))}, 15
            )
        return data["next", "reward"].mean((1, 2, 3))

    assert (imagined(tuned) > imagined(belief)).all()


def test_with_aps_the_belief_is_enough_and_nothing_is_fine_tuned(trained):
    for name, ignores in (("gssm", True), ("gssm_aps", False)):
        loop = trained(name, evaluation={"fine_tune_updates": 1})
        policy, observation = loop.algorithm.policy, torch.randn(2, 4)
        inputs = [policy.inputs(observation, torch.randn(2, 8)[:, : max(policy.latent_dim, 1)]) for _ in range(2)]
        assert torch.equal(*inputs) == ignores
        assert (tune(loop, believed(loop)) is not None) == ignores
