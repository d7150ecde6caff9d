"""Every shipped configuration starts, and every algorithm reads what its file says that it reads."""

from __future__ import annotations

import functools
import sys
from dataclasses import fields, is_dataclass

import numpy as np
import pytest
from fakes import shortened

from mbrl_lightning.algorithms import make_algorithm
from mbrl_lightning.config import available, compose, reads_of
from mbrl_lightning.config.files import chain, conf_root, merged
from mbrl_lightning.config.schema import EVERY, FIELDS
from mbrl_lightning.envs import make_family
from mbrl_lightning.loop import MetaLoop

ALONE = [name for name in available("algorithm") if "like:" not in (conf_root() / f"algorithm/{name}.yaml").read_text()]
FEW = {  # small in time; what must fit together stays as it is shipped
    "loop.iterations": 2,
    "loop.tasks_per_iteration": 2,
    "loop.exploration_steps": 20,
    "loop.episodes_per_task": 1,
    "loop.episode_steps": 20,
    "loop.model_steps": 2,
    "loop.first_model_steps": 2,
    "loop.last_model_steps": 0,
    "dynamics.hidden": 8,
    "dynamics.layers": 1,
    "policy.hidden": [8],
    "search.updates": 1,
    "search.horizon": 4,
    "search.epochs": 1,
    "sac.warmup_steps": 30,
    "sac.updates_per_step": 0.1,
    "branch.per_step": 2,
    "branch.buffer": 20,
    "meta.updates": 1,
    "meta.rollouts": 2,
    "planner.candidates": 4,
    "planner.horizon": 2,
    "planner.elites": 2,
    "variational.context_steps": 2,
    "l2a.past": 4,
    "l2a.future": 4,
    "famle.past": 4,
    "famle.future": 4,
    "famle.inner_steps": 2,
    "cadm.past": 4,
    "cadm.future": 4,
    "evaluation.fine_tune_updates": 1,
    "evaluation.context": 20,
}


def tiny_run(conf, algorithm, seen=None, **changes):
    """Rows of a short run on three test tasks; `seen` collects the keys that are read of its configuration."""
    few = {key: value for key, value in FEW.items() if key in reads_of(algorithm)}
    cfg = compose({"conf": conf, "algorithm": algorithm} | few | changes)
    options = cfg.env.options | ({"horizon": 20} if "horizon" in cfg.env.options else {})
    family = shortened(make_family(cfg.env.name, **options), 20)
    for section in (*(entry.name for entry in fields(cfg) if is_dataclass(entry.type)), "") if seen is not None else ():
        watch(getattr(cfg, section) if section else cfg, f"{section}.".lstrip("."), seen)
    return MetaLoop(cfg, family, make_algorithm(cfg, family), quiet=True).fit().rows


def watch(section, prefix, seen):
    names = {entry.name for entry in fields(section)}

    def read(self, name):
        copied = sys._getframe(1).f_globals["__name__"] == "dataclasses"  # replace() reads all, and needs none of it
        if name in names and prefix + name in FIELDS and not copied:
            seen.add(prefix + name)
        return object.__getattribute__(self, name)

    section.__class__ = type("Watched", (type(section),), {"__getattribute__": read})


def claimed(conf):
    """The algorithms that a conf has a block for, and those that are like one of them."""
    named = functools.reduce(merged, chain("", conf, []).values()).get("algorithms", {}).keys()
    return [name for name in available("algorithm") if named & chain("algorithm", name, []).keys()]


@pytest.mark.parametrize("conf", available())
def test_every_conf_starts_with_the_algorithm_that_it_names(conf):
    cfg = compose({"conf": conf})
    spec = make_family(cfg.env.name, **cfg.env.options).spec
    assert spec.horizon == cfg.env.options.get("horizon", spec.horizon)
    for algorithm in claimed(conf):
        assert compose({"conf": conf, "algorithm": algorithm}).algorithm == algorithm
    assert tiny_run(conf, cfg.algorithm, **{"loop.iterations": 1})


# the loop offers steps to every model and tests at every shot; the base of the models sets up a deviation for all of them
IN_VAIN = {
    "loop.model_steps",
    "loop.first_model_steps",
    "loop.last_model_steps",
    "dynamics.scale",
    "dynamics.learn_scale",
}
IN_VAIN |= {"evaluation.shots", "evaluation.wrong_belief", "evaluation.context", "policy.latent_gain"}
RUNS = {  # of those that a method is like, too: what one of them reads all may be given
    "gssm_aps": [
        ("acrobot", "gssm", {}),
        ("cartpole", "gssm_aps", {"policy.kind": "rbf"}),
        ("debug", "gssm", {}),
        ("cartpole", "gssm_aps", {"search.method": "sac"}),
    ],
    "m3po": [("point_switch", "m3po", {}), ("point_switch", "m3po_h", {})],
    "mb_mpo": [("point2d", "mb_mpo", {}), ("point2d", "me_trpo", {"meta.noise": 0.1})],
    "grbal": [
        ("debug", "grbal", {}),
        ("debug", "rebal", {}),
        ("debug", "grbal", {"planner.kind": "icem", "planner.elites": 2}),
    ],
    "variational": [
        ("debug", "variational", {"planner.kind": "icem"}),
        ("debug", "ghp_mdp", {"planner.kind": "mppi"}),
    ],
    "rl2": [("debug", "rl2", {"loop.episodes_per_task": 2})],
    "famle": [("debug", "famle", {}), ("debug", "famle", {"planner.kind": "icem"})],
    "cadm": [("debug", "cadm", {}), ("debug", "cadm", {"planner.kind": "mppi"})],
    "admrl": [("debug", "admrl", {"env.name": "point_goal"})],
    "trpo": [("point2d", "trpo", {})],
    "ddpg": [("point2d", "ddpg", {})],
    "dr_ppo": [("point2d", "dr_ppo", {})],
}


@pytest.mark.parametrize("algorithm", ALONE)
def test_an_algorithm_reads_what_it_says_and_nothing_else(algorithm):
    told, seen = set[str](), set[str]()
    for conf, name, changes in RUNS.get(algorithm, [("debug", algorithm, {})]):
        own = set[str]()
        tiny_run(conf, name, own, **changes)
        assert not own - reads_of(name) - IN_VAIN, name
        told, seen = told | reads_of(name), seen | own
    assert not told - EVERY - seen


@pytest.mark.parametrize(
    ("conf", "algorithm"),
    [
        ("cartpole", "grbal"),
        ("acrobot", "mb_mpc"),
        ("acrobot", "grbal"),
        ("half_cheetah", "rebal"),
        ("slim_humanoid", "grbal"),
    ],
)
def test_methods_that_adapt_at_every_step_run_on_the_families_of_gssm(conf, algorithm):
    """The column L2A of GSSM's Tables 2 and 4; acrobot's actions are choices."""
    returns = [row.value for row in tiny_run(conf, algorithm) if row.metric == "return/policy"]
    assert len(returns) >= 3
    assert np.isfinite(returns).all()


@pytest.mark.parametrize("conf", ["acrobot", "half_cheetah", "slim_humanoid_torque"])
def test_dropout_dynamics_run_on_the_families_of_gssm(conf):
    assert any(row.metric == "return/fine_tuned" for row in tiny_run(conf, "m_dpilco"))
