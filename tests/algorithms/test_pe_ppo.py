"""PE-PPO: contexts of the prior, z in acting and in learning, who trains the encoder, what is refused."""

from __future__ import annotations

import pytest
import torch
from fakes import fingerprint, words

from mbrl_lightning.errors import ConfigError
from mbrl_lightning.policies.ppo import ClipLoss

SMALL = words(
    "env.name=point_goal search.updates=1 search.tasks=3 search.horizon=20 search.minibatch=40 pearl.context=40 "
    "pearl.latent_dim=2 evaluation.context=40"
)


@pytest.fixture(params=["mean", "product"])
def loop(make_loop, request):
    return make_loop("pe_ppo", **SMALL, **{"pearl.pooling": request.param})


def learned_from(loop, monkeypatch):
    """What `PPO.learn` is given in one update: the rows and what refreshes them."""
    given, learn = [], loop.algorithm.ppo.learn

    def record(policy, rows, step, optimizer, generator, refresh):
        given.append((rows, refresh))
        return learn(policy, rows, step, optimizer, generator, refresh)

    monkeypatch.setattr(loop.algorithm.ppo, "learn", record)
    before = [value.clone() for value in loop.algorithm.encoder.parameters()]
    loop.algorithm.improve(loop.world, loop.step)
    return *given[0], before


def test_an_update_learns_from_contexts_of_the_prior_and_from_episodes_of_the_posterior(loop, monkeypatch):
    rows, refresh, before = learned_from(loop, monkeypatch)
    assert loop.real.num_steps == len(rows) == 3 * (40 + 20)
    assert loop.real.transitions()["exploratory"].sum() == 3 * 40
    task = rows["task"].view(-1)
    assert task.bincount().tolist() == [20, 20, 20, 40, 40, 40]  # own beliefs, then the prior of each
    prior = task >= 3
    gain = loop.algorithm.policy.gain
    torch.testing.assert_close(rows["inputs"][prior, 2:], gain * rows["noise"][prior])
    assert len(rows["inputs"][prior, 2:].unique(dim=0)) == 3 * 2  # once an episode
    assert any(not torch.equal(old, new) for old, new in zip(before, loop.algorithm.encoder.parameters(), strict=True))
    with torch.no_grad():
        batch = rows.clone()
        refresh(batch)
    assert torch.equal(batch["inputs"], rows["inputs"])  # the policy's stay those that acted
    torch.testing.assert_close(batch["seen"][prior], rows["seen"][prior])
    assert not torch.allclose(batch["seen"][~prior], rows["seen"][~prior])  # the encoder has moved since


def test_the_value_sees_the_z_that_acted_until_the_encoder_moves(loop, monkeypatch):
    monkeypatch.setattr(loop.algorithm.ppo, "learn", lambda *args: given.append(args) or {})
    given: list = []
    loop.algorithm.improve(loop.world, loop.step)
    _, rows, *_, refresh = given[0]
    batch = rows.clone()
    refresh(batch)
    torch.testing.assert_close(batch["seen"].detach(), rows["seen"], rtol=0, atol=1e-5)


def test_the_critic_and_the_divergence_train_the_encoder_and_the_policy_does_not(loop, monkeypatch):
    rows, refresh, _ = learned_from(loop, monkeypatch)
    algorithm, encoder = loop.algorithm, list(loop.algorithm.encoder.parameters())
    kl = refresh(rows)["loss_kl"]
    out = ClipLoss(algorithm.policy, algorithm.ppo.value, algorithm.cfg.search)(rows)
    for loss, moves in ((kl, True), (out["loss_critic"], True), (out["loss_objective"], False)):
        slopes = torch.autograd.grad(loss, encoder, retain_graph=True, allow_unused=True)
        assert any(slope is not None and bool((slope != 0).any()) for slope in slopes) == moves


def test_a_belief_is_inferred_from_the_context_and_acts_by_its_mean(loop):
    algorithm = loop.algorithm
    belief = algorithm.begin(3)
    assert (belief["loc"] == 0).all()
    assert (belief["scale"] == 1).all()
    held = fingerprint(belief.to_dict())
    (context,) = loop.world.interact(loop.family.test, *algorithm.explorer(3), 40, torch.Generator().manual_seed(0))
    told = algorithm.adapt(belief, context)
    alone = algorithm.adapt(belief[1:2], context[1:2])
    torch.testing.assert_close(told["loc"][1:2], alone["loc"])
    assert fingerprint(belief.to_dict()) == held
    assert torch.equal(algorithm.adapt(belief, context[:, :0])["loc"], belief["loc"])
    _, after = algorithm.act(told, torch.zeros(3, 3))
    assert torch.equal(after["latent"], told["loc"])
    _, drawn = algorithm.act(told, torch.zeros(3, 3), torch.Generator().manual_seed(0))
    assert not torch.allclose(drawn["latent"], told["loc"])


def test_a_family_of_one_task_is_refused(make_loop):
    with pytest.raises(ConfigError, match="one task in the whole family") as refused:
        make_loop("pe_ppo", env={"name": "point2d", "options": {}})
    assert refused.value.exit_code == 2
