"""The table of contents, and what every algorithm must offer."""

from __future__ import annotations

import pytest
import torch
from fakes import fingerprint, shortened

from mbrl_lightning.algorithms import ALGORITHMS, make_algorithm
from mbrl_lightning.algorithms.base import Algorithm
from mbrl_lightning.config import available
from mbrl_lightning.data.collect import transition
from mbrl_lightning.envs import make_family
from mbrl_lightning.envs.learned_reward import learned_reward
from mbrl_lightning.errors import ConfigError

# candidates are drawn for all rows at once
PLANNED = ("grbal", "grbal_sac", "rebal", "mb_mpc", "variational", "ghp_mdp", "famle", "cadm")
CONTINUOUS = ("m3po", "m3po_h", "m2po", "recurrent_sac", "pearl", "ddpg", "sac", "grbal_sac", "mier", "admrl")


def test_every_algorithm_has_a_configuration_file_and_the_other_way_round():
    assert sorted(ALGORITHMS) == available("algorithm")


def test_unknown_algorithm_names_the_nearest(tiny, cartpole):
    cfg = tiny()
    cfg.algorithm = "gssm_asp"
    with pytest.raises(ConfigError, match="gssm_aps"):
        make_algorithm(cfg, cartpole)


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_weights_come_from_the_seed_alone(tiny, cartpole, name):
    torch.manual_seed(123)
    first = fingerprint(make_algorithm(tiny(name, seed=4), cartpole).state_dict())
    torch.manual_seed(321)
    assert fingerprint(make_algorithm(tiny(name, seed=4), cartpole).state_dict()) == first
    assert fingerprint(make_algorithm(tiny(name, seed=5), cartpole).state_dict()) != first


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
@pytest.mark.parametrize("family", ["cartpole", "acrobot", "half_cheetah", "learned"])
def test_a_belief_is_carried_through_acting_and_adapting(tiny, name, family):
    """What begins, acts and adapts is a value: the same belief gives the same again, whatever was done in between."""
    family = shortened(learned_reward(make_family("cartpole")) if family == "learned" else make_family(family))
    cfg = tiny(name, search={"method": "ppo"})
    if family.spec.discrete and name in CONTINUOUS:
        with pytest.raises(ConfigError, match="discrete"):
            make_algorithm(cfg, family)
        return
    algorithm = make_algorithm(cfg, family)
    spec, belief = family.spec, algorithm.begin(4)
    assert belief.batch_size == (4,)
    assert belief["latent"].shape[0] == 4
    held, observation = fingerprint(belief.to_dict()), torch.randn(4, spec.observation_dim)
    action, after = algorithm.act(belief, observation)
    assert action.shape == (4, spec.action_dim)
    assert torch.isfinite(action).all()
    if spec.discrete:
        assert (action.sum(1) == 1).all()
    step = transition(observation, action, observation + 0.01 * torch.randn_like(observation))
    told = algorithm.adapt(after, step)
    assert told.batch_size == (4,)
    algorithm.act(told, observation, torch.Generator().manual_seed(0))
    assert fingerprint(belief.to_dict()) == held
    assert torch.equal(algorithm.act(belief, observation)[0], action)
    if name not in PLANNED:
        torch.testing.assert_close(algorithm.act(belief[1:3], observation[1:3])[0], action[1:3])


def test_an_algorithm_without_its_own_ways_has_the_plainest_ones(tiny, cartpole, recorded):
    plain = Algorithm(cartpole, tiny())
    belief = plain.begin(6)
    assert plain.adapt(belief, recorded[:, :5]) is belief
    assert belief["latent"].shape == (6, 0)
    assert plain.collectors(belief) is belief
    assert plain.shots(full=True) == [0]
    assert plain.fine_tune(belief, None, None, None) is None
    with pytest.raises(NotImplementedError):
        plain.improve(None, None)
