"""TRPO in the true simulator."""

from __future__ import annotations

import pytest
import torch
from fakes import fingerprint

SEARCH = {"updates": 2, "tasks": 3, "horizon": 12}
POINT = {"env": {"name": "point2d", "options": {}}}


def test_every_step_is_counted_and_stored(make_loop):
    loop = make_loop("trpo", search=SEARCH, **POINT)
    metrics = loop.algorithm.improve(loop.world, loop.step)
    assert loop.real.num_steps == len(loop.real) == 2 * 3 * 12
    assert {"real/return", "train/kl", "train/surrogate", "train/accepted"} <= set(metrics)


def test_observations_are_standardised_once(make_loop):
    loop = make_loop("trpo", search=SEARCH, **POINT)
    norm = loop.algorithm.policy.norm
    loop.algorithm.improve(loop.world, loop.step)
    first = fingerprint(norm.state_dict())
    torch.testing.assert_close(norm.mean, loop.real.transitions()["observation"][:36].double().mean(0))
    loop.algorithm.iteration += 1
    loop.algorithm.improve(loop.world, loop.step)
    assert fingerprint(norm.state_dict()) == first


@pytest.mark.parametrize("env", ["point2d", "acrobot"])
def test_it_improves_on_the_rewarded_action(make_loop, env):
    loop = make_loop("trpo", search=SEARCH, env={"name": env, "options": {}})
    before = fingerprint(dict(loop.algorithm.policy.named_parameters()))
    found = loop.algorithm.improve(loop.world, loop.step)
    assert found["train/kl"] <= 0.01
    after = fingerprint(dict(loop.algorithm.policy.named_parameters()))
    assert any(after[name] != value for name, value in before.items())
