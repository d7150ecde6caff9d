"""ACKTR: an actor and a critic by natural gradients in the true simulator."""

from __future__ import annotations

import pytest
from fakes import fingerprint

from mbrl_lightning.errors import ConfigError

SEARCH = {"updates": 2, "tasks": 3, "horizon": 12, "epochs": 3}


@pytest.mark.parametrize("env", ["point2d", "acrobot"])
def test_actor_and_critic_move_and_every_step_is_counted(make_loop, env):
    loop = make_loop("acktr", search=SEARCH, env={"name": env, "options": {}})
    before = fingerprint(dict(loop.algorithm.named_parameters()))
    found = loop.algorithm.improve(loop.world, loop.step)
    assert loop.real.num_steps == len(loop.real) == 2 * 3 * 12
    assert 0 < found["train/kl"] < 0.1
    after = fingerprint(dict(loop.algorithm.named_parameters()))
    still = {name for name, value in before.items() if after[name] == value}
    assert still <= {".policy.log_std"}
    assert bool(still) == loop.algorithm.spec.discrete


def test_a_policy_without_layers_is_refused(make_loop):
    with pytest.raises(ConfigError, match=r"policy\.kind=rbf: Kronecker factors are of layers"):
        make_loop("acktr", policy={"kind": "rbf"}, env={"name": "point2d", "options": {}})


def test_more_steps_of_the_critic_leave_a_smaller_error(make_loop):
    def error(epochs):
        loop = make_loop(
            "acktr", search=SEARCH | {"epochs": epochs, "updates": 1}, env={"name": "point2d", "options": {}}
        )
        return loop.algorithm.improve(loop.world, loop.step)["train/loss_critic"]

    assert error(20) < 0.5 * error(1)
