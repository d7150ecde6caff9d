"""Domain-randomised PPO, the model-free rival."""

from __future__ import annotations

import pytest
import torch
from fakes import shortened

from mbrl_lightning.algorithms.dr_ppo import DRPPO
from mbrl_lightning.envs import make_family

SEARCH = {"updates": 2, "tasks": 3, "horizon": 10}


def test_each_update_sees_new_tasks_and_all_steps_are_counted(make_loop):
    loop = make_loop("dr_ppo", search=SEARCH)
    loop.algorithm.improve(loop.world, loop.step)
    assert loop.real.num_steps == len(loop.real) == 2 * 3 * 10
    assert len(torch.unique(loop.real.tasks, dim=0)) == 6


def test_the_policy_acts_in_the_environment_with_its_own_noise(make_loop):
    algorithm = make_loop("dr_ppo", search=SEARCH).algorithm
    action, belief = algorithm.act(algorithm.begin(200), torch.zeros(200, 4), torch.Generator().manual_seed(0))
    assert 0.3 < action.std() < 1.0  # initial_std 0.6
    assert torch.equal(belief["taken", "action"], action)


def test_it_has_no_model_and_believes_nothing(make_loop):
    loop = make_loop("dr_ppo", search=SEARCH)
    assert loop.algorithm.dynamics is None
    rows = loop.fit().rows
    assert not [row for row in rows if row.metric.startswith(("model/", "probe/", "imagined/"))]
    assert {row.shot for row in rows if row.metric == "return/policy"} == {0}  # a context would change nothing
    assert not [row for row in rows if row.metric == "return/wrong_belief"]


@pytest.mark.parametrize("told", [False, True])
def test_the_oracle_is_told_the_scaled_parameters(tiny, told):
    family = shortened(make_family("cartpole"))
    algorithm = DRPPO(family, tiny("dr_ppo"), told=told)
    latent = algorithm.tell(family.test)["latent"]
    if told:
        torch.testing.assert_close(latent, family.scale(family.test).float())
    assert latent.shape == (3, 2 if told else 0)
