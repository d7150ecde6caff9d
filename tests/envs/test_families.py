"""What holds for every task family, and the fixed sizes of the test splits."""

from dataclasses import replace

import pytest
import torch
from fakes import generator, shortened

from mbrl_lightning.check_env import check_family
from mbrl_lightning.envs import FAMILIES, make_family
from mbrl_lightning.envs.family import Box
from mbrl_lightning.errors import ConfigError

NAMES = list(FAMILIES)
WITHOUT_EXTREME = set(NAMES[7:]) - {"payload_quadcopter"}
SIZES = dict.fromkeys(NAMES, (20, 200, 200, "episode")) | dict.fromkeys(NAMES[7:14], (20, 200, 1000, "episode"))
SIZES |= dict.fromkeys(("cartpole", "cartpole_wide"), (50, 50, 25, "step")) | {"acrobot": (33, 50, 200, "step")}
SIZES |= dict.fromkeys(("half_cheetah", "slim_humanoid"), (16, 500, 1000, "episode"))
SIZES |= dict.fromkeys(("half_cheetah_wide", "half_cheetah_flip"), (20, 500, 1000, "episode"))
SIZES |= dict.fromkeys(("half_cheetah_disabled", "half_cheetah_slopes"), (20, 500, 1000, "episode"))
SIZES |= {"payload_quadcopter": (20, 40, 60, "step")}
SIZES |= {"famle_reacher": (20, 50, 50, "episode"), "famle_ant": (16, 50, 1000, "episode")}
SIZES |= {"point_switch": (20, 50, 200, "episode"), "point2d": (20, 30, 30, "episode")}
SIZES |= {"point_goal": (20, 200, 20, "episode")}


@pytest.mark.parametrize("name", NAMES)
def test_sizes_units_and_splits_are_fixed(name):
    family, again = make_family(name), make_family(name)
    size = len(family.test), family.context_steps, family.spec.horizon, family.spec.unit
    assert size == SIZES[name]
    assert family.spec.name == name
    assert family.test.dtype == family.sample(2, generator()).dtype == torch.float64
    assert family.test.equal(again.test)
    assert family.extreme.equal(again.extreme)
    assert len(family.extreme) >= 16 or name in WITHOUT_EXTREME


@pytest.mark.parametrize("name", ["cartpole", "acrobot", "cartpole_wide", "half_cheetah_wide"])
def test_test_tasks_lie_inside_and_extreme_ones_outside(name):
    family = make_family(name)
    assert family.scale(family.test).abs().max() <= 1
    assert (family.scale(family.extreme).abs().amax(1) > 1).all()
    assert family.scale(family.sample(2000, generator())).abs().max() > 0.98


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("cartpole", [1.7427588930499698, 0.8329862872932078]),
        ("half_cheetah_wide", [1.6478122460102675, 0.8150462205749295]),
    ],
)
def test_first_test_tasks_never_change(name, task):
    """A change here makes published numbers incomparable."""
    torch.testing.assert_close(make_family(name).test[0], torch.tensor(task, dtype=torch.float64))


def test_grids_and_their_overlap_with_the_test():
    family = make_family("half_cheetah")
    assert len(family.sample(500, generator()).unique(dim=0)) == len(family.grid) == 25
    assert family.test.unique().tolist() == [0.85, 0.95, 1.05, 1.15]
    family.check_disjoint()
    for split in ("test", "extreme"):
        with pytest.raises(ConfigError, match=f"{split} task .* is also a training task"):
            replace(family, **{split: family.grid[3:5]}).check_disjoint()


def test_flip_reverses_at_most_one_joint():
    family = make_family("half_cheetah_flip")
    drawn = family.sample(4000, generator())
    reversed_joints = (drawn < 0).sum(1)
    assert reversed_joints.max() == 1
    assert abs((reversed_joints == 0).double().mean() - 1 / 7) < 0.03
    assert ((drawn.abs() >= 0.7) & (drawn.abs() <= 1.3)).all()
    assert ((family.extreme < 0).sum(1) == 2).all()


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        (lambda: make_family("cartpol"), "did you mean 'cartpole'"),
        (lambda: make_family("cartpole").simulate(torch.ones(3, 3)), "do not fit"),
        (lambda: Box((1.0,), (1.0,)), "not low < high"),
        (lambda: Box((0.0,), (1.0,), log=True), "positive ends"),
    ],
)
def test_what_makes_no_family_no_task_and_no_range_is_refused(refused, message):
    with pytest.raises(ConfigError, match=message):
        refused()


def test_log_box_is_uniform_in_logarithms():
    box = Box((1 / 3,), (3.0,), log=True)
    drawn = box.sample(20000, generator())
    assert abs((drawn < 1).double().mean() - 0.5) < 0.02
    torch.testing.assert_close(box.scale(torch.tensor([[1 / 3], [1.0], [3.0]])), torch.tensor([[-1.0], [0], [1]]))


@pytest.mark.parametrize("name", NAMES)
def test_check_env_passes(name):
    assert not [check for check in check_family(shortened(make_family(name), 40, test=20)) if not check.passed]


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
