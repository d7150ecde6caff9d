"""GrBAL, ReBAL and MB-MPC: what the planner believes at every step, the controls, resuming, and their limits."""

from __future__ import annotations

import pytest
import torch
from fakes import fingerprint, shortened
from tensordict import TensorDict

from mbrl_lightning.config import compose
from mbrl_lightning.envs import make_family
from mbrl_lightning.errors import ConfigError

SMALL = {
    "loop": {
        "iterations": 2,
        "tasks_per_iteration": 2,
        "episodes_per_task": 1,
        "episode_steps": 20,
        "model_steps": 5,
        "first_model_steps": 5,
    },
    "dynamics": {"hidden": 8, "layers": 1},
    "l2a": {"past": 4, "future": 3, "segments": 8, "hidden": 4},
    "planner": {"candidates": 12, "horizon": 3, "iterations": 1, "elites": 3},
}


@pytest.fixture
def small(make_loop):
    def make(algorithm: str = "grbal", conf: str = "point_switch", folder=None, stop=None, **changes):
        merged = {key: SMALL.get(key, {}) | changes.get(key, {}) for key in SMALL | changes}
        cfg = compose({"conf": conf, "algorithm": algorithm} | merged)
        family = shortened(make_family(cfg.env.name, **cfg.env.options), horizon=20)
        return make_loop(algorithm, cfg=cfg, family=family, folder=folder, stop=stop)

    return make


def ready(loop):
    """After the first data and one fit of the model."""
    loop._collect()
    loop._fit_dynamics()
    return loop


def walk(actor, steps: int, rows: int = 2, begin: dict[int, torch.Tensor] | None = None):
    """Drive an actor along random observations `[rows, S]`; returns (observation, action, belief) of every step."""
    seen, draws = [], torch.Generator().manual_seed(3)
    actor.begin(torch.ones(rows, dtype=torch.bool))
    for now in range(steps):
        if begin and now in begin:
            actor.begin(begin[now])
        observation = torch.randn(rows, actor.dynamics.spec.observation_dim, generator=draws)
        seen.append((observation, actor(observation), actor.belief.clone()))
    return seen


def same(one: TensorDict, other: TensorDict) -> bool:
    leaves = [dict(part.flatten_keys().items()) for part in (one, other)]
    return set(leaves[0]) == set(leaves[1]) and all(
        torch.allclose(value, leaves[1][name], atol=1e-6) for name, value in leaves[0].items()
    )


def predictions(dynamics, belief: TensorDict) -> torch.Tensor:
    draws = torch.Generator().manual_seed(5)
    observation = torch.randn(len(belief), 5, dynamics.spec.observation_dim, generator=draws)
    action = torch.rand(len(belief), 5, dynamics.spec.action_dim, generator=draws)
    return dynamics.predict(observation, action, belief)


@pytest.mark.parametrize("algorithm", ["grbal", "rebal", "mb_mpc"])
def test_a_run_collects_fits_plans_and_measures(small, algorithm):
    loop = small(algorithm)
    rows = loop.fit().rows
    assert loop.real.num_steps == 2 * 2 * 20
    found = {row.metric for row in rows}
    assert {"model/nmse_before", "model/nmse_after", "return/policy", "return/random", "real/return"} <= found
    assert ("return/unadapted" in found) == (algorithm != "mb_mpc")
    before, after = (
        {row.task: row.value for row in rows if row.metric == f"model/nmse_{when}"} for when in ("before", "after")
    )
    assert set(before) == {0, 1, 2}
    assert (before == after) == (algorithm == "mb_mpc")


@pytest.mark.parametrize("algorithm", ["grbal", "rebal"])
def test_the_belief_is_that_of_the_last_m_steps(small, algorithm):
    loop = ready(small(algorithm))
    dynamics, act = loop.algorithm.dynamics, loop.algorithm.actor(loop.algorithm.prior(2))
    seen = walk(act, 9)
    for now in range(9):
        first = max(now - 4, 0)
        steps = [
            TensorDict({"observation": seen[t][0], "action": seen[t][1], "next": {"observation": seen[t + 1][0]}}, [2])
            for t in range(first, now)
        ]
        belief = seen[now][2]
        if now == 4:
            assert same(belief, dynamics.settle(dynamics.infer(torch.stack(steps, 1))))
        if now > 4:
            assert torch.allclose(
                predictions(dynamics, belief), predictions(dynamics, dynamics.infer(torch.stack(steps, 1))), atol=1e-5
            )
        prior = predictions(dynamics, TensorDict({}, batch_size=[2]))
        moved = not torch.allclose(predictions(dynamics, belief), prior)
        assert moved == (now > 0)  # with fewer than M steps it adapts to those there are


