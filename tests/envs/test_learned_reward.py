"""Any family with the reward just received as the last entry of its observation."""

from __future__ import annotations

import pytest
import torch
from fakes import counter_family, generator, random_steps

from mbrl_lightning.check_env import main
from mbrl_lightning.envs import make_family
from mbrl_lightning.envs.learned_reward import learned_reward
from mbrl_lightning.envs.spec import exchanged, never
from mbrl_lightning.errors import ConfigError, EnvError


@pytest.mark.parametrize("name", ["half_cheetah", "hopper"])
def test_all_else_stays_and_the_last_entry_is_what_the_step_paid(name):
    plain = make_family(name)
    family, tasks = learned_reward(plain), plain.test[:2]
    before, data = (random_steps(each, tasks, 60, generator()) for each in (plain, family))
    seen, following = data["observation"], data["next", "observation"]
    assert seen[..., :-1].equal(before["observation"])
    assert following[..., -1:].equal(before["next", "reward"])
    assert data["next", "reward"].equal(before["next", "reward"])
    assert not seen[..., -1][data["initial"]].any()
    assert data["next", "done"].equal(before["next", "done"])
    spec, own = family.spec, plain.spec
    assert (spec.feature_dim, spec.target_dim) == (own.feature_dim, own.target_dim + 1)
    rebuilt = spec.untarget(seen, spec.target(seen, following))
    assert rebuilt[..., -1].equal(following[..., -1])
    assert rebuilt[..., :-1].equal(own.untarget(seen[..., :-1], spec.target(seen, following)[..., :-1]))
    if own.metrics is not None:
        told, known = spec.metrics(data), own.metrics(before)
        assert all(told[key].equal(known[key]) for key in known)
    assert (spec.termination is never) == (own.termination is never)


def test_a_mirror_image_is_paid_the_same():
    mirror = exchanged([1, 0], [1, 1]), exchanged([0], [-1])
    seen, turned = learned_reward(counter_family(8, mirror=mirror)).spec.mirror
    assert seen(torch.tensor([1.0, 2.0, 3.0])).tolist() == [2.0, 1.0, 3.0]
    assert turned(torch.ones(1)) == -1


@pytest.mark.parametrize("name", ["point_goal", "point_switch"])
def test_a_reward_that_is_an_entry_already_is_refused(name, capsys):
    with pytest.raises(ConfigError, match="as it is"):
        learned_reward(make_family(name))
    assert main([name, "env.learned_reward=true"]) == 2
    assert "Leave env.learned_reward out" in capsys.readouterr().err


def test_a_reward_that_is_not_finite_ends_the_run():
    family = learned_reward(counter_family(8, reward=lambda o, a, n: n[..., 0] / 0.0))
    simulator = family.simulate(torch.ones(2, 1))
    simulator.reset(generator())
    with pytest.raises(EnvError, match="previous_reward"):
        simulator.step(torch.zeros(2, 1))


@pytest.mark.parametrize(
    "name", ["gssm_aps-ppo", "m3po", "grbal", "mb_mpo", "admrl"]
)  # the generic tests have the others
def test_methods_of_each_kind_train_with_it(make_loop, name):
    name, _, search = name.partition("-")
    cfg = {"search": {"method": search}} if search else {}
    loop = make_loop(name, env={"learned_reward": True}, loop={"iterations": 1}, **cfg)
    loop.evaluate = lambda full: {}
    loop.fit()
    assert loop.family.spec.observation_names[-1] == "previous_reward"
