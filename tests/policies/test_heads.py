"""Belief-conditioned policies: bounds, noise, many policies at once."""

from __future__ import annotations

import pytest
import torch
from fakes import plain_spec
from tensordict import TensorDict

from mbrl_lightning.config.schema import PolicyConfig
from mbrl_lightning.policies.heads import Policy, Value

CONTINUOUS, DISCRETE = plain_spec(), plain_spec(action=3, discrete=True)


def policy(spec=CONTINUOUS, latent: int = 2, copies: int = 1, squash: bool = False, **cfg) -> Policy:
    torch.manual_seed(0)
    return Policy(spec, PolicyConfig(**{"hidden": [8], **cfg}), latent, copies, squash)


def belief(tasks: int, latent: int = 2, seed: int = 0) -> TensorDict:
    value = torch.randn(tasks, latent, generator=torch.Generator().manual_seed(seed))
    return TensorDict({"latent": value}, batch_size=[tasks])


@pytest.mark.parametrize("kind", ["mlp", "rbf"])
def test_actions_depend_on_the_belief_only_if_conditioned(kind):
    observation = torch.randn(4, 3)
    for latent, differs in ((2, True), (0, False)):
        net = policy(latent=latent, kind=kind)
        one, other = net.act(observation, belief(4)), net.act(observation, belief(4, seed=1))
        assert one.shape == (4, 2)
        assert torch.equal(one, other) != differs


def test_squashed_means_stay_within_the_action_space():
    net = policy(squash=True)
    with torch.no_grad():
        net.net[-1].bias.fill_(100.0)
    assert (net.act(torch.randn(5, 3), belief(5)) == 1).all()


def test_a_policy_for_ppo_starts_near_zero():
    net = policy()
    assert net.act(torch.randn(100, 3), belief(100)).abs().max() < 0.3


@pytest.mark.parametrize("squash", [False, True])
def test_own_policies_in_the_belief_act_each_in_its_row(squash):
    deployed, many = policy(squash=squash), policy(copies=4, squash=squash)
    held = belief(4)
    own = {name: value.detach() for name, value in many.net.named_parameters()}
    held["policy"] = TensorDict(own, batch_size=[4])
    observation = torch.randn(4, 3)
    actions = deployed.act(observation, held)
    for row in range(4):
        single = policy(squash=squash)
        single.net.load_state_dict({name: value[row : row + 1] for name, value in own.items()})
        torch.testing.assert_close(
            actions[row : row + 1], single.act(observation[row : row + 1], belief(4)[row : row + 1])
        )


def test_own_policies_follow_their_rows_when_the_belief_is_repeated():
    deployed, many = policy(), policy(copies=2)
    held = belief(2)
    held["policy"] = TensorDict({n: v.detach() for n, v in many.net.named_parameters()}, batch_size=[2])
    rows = torch.tensor([1, 0, 1])
    observation = torch.randn(1, 3).expand(3, 3)
    actions = deployed.act(observation, held[rows])
    torch.testing.assert_close(actions[0], actions[2])
    assert not torch.allclose(actions[0], actions[1])


def test_gaussian_noise_has_the_policys_deviation():
    net, generator = policy(initial_std=0.3), torch.Generator().manual_seed(0)
    loc = torch.full((20_000, 2), 0.5)
    actions = net.choose(loc, net.noise((20_000,), generator)).detach()
    torch.testing.assert_close(actions.mean(0), torch.full((2,), 0.5), atol=0.01, rtol=0)
    torch.testing.assert_close(actions.std(0), torch.full((2,), 0.3), atol=0.01, rtol=0)
    assert torch.equal(net.choose(loc), loc)


def test_discrete_choices_follow_the_softmax_and_greedy_the_best():
    net, generator = policy(DISCRETE), torch.Generator().manual_seed(0)
    logits = torch.tensor([0.0, 2.0, 1.0]).expand(20_000, 3)
    actions = net.choose(logits, net.noise((20_000,), generator))
    assert (actions.sum(1) == 1).all()
    torch.testing.assert_close(actions.mean(0), torch.softmax(logits[0], 0), atol=0.02, rtol=0)
    assert torch.equal(net.choose(logits)[0], torch.tensor([0.0, 1.0, 0.0]))


def test_noise_at_its_ends_gives_a_valid_choice():
    net = policy(DISCRETE)
    for value in (0.0, 1.0 - 2**-24):
        assert net.choose(torch.zeros(1, 3), torch.full((1, 3), value)).sum() == 1


def test_forward_is_the_first_copy_with_its_deviation():
    net = policy(copies=3, initial_std=0.4)
    inputs = torch.randn(2, 5, 5)
    loc, scale = net(inputs)
    torch.testing.assert_close(loc, net.head(inputs.view(1, 10, 5).expand(3, 10, 5))[0].view(2, 5, 2))
    torch.testing.assert_close(scale, torch.full((2, 5, 2), 0.4))


def test_a_value_for_every_input():
    assert Value(5, PolicyConfig(hidden=[8]))(torch.randn(2, 3, 5), torch.rand(2, 3, 1)).shape == (2, 3, 1)
