"""GrBAL, ReBAL and MB-MPC: what the planner believes at every step, the controls, resuming, and their limits."""

from __future__ import annotations

from dataclasses import replace
from itertools import count

import pytest
import torch
from fakes import shortened, words
from tensordict import TensorDict

from mbrl_lightning.config import compose
from mbrl_lightning.data.collect import collect
from mbrl_lightning.envs import make_family
from mbrl_lightning.errors import ConfigError

SMALL = words(
    "loop.iterations=2 loop.tasks_per_iteration=2 loop.episodes_per_task=1 loop.episode_steps=20 loop.model_steps=5 "
    "loop.first_model_steps=5 dynamics.hidden=8 dynamics.layers=1 l2a.past=4 l2a.future=3 l2a.segments=8 l2a.hidden=4 "
    "planner.candidates=12 planner.horizon=3 planner.iterations=1 planner.elites=3"
)


@pytest.fixture
def small(make_loop):
    def make(algorithm: str = "grbal", conf: str = "point_switch", **changes):
        cfg = compose({"conf": conf, "algorithm": algorithm} | SMALL | changes)
        family = shortened(make_family(cfg.env.name, **cfg.env.options), horizon=20)
        return make_loop(algorithm, cfg=cfg, family=family)

    return make


def ready(loop):
    """After the first data and one fit of the model."""
    loop.algorithm.collect(loop.world)
    loop._fit_dynamics()
    return loop


def spied(algorithm, monkeypatch):
    """The belief under which each action is chosen, from here on."""
    act, beliefs = algorithm.act, []

    def spy(*given):
        action, belief = act(*given)
        beliefs.append(belief)
        return action, belief

    monkeypatch.setattr(algorithm, "act", spy)
    return beliefs


def walk(loop, steps: int, frozen: bool = False):
    """Two rows of real steps `[2, steps]`; the first row's episode ends with its sixth step."""
    algorithm, draws, now = loop.algorithm, torch.Generator().manual_seed(3), count()
    spec = replace(loop.family.spec, termination=lambda _: torch.tensor([next(now) == 5, False]))
    belief, simulator = algorithm.begin(2), loop.family.simulate(loop.family.test[:2])
    belief["frozen"][0] = frozen
    return collect(simulator, spec, algorithm, belief, steps, draws, draws)


def predictions(dynamics, belief: TensorDict) -> torch.Tensor:
    draws, spec = torch.Generator().manual_seed(5), dynamics.spec
    observation = torch.randn(5, spec.observation_dim, generator=draws).expand(len(belief), -1, -1)
    action = torch.rand(5, spec.action_dim, generator=draws).expand(len(belief), -1, -1)
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
def test_the_belief_is_that_of_the_last_m_steps_of_an_episode(small, algorithm, monkeypatch):
    loop = ready(small(algorithm))
    dynamics, beliefs = loop.algorithm.dynamics, spied(loop.algorithm, monkeypatch)
    data = walk(loop, 11)
    nothing = predictions(dynamics, TensorDict({}, batch_size=[2]))[0]
    for now, belief in enumerate(beliefs):
        for row, begun in enumerate((6 if now >= 6 else 0, 0)):
            context = data[row : row + 1, max(now - 4, begun) : now]
            found = predictions(dynamics, belief)[row]
            # with fewer than M steps it adapts to those there are
            assert torch.allclose(found, nothing) == (now == begun)
            if context.shape[1] == 4:
                torch.testing.assert_close(found, predictions(dynamics, dynamics.infer(context))[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 3, 4, 9])
def test_a_context_in_order_is_as_good_as_its_steps(small, steps):
    loop = ready(small())
    algorithm, data = loop.algorithm, loop.real.transitions()[:40].view(2, 20)[:, :steps]
    one_by_one = algorithm.begin(2)
    for transition in data.unbind(1):
        one_by_one = algorithm.adapt(one_by_one, transition)
    torch.testing.assert_close(algorithm.adapt(algorithm.begin(2), data), one_by_one)


def test_training_episodes_begin_with_nothing_seen(small, monkeypatch):
    loop = small(loop={"exploration_steps": 5})
    beliefs = spied(loop.algorithm, monkeypatch)
    for now in range(2):
        loop.world.iteration = now
        ready(loop)
    assert len(beliefs) == 20
    assert not beliefs[0]["mask"].any()
    assert beliefs[0]["age"].tolist() == [0, 0]


def test_frozen_rows_never_adapt(small, monkeypatch):
    loop = ready(small())
    algorithm, beliefs = loop.algorithm, spied(loop.algorithm, monkeypatch)
    walk(loop, 5, frozen=True)
    nothing = predictions(algorithm.dynamics, TensorDict({}, batch_size=[2]))
    found = predictions(algorithm.dynamics, beliefs[-1])
    torch.testing.assert_close(found[0], nothing[0])
    assert not torch.allclose(found[1], nothing[1])
    belief = algorithm.begin(3)
    assert algorithm.controls(belief)["unadapted"]["frozen"].all()
    assert not belief["frozen"].any()


def test_an_inner_step_of_zero_acts_as_mb_mpc(small):
    plain, zero = ready(small("mb_mpc")), ready(small("grbal", l2a={"inner_lr": 0.0, "learned": False}))
    assert torch.equal(walk(plain, 6)["action"], walk(zero, 6)["action"])
    assert not zero.algorithm.controls(zero.algorithm.begin(2))


def test_the_plan_is_made_in_the_adapted_model(small):
    loop = ready(small())
    with torch.no_grad():
        loop.algorithm.dynamics.inner.sizes.fill_(3.0)
    adapting, frozen = (walk(loop, 3, frozen)["action"][0] for frozen in (False, True))
    assert torch.equal(adapting[0], frozen[0])  # nothing to adapt to yet
    assert not torch.allclose(adapting[2], frozen[2])


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
