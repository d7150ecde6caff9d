"""What a planner makes of a perfect model."""

from __future__ import annotations

import torch

from mbrl_lightning import perfect_model
from mbrl_lightning.envs import make_family
from mbrl_lightning.perfect_model import SimulatorModel
from mbrl_lightning.runs.results import read_results


def test_candidates_see_what_the_simulator_then_does_and_every_search_starts_anew():
    family, horizon, rows = make_family("half_cheetah_disabled"), 3, 4
    tasks, generator = family.grid[:2], torch.Generator().manual_seed(0)
    acting = family.simulate(tasks)
    observation = acting.reset(generator)
    model = SimulatorModel(family, tasks, acting, horizon)
    for _ in range(3):
        plan = 2 * torch.rand(2, rows, horizon, 6, generator=generator) - 1
        seen = observation.unsqueeze(1).expand(-1, rows, -1)
        foreseen = [seen := model(seen, plan[:, :, step]) for step in range(horizon)]
        assert not foreseen[0][:, 0].equal(foreseen[0][:, 1])
        kept = acting.state()
        for step in range(horizon):
            assert acting.step(plan[:, 2, step]).equal(foreseen[step][:, 2])
        acting.set_state(kept)
        observation = acting.step(plan[:, 0, 0])
    model.close()


def test_a_planner_that_foresees_balances_and_one_that_draws_one_candidate_does_not(tiny):
    env, planner = {"name": "cartpole", "options": {}}, {"kind": "mppi", "horizon": 15, "iterations": 1}
    means = {}
    for candidates in (1, 60):
        cfg = tiny("mb_mpc", env=env, planner=planner | {"candidates": candidates, "elites": 1})
        means[candidates] = perfect_model.perfect_model(cfg, 2)["planner"].mean().item()
    assert means[60] > means[1] + 0.1, means


def test_command_line(capsys, tmp_path):
    words = ["conf=half_cheetah_disabled", "algorithm=grbal", f"out={tmp_path}", "env.options.horizon=10"]
    words += ["planner.candidates=4", "planner.horizon=2", "planner.elites=2"]
    assert perfect_model.main([*words, "seeds=0..1", "tasks=2"]) == 0
    assert "to go" in capsys.readouterr().out
    rows = read_results(tmp_path / "half_cheetah_disabled" / "perfect_model")
    assert sorted((row.seed, row.metric, row.task) for row in rows) == [
        (seed, f"return/{name}", task) for seed in (0, 1) for name in ("planner", "random") for task in (0, 1)
    ]
    assert perfect_model.main([*words, "tasks=no"]) == 2
    assert "tasks=no" in capsys.readouterr().err
