"""The loop: exact resume, evaluation that leaves no trace, signals, divergence, smallest sizes."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import StopAfter, counter_family, fingerprint, measured, shortened
from host_reads import host_reads

from mbrl_lightning.algorithms import ALGORITHMS, make_algorithm
from mbrl_lightning.envs import make_family
from mbrl_lightning.errors import ConfigError, DivergedError, EnvError, Interrupted, Preempted
from mbrl_lightning.loop import MetaLoop
from mbrl_lightning.networks.step import require_finite
from mbrl_lightning.runs import checkpoint
from mbrl_lightning.runs.results import read_results

PPO_SEARCH = {"method": "ppo", "updates": 3, "segments": 2}
VARIANTS = {name: (name, {}) for name in ALGORITHMS} | {  # a new method is a row of the registry, and tested here
    "gssm_aps-ensemble": ("gssm_aps", {"dynamics": {"members": 2}, "search": {"holdout": 1, "restarts": 2}}),
    "gssm_aps-ppo-cheetah": (
        "gssm_aps",
        {"search": PPO_SEARCH | {"initial_starts": 0.5, "noise": 1.0}, "env": {"name": "half_cheetah", "options": {}}},
    ),
    "gssm_aps-sac-cheetah": (
        "gssm_aps",
        {
            "search": {"method": "sac", "rollouts": 2, "tasks": 2},
            "policy": {"hold": 2, "feedback": [0.5, 0.1]},
            "sac": {"batch": 8, "every": 6, "updates_per_step": 0.2, "policy_delay": 2, "layer_norm": True},
            "branch": {"per_step": 2, "buffer": 40, "beta": 0.5, "length": 2},
            "env": {"name": "half_cheetah", "options": {}},
        },
    ),
    "gssm-ppo": ("gssm", {"search": PPO_SEARCH}),
    "mb_mpo-persistent": ("mb_mpo", {"dynamics": {"persistence": 0.5}}),
    "mb_mpo-biased": ("mb_mpo", {"meta": {"bias": 0.1, "noise": 0.1}, "search": {"initial_starts": 0.5}}),
    "pearl-hidden": ("pearl", {"env": {"name": "point_switch", "options": {"horizon": 20}}}),
    "m3po-hidden": ("m3po", {"env": {"name": "point_switch", "options": {"horizon": 20}}}),
}
VARIANTS["gssm_aps-sac-cheetah-compiled"] = ("gssm_aps", VARIANTS["gssm_aps-sac-cheetah"][1] | {"compile": "true"})
SLOW = [pytest.param(name, marks=pytest.mark.slow) if "compiled" in name else name for name in VARIANTS]


def variant(name: str, **loop):
    algorithm, changes = VARIANTS[name]
    return algorithm, changes | {"loop": {"iterations": 4} | loop}


def disturb() -> None:
    """What a new process would have: global generators in another state."""
    torch.manual_seed(random.randrange(2**31))
    np.random.seed(random.randrange(2**31))  # noqa: NPY002 - the global one is meant


def family_for(cfg):
    family = make_family(cfg.env.name, **cfg.env.options)
    return shortened(family, horizon=12 if cfg.env.name == "half_cheetah" else None, test=2, context=8)


@pytest.mark.parametrize("name", SLOW)
def test_stopped_and_resumed_equals_uninterrupted_and_no_gradient_step_waits_for_the_host(
    make_loop, tiny, tmp_path, name
):
    algorithm, changes = variant(name, evaluate_every=1)
    cfg = tiny(algorithm, **changes)
    whole = make_loop(cfg=cfg, family=family_for(cfg), folder=tmp_path / "whole")
    with host_reads() as reads:
        whole.fit()
    assert not reads

    disturb()
    stopped = make_loop(cfg=cfg, family=family_for(cfg), folder=tmp_path / "parts", stop=StopAfter(2))
    with pytest.raises(Interrupted):
        stopped.fit()
    left = fingerprint(stopped.state_dict())
    disturb()
    resumed = make_loop(cfg=cfg, family=family_for(cfg), folder=tmp_path / "parts")
    disturb()
    step, state = checkpoint.load(tmp_path / "parts" / "checkpoints")
    assert step == 2
    assert fingerprint(state) == left
    resumed.load_state_dict(state)
    resumed.fit()

    assert fingerprint(resumed.state_dict()) == fingerprint(whole.state_dict())
    assert measured(resumed.results.rows) == measured(whole.results.rows)
    files = [(tmp_path / part / "results.csv").read_text().splitlines() for part in ("whole", "parts")]
    assert len(files[0]) == len(files[1]) > 20


def test_rows_written_after_the_checkpoint_are_taken_back(make_loop, tmp_path):
    """A crash in iteration 4, when the newest checkpoint is of iteration 2: the third is done and written again."""
    often = {"iterations": 4, "checkpoint_every": 2, "evaluate_every": 1}
    whole = make_loop(folder=tmp_path / "whole", loop=often)
    whole.fit()
    crashing = make_loop(folder=tmp_path / "parts", loop=often)
    collect, calls = crashing.algorithm.collect, []

    def crash(world):
        calls.append(1)
        return collect(world) if len(calls) < 4 else 1 / 0

    crashing.algorithm.collect = crash
    with pytest.raises(ZeroDivisionError):
        crashing.fit()
    resumed = make_loop(folder=tmp_path / "parts", loop=often)
    assert max(row.iteration for row in resumed.results.rows) == 3
    assert resumed.restore(tmp_path / "parts") == 2
    resumed.fit()
    assert measured(read_results(tmp_path / "parts")) == measured(read_results(tmp_path / "whole"))


@pytest.mark.parametrize("name", [*ALGORITHMS, "gssm-ppo"])
def test_evaluating_changes_its_own_stream_and_nothing_that_is_learned(make_loop, name):
    states, rows = [], []
    for every in (0, 1):
        algorithm, changes = variant(name, evaluate_every=every)
        loop = make_loop(algorithm, **changes)
        loop.fit()
        states.append(fingerprint(loop.state_dict()))
        rows.append([row for row in measured(loop.results.rows) if "train/" in row or "imagined/" in row])
    assert {key for key in states[0] if states[0][key] != states[1][key]} == {".streams.evaluation"}
    assert rows[0] == rows[1] != []
    loop.evaluate(full=True)
    changed = {key for key, value in fingerprint(loop.state_dict()).items() if states[1][key] != value}
    assert {".streams.evaluation"} <= changed <= {".streams.evaluation", ".gradient_steps"}


def test_a_run_is_looked_at_six_times_unless_it_says_otherwise(make_loop):
    for every, looks in ((None, [2, 4, 6, 8, 10, 12]), (0, [12]), (5, [5, 10, 12])):
        rows = make_loop("ppo", loop={"iterations": 12, "evaluate_every": every}, search={"updates": 1}).fit().rows
        assert sorted({row.iteration for row in rows if row.metric == "return/policy"}) == looks


def test_same_seed_same_run_and_another_seed_another(make_loop):
    def run(seed: int):
        disturb()
        loop = make_loop(seed=seed)
        loop.fit()
        return fingerprint(loop.state_dict()), [row.value for row in loop.results.rows if "return" in row.metric]

    first, again, other = run(1), run(1), run(2)
    assert first == again
    assert first[1] != other[1]
    assert first[0][".algorithm.dynamics.decoder.0.weight"] != other[0][".algorithm.dynamics.decoder.0.weight"]


@pytest.mark.parametrize(("signal", "kind", "code"), [(2, Interrupted, 130), (15, Preempted, 75), (10, Preempted, 75)])
def test_a_signal_saves_at_the_boundary_and_ends_with_its_code(make_loop, tmp_path, signal, kind, code):
    loop = make_loop(folder=tmp_path, stop=StopAfter(1, signal), loop={"iterations": 3, "checkpoint_every": 3})
    with pytest.raises(kind, match="after iteration 1") as caught:
        loop.fit()
    assert caught.value.exit_code == code
    assert checkpoint.load(tmp_path / "checkpoints")[0] == loop.iteration == 1


def test_a_finished_run_heeds_no_signal_does_nothing_more_and_can_be_made_longer(make_loop, tmp_path):
    short = make_loop(folder=tmp_path, stop=StopAfter(2), loop={"iterations": 2})
    short.fit()
    rows, state, steps = measured(short.results.rows), fingerprint(short.state_dict()), short.real.num_steps
    short.fit()
    assert (measured(short.results.rows), fingerprint(short.state_dict())) == (rows, state)
    longer = make_loop(folder=tmp_path, loop={"iterations": 4})
    assert longer.restore(tmp_path) == 2
    longer.fit()
    assert longer.iteration == 4
    assert longer.real.num_steps > steps
    assert measured(longer.results.rows)[: len(rows)] == rows
    assert checkpoint.load(tmp_path / "checkpoints")[0] == 4


def test_a_run_goes_on_with_no_other_task_family(make_loop, tmp_path):
    make_loop(folder=tmp_path, loop={"iterations": 1}).fit()
    other = make_loop(family=shortened(make_family("cartpole"), horizon=7), loop={"iterations": 2})
    with pytest.raises(ConfigError, match=r"(?s)another one now.*horizon +25 +7"):
        other.restore(tmp_path)
    assert other.restore(tmp_path, weights_only=True) == 1


# -- divergence


@pytest.mark.parametrize("stage", ["model", "policy"])
def test_a_loss_that_turns_nan_ends_the_run_and_keeps_the_last_good_state(make_loop, tmp_path, monkeypatch, stage):
    loop = make_loop(folder=tmp_path, loop={"iterations": 4})
    owner = loop.algorithm.dynamics if stage == "model" else loop.algorithm
    name = "training_step" if stage == "model" else "improve"
    real, calls = getattr(owner, name), 0

    def faulty(*args):
        nonlocal calls
        calls += 1
        if stage == "policy" and loop.iteration == 2:
            loop.algorithm.search.restarts.net[0].weight.data[0, 0, 0] = float("nan")
        out = real(*args)
        if stage == "model" and loop.iteration == 2 and calls >= 10:
            out["loss"] = out["loss"] * float("nan")
        return out

    monkeypatch.setattr(owner, name, faulty)
    with pytest.raises(DivergedError) as caught:
        loop.fit()
    assert caught.value.exit_code == 4
    assert loop.iteration == 2
    fresh = make_loop(folder=tmp_path, loop={"iterations": 4})
    assert fresh.restore(tmp_path) == 2
    require_finite(fresh.state_dict(), "the checkpoint")
    fresh.fit()  # the fault gone, the run goes on
    assert fresh.iteration == 4


def test_a_model_step_that_diverges_leaves_the_models_weights(make_loop, monkeypatch):
    loop = make_loop(loop={"iterations": 1})
    dynamics = loop.algorithm.dynamics
    weight = dynamics.decoder[0].weight
    monkeypatch.setattr(dynamics, "training_step", lambda batch: {"loss": weight.sum() * float("nan")})
    before = fingerprint(dict(dynamics.named_parameters()))
    with pytest.raises(DivergedError):
        loop.fit()
    assert fingerprint(dict(dynamics.named_parameters())) == before


def test_an_environment_that_gives_nan_ends_the_run_with_nothing_of_it_kept(make_loop):
    broken = counter_family(reward=lambda o, a, n: torch.full_like(n[..., 0], float("nan")))
    loop = make_loop(family=broken)
    with pytest.raises(EnvError):
        loop.fit()
    assert len(loop.real) == loop.real.num_steps == 0


# -- smallest sizes and odd families


ONE = {
    "loop": "tasks_per_iteration exploration_steps episodes_per_task episode_steps model_steps first_model_steps",
    "dynamics": "tasks context targets members latent_dim particles",
    "search": "updates horizon tasks rollouts restarts segments epochs minibatch",
    "evaluation": "context fine_tune_updates",
}


@pytest.mark.filterwarnings("ignore:.*degrees of freedom is <= 0.*:UserWarning")
@pytest.mark.parametrize("method", ["pathwise", "ppo"])
@pytest.mark.parametrize("algorithm", ["gssm_aps", "gssm"])
def test_one_of_everything(make_loop, algorithm, method):
    family = shortened(make_family("cartpole"), horizon=1, test=1, context=1)
    changes = {section: dict.fromkeys(keys.split(), 1) for section, keys in ONE.items()}
    changes["loop"] |= {"iterations": 2, "evaluate_every": 1}
    changes["search"]["method"], changes["evaluation"]["shots"] = method, [0.0, 1.0]
    loop = make_loop(algorithm, family=family, env={"name": "cartpole"}, **changes)
    results = loop.fit()
    returns = [row.value for row in results.rows if row.metric == "return/policy"]
    assert len(returns) == 3
    assert np.isfinite(returns).all()
    assert loop.real.num_steps == 1 + 1 + 1 + 1  # exploration, first, exploration, episode


def test_no_exploration_after_the_first_iteration_means_an_empty_context(make_loop):
    loop = make_loop(loop={"iterations": 2, "exploration_steps": 0})
    loop.fit()
    assert loop.real.rows(exploratory=True)[1].tolist() == [20, 20, 0, 0]


def test_test_tasks_that_are_training_tasks_are_refused(make_loop, tiny):
    family = counter_family()
    overlapping = replace(family, grid=family.test[:2])
    with pytest.raises(ConfigError, match="also a training task"):
        make_loop(family=overlapping)
    make_loop(family=overlapping, allow_overlap=True)


def test_no_test_tasks_at_all(make_loop):
    family = make_family("cartpole")
    loop = make_loop(family=replace(family, test=family.test[:0], extreme=family.extreme[:0]), loop={"iterations": 1})
    assert not [row for row in loop.fit().rows if row.metric.startswith("return/")]


# -- what is collected and counted


def test_real_steps_are_counted_exactly(make_loop):
    sizes = {"iterations": 3, "tasks_per_iteration": 2, "exploration_steps": 7, "episodes_per_task": 3}
    loop = make_loop(loop=sizes | {"episode_steps": 5, "redraw_every": 2})
    loop.fit()
    # first: explored at length in place of episodes; second: same tasks, episodes alone; third: new tasks, both
    assert loop.real.num_steps == 2 * (7 + 15) + 2 * 15 + 2 * (7 + 15)
    assert len(loop.real.tasks) == 4
    steps = {row.iteration: row.real_steps for row in loop.results.rows if row.metric == "train/model_loss"}
    assert steps == {1: 44, 2: 74, 3: 118}


def test_tasks_are_redrawn_when_due(make_loop):
    loop = make_loop(loop={"iterations": 4, "redraw_every": 3})
    seen = []
    fit_dynamics = loop._fit_dynamics

    def watched():
        seen.append(loop.world.tasks.clone())
        return fit_dynamics()

    loop._fit_dynamics = watched
    loop.fit()
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[1], seen[2])
    assert not torch.equal(seen[2], seen[3])


def test_exploration_is_random_and_episodes_are_the_policys(make_loop):
    loop = make_loop(loop={"iterations": 2, "action_noise": 0.0, "exploration_steps": 25})
    loop.fit()
    data = loop.real.transitions()
    random_part = data["action"][data["exploratory"]].abs()
    assert random_part.min() < 0.2 < 0.8 < random_part.max()
    assert data["initial"][~data["exploratory"]].sum() >= 2


def test_model_steps_of_first_middle_and_last_iteration(make_loop, monkeypatch):
    loop = make_loop(loop={"iterations": 3, "first_model_steps": 5, "model_steps": 2, "last_model_steps": 4})
    counts = {}
    real = loop.algorithm.dynamics.training_step

    def counted(batch):
        counts[loop.iteration] = counts.get(loop.iteration, 0) + 1
        return real(batch)

    monkeypatch.setattr(loop.algorithm.dynamics, "training_step", counted)
    loop.fit()
    assert counts == {0: 5, 1: 2, 2: 2 + 4}


def test_on_policy_methods_collect_for_themselves(make_loop):
    loop = make_loop("dr_ppo", loop={"iterations": 2}, search={"updates": 3, "tasks": 2, "horizon": 10})
    loop.fit()
    assert loop.real.num_steps == 2 * 3 * 2 * 10
    assert not loop.real.transitions()["exploratory"].any()


# -- what is written


def test_rows_of_the_last_evaluation(make_loop):
    loop = make_loop(loop={"iterations": 2}, evaluation={"context": 8, "shots": [0, 1, 2]})
    rows = loop.fit().rows
    assert {row.shot for row in rows if row.metric == "return/policy"} == {0, 8, 16}
    returns = [f"return/{name}" for name in ("policy", "random", "sampled", "wrong_belief")]
    errors = [f"model/{name}" for name in ("nmse", "mse", "wrong_nmse", "null_mse", "multi_step_nmse")]
    for metric in returns + errors:
        tasks = sorted(row.task for row in rows if row.metric == metric and row.shot == 8 and row.iteration == 2)
        assert tasks == [0, 1, 2], metric
    whole = {row.metric for row in rows if row.task < 0}
    assert {name for name in whole if name.startswith("probe/")} == {"probe/r2/cart_mass", "probe/r2/pole_mass"}
    assert whole >= {f"time/{stage}" for stage in ("collect", "model", "policy", "evaluate")}
    assert whole >= {"imagined/return", "real/return", "latent/scale", "latent/spread", "latent/collapse"}
    assert all(row.unit for row in rows if row.metric.startswith("return/"))


def test_extreme_tasks_are_tested_at_the_end(make_loop):
    family = make_family("cartpole")
    family = replace(family, test=family.test[:2], extreme=family.extreme[:3])
    rows = make_loop(family=family, loop={"iterations": 2, "evaluate_every": 1}).fit().rows
    extreme = [row for row in rows if row.split == "extreme" and row.metric == "return/policy"]
    assert [(row.iteration, row.task) for row in extreme] == [(2, 0), (2, 1), (2, 2)]


def test_tuning_on_the_training_range_never_touches_the_test_tasks(make_loop):
    loop = make_loop(loop={"iterations": 1}, evaluation={"split": "train"})
    rows = loop.fit().rows
    assert {row.split for row in rows if row.split} == {"train"}
    assert len([row for row in rows if row.metric == "return/random"]) == 16


def test_checkpoints_are_kept_as_asked(make_loop, tmp_path):
    make_loop(folder=tmp_path, loop={"iterations": 5, "checkpoint_every": 2, "keep": 2}).fit()
    assert checkpoint.steps(tmp_path / "checkpoints") == [5, 4]


def test_weights_alone_start_a_new_run(make_loop):
    trained = make_loop(loop={"iterations": 1})
    trained.fit()
    fresh = make_loop(seed=9)
    fresh.load_state_dict(trained.state_dict(), weights_only=True)
    assert fresh.iteration == len(fresh.real) == 0
    assert fingerprint(fresh.algorithm.state_dict()) == fingerprint(trained.algorithm.state_dict())
    assert fingerprint(fresh.streams.state_dict())[".tasks"] != fingerprint(trained.streams.state_dict())[".tasks"]


def test_figures_are_asked_for_when_due_and_stop_no_run(tiny, caplog):
    cfg, seen = tiny(loop={"iterations": 5, "figures_every": 2}), []

    def broken(loop):
        seen.append(loop.iteration)
        raise RuntimeError("no display")

    family = shortened(make_family("cartpole"))
    MetaLoop(cfg, family, make_algorithm(cfg, family), watch=broken).fit()
    assert seen == [2, 4, 5]
    assert "no display" in caplog.text


def test_half_precision_moves_the_numbers_and_not_the_weights_type(make_loop):
    states = []
    for precision in ("32-true", "bf16-mixed"):
        loop = make_loop(precision=precision, loop={"iterations": 1})
        loop.fit()
        states.append(loop.algorithm.state_dict())
    weight = "dynamics.decoder.0.weight"
    assert states[1][weight].dtype == torch.float32
    assert not torch.equal(states[0][weight], states[1][weight])
    torch.testing.assert_close(states[0][weight], states[1][weight], atol=0.01, rtol=0)


def test_without_a_folder_nothing_is_written(make_loop, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_loop(loop={"iterations": 1}).fit()
    assert list(Path(tmp_path).iterdir()) == []