@pytest.mark.parametrize("algorithm", ["grbal", "rebal"])
def test_a_row_that_starts_an_episode_forgets_and_the_others_do_not(small, algorithm):
    loop = ready(small(algorithm))
    actor, dynamics = loop.algorithm.actor, loop.algorithm.dynamics
    plain, reset = (
        walk(actor(loop.algorithm.prior(2)), 7, begin=begin) for begin in (None, {6: torch.tensor([True, False])})
    )
    prior = predictions(dynamics, TensorDict({}, batch_size=[2]))
    after = predictions(dynamics, reset[6][2])
    kept = predictions(dynamics, plain[6][2])
    torch.testing.assert_close(after[0], prior[0])
    torch.testing.assert_close(after[1], kept[1])
    assert not torch.allclose(after[0], kept[0])


def test_frozen_rows_never_adapt(small):
    loop = ready(small())
    algorithm = loop.algorithm
    belief = algorithm.prior(2)
    belief["frozen"][0] = True
    last = walk(algorithm.actor(belief), 6)[-1][2]
    prior = predictions(algorithm.dynamics, TensorDict({}, batch_size=[2]))
    torch.testing.assert_close(predictions(algorithm.dynamics, last)[0], prior[0])
    assert not torch.allclose(predictions(algorithm.dynamics, last)[1], prior[1])
    frozen = algorithm.controls(algorithm.prior(3))["unadapted"]["frozen"]
    assert frozen.tolist() == [True] * 3
    assert algorithm.prior(3)["frozen"].tolist() == [False] * 3


def test_an_inner_step_of_zero_acts_as_mb_mpc(small):
    loops = [
        ready(small(name, l2a=change))
        for name, change in (("mb_mpc", {}), ("grbal", {"inner_lr": 0.0, "learned": False}))
    ]
    data = [walk(loop.algorithm.actor(loop.algorithm.prior(2)), 6) for loop in loops]
    for (_, a, _), (_, b, _) in zip(*data, strict=True):
        assert torch.equal(a, b)
    assert not loops[1].algorithm.controls(loops[1].algorithm.prior(2))


def test_the_plan_is_made_in_the_adapted_model(small):
    loop = ready(small())
    with torch.no_grad():
        loop.algorithm.dynamics.inner.sizes.fill_(3.0)
    adapting, frozen = loop.algorithm.prior(2), loop.algorithm.prior(2)
    frozen["frozen"][:] = True
    one, other = (walk(loop.algorithm.actor(belief), 3) for belief in (adapting, frozen))
    assert torch.equal(one[0][1], other[0][1])  # nothing to adapt to yet
    assert not torch.allclose(one[2][1], other[2][1])


@pytest.mark.parametrize("algorithm", ["grbal", "rebal"])
def test_resumed_runs_end_as_unbroken_ones(small, algorithm, tmp_path):
    whole = small(algorithm)
    whole.fit()
    broken = small(algorithm, loop={"iterations": 1})
    broken.fit()
    state = broken.state_dict()
    rest = small(algorithm)
    rest.load_state_dict(state)
    rest.fit()
    assert fingerprint(rest.state_dict()["algorithm"]) == fingerprint(whole.state_dict()["algorithm"])
    assert fingerprint(rest.real.state_dict()["data"]) == fingerprint(whole.real.state_dict()["data"])


def test_discrete_actions_are_planned_too(small):
    loop = small(conf="acrobot")
    loop.fit()
    actions = loop.real.transitions()["action"]
    assert torch.equal(actions.sum(-1), torch.ones(len(actions)))


def test_an_impossible_planner_is_refused_at_once(small):
    with pytest.raises(ConfigError, match="elites"):
        small(planner={"kind": "cem", "candidates": 4, "elites": 8})


def test_segments_are_shared_out_among_ranks():
    with pytest.raises(ConfigError, match="segments"):
        compose({"conf": "point_switch", "algorithm": "grbal", "devices": 2, "l2a": {"segments": 5}})
