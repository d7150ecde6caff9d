"""GrBAL with a soft actor-critic: what it is asked, and how often it learns."""

from __future__ import annotations

import pytest
import torch
from fakes import generator

from mbrl_lightning.algorithms.guided import SoftGuide
from mbrl_lightning.config import compose
from mbrl_lightning.errors import ConfigError

TINY = {"sac.updates_per_step": 0.5, "sac.batch": 8}


def test_the_first_candidate_made_in_each_member_is_the_policys_best(tiny, cartpole):
    from mbrl_lightning.algorithms import make_algorithm

    algorithm = make_algorithm(tiny("grbal_sac", **TINY), cartpole)
    guide = SoftGuide(algorithm.policy, 4, 2)
    seen = torch.randn(3, 4, cartpole.spec.observation_dim, generator=generator())
    rows, nothing = seen.flatten(0, 1), torch.zeros(12, 0)
    best = algorithm.policy.act(rows, {"latent": nothing}).view(3, 4, -1)
    proposed = guide.propose(seen, generator(1))
    torch.testing.assert_close(proposed[:, ::2], best[:, ::2])
    assert (proposed[:, 1::2] - best[:, 1::2]).abs().min() > 1e-3
    inputs = algorithm.policy.inputs(rows, nothing)["current"].expand(2, -1, -1)
    with torch.no_grad():
        both = algorithm.policy.sac.q.decide(inputs, best.flatten(0, 1)).squeeze(-1)
        torch.testing.assert_close(guide.value(seen).flatten(), both.amin(0))


def test_both_collect_and_what_the_planner_made_is_replayed_once(make_loop, monkeypatch):
    loop, fresh, own = make_loop("grbal_sac", **TINY, **{"loop.iterations": 3}), [], []
    policy = loop.algorithm.policy
    monkeypatch.setattr(policy, "replay", lambda decisions, steps, *_: fresh.append(steps))
    learn = policy.learn

    def counted(parts, *rest):
        before = loop.real.num_steps
        found = learn(parts, *rest)
        own.append(loop.real.num_steps - before)
        return found

    monkeypatch.setattr(policy, "learn", counted)
    loop.fit()
    assert len(own) == len(fresh) == 3
    assert min(own) > 0
    assert min(fresh) > 0
    assert sum(own) + sum(fresh) == loop.real.num_steps
    assert {row.metric for row in loop.results.rows} >= {
        "real/return",
        "real/return_policy",
    }  # the planner's, the policy's


def test_plan_and_value_discount_alike():
    words = {"conf": "half_cheetah_disabled", "algorithm": "grbal_sac", "sac.gamma": 0.95}
    with pytest.raises(ConfigError, match=r"planner.gamma=0.99: .* sac.gamma=0.95"):
        compose(words)
    assert compose(words | {"planner.gamma": 0.95}).planner.gamma == 0.95
