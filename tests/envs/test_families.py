"""What holds for every task family, and the fixed sizes of the test splits."""

import pytest
import torch

from mbrl_lightning.check_env import check_family
from mbrl_lightning.envs import FAMILIES, TaskFamily, make_family
from mbrl_lightning.envs.family import Box, draw_from, grid_of
from mbrl_lightning.errors import ConfigError

NAMES = list(FAMILIES)
SIZES = {
    "cartpole": (50, 50, 25, "step"),
    "acrobot": (33, 50, 200, "step"),
    "half_cheetah": (16, 500, 1000, "episode"),
    "slim_humanoid": (16, 500, 1000, "episode"),
    "cartpole_wide": (50, 50, 25, "step"),
    "half_cheetah_wide": (20, 500, 1000, "episode"),
    "half_cheetah_flip": (20, 500, 1000, "episode"),
    "point_switch": (20, 50, 200, "episode"),
    "half_cheetah_fwd_bwd": (20, 200, 1000, "episode"),
    "half_cheetah_pier": (20, 200, 1000, "episode"),
    "ant_fwd_bwd": (20, 200, 1000, "episode"),
    "ant_crippled_leg": (20, 200, 1000, "episode"),
    "walker2d_random_params": (20, 200, 1000, "episode"),
    "humanoid_direc": (20, 200, 1000, "episode"),
    "swimmer": (20, 200, 200, "episode"),
    "hopper": (20, 200, 200, "episode"),
    "walker2d": (20, 200, 200, "episode"),
    "ant": (20, 200, 200, "episode"),
    "half_cheetah_200": (20, 200, 200, "episode"),
    "arm_reach": (20, 200, 200, "episode"),
    "point2d": (20, 30, 30, "episode"),
    "half_cheetah_disabled": (20, 500, 1000, "episode"),
}
WITHOUT_EXTREME = NAMES[7:]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", NAMES)
def test_sizes_and_units(name):
    family = make_family(name)
    size = len(family.test), family.context_steps, family.spec.horizon, family.spec.unit
    assert size == SIZES[name]
    assert family.spec.name == name
    assert family.test.dtype == family.sample(2, generator()).dtype == torch.float64


@pytest.mark.parametrize("name", NAMES)
def test_splits_are_fixed(name):
    first, second = make_family(name), make_family(name)
    assert first.test.equal(second.test)
    assert first.extreme.equal(second.extreme)
    assert len(first.extreme) >= 16 or name in WITHOUT_EXTREME


@pytest.mark.parametrize("name", ["cartpole", "acrobot", "cartpole_wide", "half_cheetah_wide"])
def test_test_tasks_lie_inside_and_extreme_ones_outside(name):
    family = make_family(name)
    assert family.scale(family.test).abs().max() <= 1
    assert (family.scale(family.extreme).abs().amax(1) > 1).all()
    assert family.scale(family.sample(2000, generator())).abs().max() > 0.98


def test_first_test_tasks_never_change():
    """A change here makes published numbers incomparable."""
    torch.testing.assert_close(
        make_family("cartpole").test[0],
        torch.tensor([1.7427588930499698, 0.8329862872932078], dtype=torch.float64),
    )
    torch.testing.assert_close(
        make_family("half_cheetah_wide").test[0],
        torch.tensor([1.6478122460102675, 0.8150462205749295], dtype=torch.float64),
    )


def test_grids():
    family = make_family("half_cheetah")
    assert family.grid is not None
    assert family.grid.shape == (25, 2)
    drawn = family.sample(500, generator())
    assert len(torch.unique(drawn, dim=0)) == 25
    assert sorted(set(family.test.flatten().tolist())) == [0.85, 0.95, 1.05, 1.15]


def test_flip_reverses_at_most_one_joint():
    family = make_family("half_cheetah_flip")
    drawn = family.sample(4000, generator())
    reversed_joints = (drawn < 0).sum(1)
    assert reversed_joints.max() == 1
    assert abs((reversed_joints == 0).double().mean() - 1 / 7) < 0.03
    assert ((drawn.abs() >= 0.7) & (drawn.abs() <= 1.3)).all()
    assert ((family.extreme < 0).sum(1) == 2).all()


def test_overlap_of_test_and_training_grid_is_refused():
    family = make_family("half_cheetah")
    grid = family.grid
    assert grid is not None
    bad = TaskFamily(
        family.spec, family.parameters, draw_from(grid), family.build, family.rescale, grid[3:5], grid=grid
    )
    with pytest.raises(ConfigError, match="also a training task"):
        bad.check_disjoint()


def test_unknown_names_and_options_name_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'cartpole'"):
        make_family("cartpol")
    with pytest.raises(ConfigError, match="did you mean 'tip_sign'"):
        make_family("cartpole", tipsign=1)


def test_tasks_of_the_wrong_shape_are_refused():
    with pytest.raises(ConfigError, match="do not fit"):
        make_family("cartpole").simulate(torch.ones(3, 3))


@pytest.mark.parametrize(("low", "high", "log"), [((1.0,), (1.0,), False), ((0.0,), (1.0,), True)])
def test_bad_ranges_are_refused(low, high, log):
    with pytest.raises(ConfigError):
        Box(low, high, log)


def test_log_box_is_uniform_in_logarithms():
    box = Box((1 / 3,), (3.0,), log=True)
    drawn = box.sample(20000, generator())
    assert abs((drawn < 1).double().mean() - 0.5) < 0.02
    torch.testing.assert_close(box.scale(torch.tensor([[1 / 3], [1.0], [3.0]])), torch.tensor([[-1.0], [0], [1]]))


def test_grid_of():
    assert grid_of((1, 2), (3, 4, 5)).tolist()[:3] == [[1, 3], [1, 4], [1, 5]]


@pytest.mark.parametrize("name", NAMES)
def test_check_env_passes(name):
    family = make_family(name)
    short = family.spec.__class__(**{**family.spec.__dict__, "horizon": 40})
    object.__setattr__(family, "spec", short)
    failed = [check for check in check_family(family) if not check.passed]
    assert not failed


@pytest.mark.parametrize("name", NAMES)
def test_reset_draws_do_not_depend_on_the_mask(name):
    family = make_family(name)
    simulator = family.simulate(family.test[:3])
    everyone = simulator.reset(generator(5))
    some = simulator.reset(generator(5), torch.tensor([True, False, True]))
    assert some.equal(everyone)


@pytest.mark.parametrize("name", NAMES)
def test_functions_are_batched_and_differentiable(name):
    spec = make_family(name).spec
    observation = torch.rand(2, 5, spec.observation_dim, requires_grad=True)
    change = 0.01 * torch.rand(2, 5, spec.target_dim)
    action = spec.random_action((2, 5), generator())
    following = spec.untarget(observation, change)
    assert following.shape == observation.shape
    assert spec.termination(following).shape == (2, 5)
    assert spec.action_features(action).shape == (2, 5, spec.action_feature_dim)
    (spec.reward(observation, action, following) + spec.features(following).sum(-1)).sum().backward()
    assert observation.grad is not None
    assert observation.grad.isfinite().all()
