"""A family that shows its hidden task: the same physics, the task beside it, and nothing else."""

from __future__ import annotations

import pytest
import torch

from mbrl_lightning.envs import make_family


@pytest.mark.parametrize("name", ["point_switch", "half_cheetah_fwd_bwd"])
def test_the_task_in_force_is_in_sight_and_all_else_is_as_it_was(name):
    options = {"switch_every_steps": 4, "flip": True}
    hidden, told = make_family(name, **options), make_family(name, told=True, **options)
    tasks, actions = hidden.test[:2], torch.Generator().manual_seed(0)
    plain, seen = hidden.simulate(tasks), told.simulate(tasks)
    one = plain.reset(torch.Generator().manual_seed(1))
    two = seen.reset(torch.Generator().manual_seed(1))
    shown = set()
    for _ in range(12):
        assert torch.equal(torch.cat([two[:, :-2], two[:, -1:]], 1), one)
        assert torch.equal(two[:, -2:-1].double(), plain.tasks)
        shown.add(float(two[0, -2]))
        action = hidden.spec.random_action((2,), actions)
        before, after = two, seen.step(action)
        one, two = plain.step(action), after
        spec = told.spec
        torch.testing.assert_close(spec.untarget(before, spec.target(before, after)), after)
        assert torch.equal(spec.reward(before, action, after), one[:, -1])
    assert shown == {-1.0, 1.0}
    assert told.spec.feature_dim == hidden.spec.feature_dim + 1
    assert told.spec.observation_dim == len(told.spec.observation_names) == two.shape[1]
    plain.close()
    seen.close()
