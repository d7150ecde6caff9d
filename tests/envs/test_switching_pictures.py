"""The body's colour tells the hidden task, to who watches and to nobody else."""

import numpy as np
import pytest
import torch

from mbrl_lightning.envs import make_family


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", ["half_cheetah_fwd_bwd", "half_cheetah_pier", "ant_crippled_leg", "humanoid_direc"])
def test_colours_follow_the_hidden_task(name):
    family = make_family(name, switch_every_steps=2, jitter=0.0)
    sim, seen = family.simulate(family.test[:1]), {}
    sim.reset(generator())
    for _ in range(8):
        seen.setdefault(tuple(sim.tasks[0].tolist()), sim._base._models[0].geom_rgba.copy())
        fresh = family.simulate(sim.tasks)._base._models[0]
        np.testing.assert_array_equal(sim._base._models[0].geom_rgba, fresh.geom_rgba)
        sim.step(torch.zeros(1, family.spec.action_dim))
    first, second, *_ = seen.values()
    assert not np.array_equal(first, second)


def test_point_picture_follows_the_hidden_task():
    sim = make_family("point_switch", switch_every_steps=1, jitter=0.0).simulate(torch.tensor([[1.0]]))
    sim.reset(generator())
    before = sim.render()
    blue = (before[..., 2] > 180) & (before[..., 0] < 60)
    sim.step(torch.zeros(1, 2))
    after = sim.render()
    assert blue.sum() > 100
    assert not ((after[..., 2] > 180) & (after[..., 0] < 60)).any()
