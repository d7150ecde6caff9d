"""The variational latent and GHP-MDP: what moves at test, the control, and what is refused."""

from __future__ import annotations

import pytest
import torch
from fakes import fingerprint, random_steps, shortened, words

from mbrl_lightning.config import compose
from mbrl_lightning.envs import make_family
from mbrl_lightning.errors import ConfigError

SMALL = words(
    "loop.iterations=2 loop.tasks_per_iteration=2 loop.exploration_steps=12 loop.episodes_per_task=1 "
    "loop.episode_steps=10 loop.model_steps=5 loop.first_model_steps=5 dynamics.hidden=8 dynamics.layers=1 "
    "dynamics.tasks=2 dynamics.targets=10 variational.memory=6 variational.context_steps=4 variational.steps=2 "
    "planner.candidates=12 planner.horizon=3 planner.iterations=1 planner.elites=3 loop.last_model_steps=0"
)


@pytest.fixture
def small(make_loop):
    def make(algorithm: str = "variational", conf: str = "cartpole", **changes):
        cfg = compose({"conf": conf, "algorithm": algorithm} | SMALL | changes)
        family = shortened(make_family(cfg.env.name, **cfg.env.options), horizon=20)
        return make_loop(algorithm, cfg=cfg, family=family)

    return make


def ready(loop):
    loop.algorithm.collect(loop.world)
    loop._fit_dynamics()
    return loop.algorithm


def steps(algorithm, count: int = 8):
    family = algorithm.family
    return random_steps(family, family.test[:3], count, torch.Generator().manual_seed(2))


@pytest.mark.parametrize("algorithm", ["variational", "ghp_mdp"])
@pytest.mark.parametrize("conf", ["cartpole", "point_switch"])
def test_a_run_collects_fits_plans_and_measures(small, algorithm, conf):
    loop = small(algorithm, conf)
    found = {row.metric for row in loop.fit().rows}
    assert {"return/policy", "return/unadapted", "return/wrong_belief", "model/nmse", "model/wrong_nmse"} <= found
    assert {"latent/scale", "train/model_loss_kl"} <= found


@pytest.mark.parametrize("algorithm", ["variational", "ghp_mdp"])
def test_only_the_gaussians_of_the_belief_move_at_test(small, algorithm):
    method = ready(small(algorithm))
    before = fingerprint(method.state_dict())
    begun = method.begin(3)
    belief = method.adapt(begun, steps(method))
    assert fingerprint(method.state_dict()) == before
    assert all(
        p.requires_grad == (name != "log_scale" or algorithm == "variational")
        for name, p in method.dynamics.named_parameters()
    )
    assert belief["q"].abs().amax((1, 2)).gt(0).all()
    assert not begun["q"].any()
    assert belief["steps"].tolist() == [4, 4, 4]


def test_inside_an_episode_it_moves_every_few_steps(small):
    method = ready(small(variational={"every": 3}))
    belief, counts = method.begin(3), []
    for transition in steps(method, 7).unbind(1):
        belief = method.adapt(belief, transition)
        counts.append(int(belief["steps"][0]))
    assert counts == [0, 0, 2, 2, 2, 4, 4]
    assert belief["mask"].sum(1).tolist() == [6, 6, 6]


def test_frozen_rows_keep_the_prior(small):
    method = ready(small())
    belief = method.controls(method.adapt(method.begin(3), steps(method)))["unadapted"]
    assert not belief["q"].any()
    belief["frozen"][0] = False
    moved = method.adapt(belief, steps(method))["q"].abs().amax((1, 2))
    assert (moved > 0).tolist() == [True, False, False]


def test_where_tasks_switch_each_transition_is_of_the_task_in_force(make_loop):
    """Two directions, so two Gaussians, however often they turn; what is paid tells which was in force."""
    cfg = compose({"conf": "point_switch", "algorithm": "variational"} | SMALL | words("loop.exploration_steps=200"))
    loop = make_loop("variational", cfg=cfg, family=make_family("point_switch"))
    for iteration in range(2):
        loop.world.iteration = iteration
        ready(loop)
    data = loop.real.transitions()
    direction, speed = loop.real.tasks[data["task"], 0], data["next", "observation"][:, 0]
    fast = speed.abs() > 0.3
    assert (data["next", "reward"].squeeze(-1) * direction * speed)[fast].gt(0).all()
    assert len(data["task"].unique()) == 2


def test_impossible_settings_are_refused_before_anything_is_learned(small, monkeypatch):
    with pytest.raises(ConfigError, match="latent_dim=0"):
        compose({"conf": "cartpole", "algorithm": "variational", "dynamics": {"latent_dim": 0}})
    with pytest.raises(ConfigError, match="nothing varies from task to task"):
        small(conf="point2d")
    with pytest.raises(ConfigError, match=r"targets=10: members=3 cannot share"):
        small(**{"dynamics.members": 3})
    loop = small()
    monkeypatch.setattr("mbrl_lightning.algorithms.variational.MOST_TASKS", 1)
    with pytest.raises(ConfigError, match="2 training tasks"):
        ready(loop)
