"""MAML and Reptile: what they are when an inner step is 0 or one, whose episodes are whose, and what they refuse."""

from __future__ import annotations

import copy

import pytest
import torch
from fakes import words
from tensordict import TensorDict

from mbrl_lightning.errors import ConfigError
from mbrl_lightning.policies.trust_region import TrustRegion, inner_loss

SMALL = words(
    "env.name=point_goal search.updates=1 search.tasks=3 search.horizon=20 meta.rollouts=4 meta.subsample=1 "
    "evaluation.context=40"
)
DAMPED = {"damping": 0.1, "subsample": 1}  # conjugate gradient makes much of the order of sums where it is not
KINDS = pytest.mark.parametrize("algorithm", ["maml", "reptile"])


def weights(policy):
    return {name: value.detach().clone() for name, value in policy.adaptable().items()}


def watched(algorithm):
    """The rows that `algorithm` samples from now on, as a list that grows."""
    seen, sampled = [], algorithm._sampled

    def record(*args):
        seen.append(sampled(*args))
        return seen[-1]

    algorithm._sampled = record
    return seen


def test_maml_with_an_inner_step_of_zero_is_trpo_on_the_episodes_of_all_tasks(make_loop):
    loop = make_loop("maml", **SMALL, **{"meta.inner_lr": 0.0, "meta.damping": DAMPED["damping"]})
    algorithm = loop.algorithm
    twin, seen = copy.deepcopy(algorithm.policy), watched(algorithm)
    before = weights(twin)
    algorithm.improve(loop.world, loop.step)
    (rows,) = seen  # one phase, [3 tasks, 4 episodes x 20 steps], and to TRPO one task
    assert rows.shape == (3, 80)
    pooled = rows.flatten().unsqueeze(0)
    TrustRegion(twin, algorithm.cfg.meta)(TensorDict({"target": pooled}, batch_size=[1]), loop.step)
    for name, value in weights(algorithm.policy).items():
        torch.testing.assert_close(value, weights(twin)[name], rtol=0, atol=1e-5)
        assert not torch.equal(value, before[name])
    assert algorithm.shots(full=True) == [0]
    assert algorithm.controls(algorithm.begin(2)) == {}


def test_maml_of_one_task_without_inner_steps_is_the_algorithm_trpo(make_loop):
    point = {"env": {"name": "point2d", "options": {}}}
    maml = make_loop("maml", search={"updates": 2, "tasks": 1}, meta=DAMPED | {"inner_lr": 0.0, "rollouts": 6}, **point)
    trpo = make_loop("trpo", search={"updates": 2, "tasks": 6}, meta=DAMPED, **point)
    trpo.algorithm.policy.load_state_dict(maml.algorithm.policy.state_dict())
    for loop in (maml, trpo):
        loop.algorithm.generator.manual_seed(5)
        loop.world.streams["envs"].manual_seed(6)
        loop.algorithm.improve(loop.world, loop.step)
    assert maml.real.num_steps == trpo.real.num_steps
    for name, value in weights(maml.algorithm.policy).items():
        torch.testing.assert_close(value, weights(trpo.algorithm.policy)[name], rtol=0, atol=1e-5)


def test_reptile_with_one_inner_step_is_gradient_descent_on_the_mixture_of_tasks(make_loop):
    loop = make_loop("reptile", **SMALL, **{"meta.inner_steps": 1, "meta.inner_lr": 0.3, "meta.outer_lr": 0.5})
    algorithm = loop.algorithm
    seen, before = watched(algorithm), weights(algorithm.policy)
    algorithm.improve(loop.world, loop.step)
    theta = {name: value.requires_grad_() for name, value in before.items()}
    each = {name: value.expand(3, *value.shape[1:]) for name, value in theta.items()}
    loss = inner_loss(algorithm.policy, seen[0])(each).mean()
    slopes = dict(zip(theta, torch.autograd.grad(loss, list(theta.values())), strict=True))
    for name, value in weights(algorithm.policy).items():
        torch.testing.assert_close(value, before[name].detach() - 0.5 * 0.3 * slopes[name], rtol=0, atol=1e-6)


@KINDS
def test_every_phase_is_sampled_by_the_policies_of_its_own_and_counted(make_loop, algorithm):
    loop = make_loop(algorithm, **SMALL, **{"meta.inner_steps": 2, "meta.inner_lr": 1.0})
    seen = watched(loop.algorithm)
    start = {name: value.clone() for name, value in loop.algorithm.outer.theta(3).items()}
    found = loop.algorithm.improve(loop.world, loop.step)
    phases = {"maml": 3, "reptile": 2}[algorithm]  # Reptile needs no episodes of where it ends
    assert len(seen) == phases
    assert loop.real.num_steps == len(loop.real) == phases * 3 * 4 * 20
    assert {"real/return", "real/adapted"} <= set(found)
    policy = loop.algorithm.policy
    first, second = (rows["loc"] for rows in seen[:2])
    stepped = loop.algorithm.inner_step(inner_loss(policy, seen[0]), start)
    own = [policy.distribution(rows["inputs"], p)[0] for rows, p in zip(seen, (start, stepped), strict=False)]
    torch.testing.assert_close(first, own[0].detach(), rtol=0, atol=1e-5)
    torch.testing.assert_close(second, own[1].detach(), rtol=0, atol=1e-5)
    assert not torch.allclose(second, policy.distribution(seen[1]["inputs"], start)[0].detach(), atol=1e-3)


@KINDS
def test_a_meta_test_adapts_and_has_the_policy_before_it_as_control(make_loop, algorithm):
    loop = make_loop(algorithm, **SMALL)
    own = loop.algorithm
    rows = loop.fit().rows
    assert {row.shot for row in rows if row.metric == "return/policy"} == {0, 40}
    assert {"return/unadapted", "return/wrong_belief"} <= {row.metric for row in rows}
    ((name, belief),) = own.controls(own.begin(3)).items()
    assert name == "unadapted"
    assert "policy" not in belief.keys()  # noqa: SIM118 - a TensorDict has no `in`


@KINDS
def test_a_family_of_one_task_is_refused(make_loop, algorithm):
    with pytest.raises(ConfigError, match="one task in the whole family") as refused:
        make_loop(algorithm, env={"name": "point2d", "options": {}})
    assert refused.value.exit_code == 2


@pytest.mark.parametrize("nothing", [{"inner_lr": 0.0}, {"inner_steps": 0}], ids=str)
def test_reptile_without_an_inner_step_is_refused(make_loop, nothing):
    with pytest.raises(ConfigError, match="lead nowhere"):
        make_loop("reptile", **SMALL | words(" ".join(f"meta.{k}={v}" for k, v in nothing.items())))
