"""AdMRL: what a task pays is believed, and tasks move to where the policy is worst."""

from __future__ import annotations

import pytest
import torch
from fakes import generator, random_steps

from mbrl_lightning.errors import ConfigError

POINT = {"env": {"name": "point_goal", "options": {}}}
LOOP = {"iterations": 1, "tasks_per_iteration": 4, "exploration_steps": 40, "first_model_steps": 400, "model_steps": 0}
SIZES = {"dynamics": {"hidden": 32, "tasks": 4, "context": 8, "targets": 32}, "policy": {"hidden": [8]}}
SEARCH = {"updates": 2, "tasks": 4, "rollouts": 1, "restarts": 1, "horizon": 20}


@pytest.fixture
def loop(make_loop):
    fine = {"fine_tune_updates": 30, "fine_tune_lr": 0.05}
    made = make_loop("admrl", loop=LOOP, search=SEARCH, admrl={"share": 1.0}, evaluation=fine, **SIZES, **POINT)
    made.fit()
    return made


def test_the_task_is_believed_that_paid_what_was_seen(loop):
    algorithm, family = loop.algorithm, loop.algorithm.family
    data, nothing = random_steps(family, family.test, 20, generator()), algorithm.begin(len(family.test))
    belief = algorithm.adapt(algorithm.adapt(nothing, data[:, :8]), data[:, 8:])
    assert (belief["task"] - family.test).norm(dim=1).max() < 0.1
    torch.testing.assert_close(belief["errors"], algorithm.adapt(nothing, data)["errors"])
    assert nothing["task"].norm(dim=1).max() < 0.2  # the middle of the circle


def test_imagination_pays_what_the_belief_says(loop):
    algorithm = loop.algorithm
    belief, seen = algorithm._told(torch.tensor([[1.0, 0.0], [0.0, 1.0]])), torch.zeros(2, 5, 3)
    following = algorithm.dynamics.imagine(seen, torch.ones(2, 5, 2), belief)
    assert following[0, :, :2].equal(following[1, :, :2])
    torch.testing.assert_close(following[..., 2], -(following[..., :2] - belief["task"].unsqueeze(1)).norm(dim=-1))


def test_tasks_move_to_where_the_policy_does_worst(loop):
    algorithm, net = loop.algorithm, loop.algorithm.policy.net
    with torch.no_grad():
        for layer in net.affine:
            layer.weight.zero_()
            layer.bias.zero_()
        net.affine[-1].bias.copy_(torch.tensor([[[0.5, 0.0]]]))  # to the right, whatever the goal
        angles = torch.tensor([0.6, -0.6, 1.2, -1.2])
        algorithm.moved.copy_(torch.stack([angles.cos(), angles.sin()], 1))
    gaps = [algorithm.attack(loop.real, loop.step)["train/gap"] for _ in range(6)]
    assert (algorithm.moved[:, 0] < -0.7).all()
    assert gaps[-1] > 2 * gaps[0]
    drawn = algorithm.drawn(loop.world, 6)
    assert drawn[:4].float().equal(algorithm.moved)
    assert (drawn[4:].norm(dim=1) - 1).abs().max() < 1e-6


def test_one_task_is_refused_and_tasks_that_do_not_say_what_they_pay_are_left_alone(make_loop, caplog):
    with pytest.raises(ConfigError, match="there is one task in the whole family"):
        make_loop("admrl", env={"name": "point2d", "options": {}})
    algorithm = make_loop("admrl", search=SEARCH, **SIZES).algorithm
    assert "tasks do not say what they pay" in caplog.text
    assert not len(algorithm.moved)
