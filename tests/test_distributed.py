"""Two processes on the CPU: equal parameters, the same result as one, and an end for all when one ends.

Tolerance: 1e-6 between two ranks and one process with the same global batch. Only the order of float32 sums differs;
what was seen after 12 model and 6 policy steps is 3e-8, and 2e-5 where conjugate gradient or an inverse makes more of it
(TRPO, ACKTR).
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from two_ranks import TRAINED

from mbrl_lightning.runs import checkpoint

ROOT = Path(__file__).resolve().parent.parent
ALIKE = ("gssm_aps", "dr_ppo", "ddpg", "trpo", "acktr", "grbal", "m3po", "pearl", "maml", "rl2", "pe_ppo")
ENDS = ("signalled", "fails", "dies", "diverges")
TOLERANCE = 1e-6


def environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "LOCAL_", "MASTER_"))}
    return kept | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """All scenarios of `two_ranks.py`, run once: folder, exit statuses and seconds by group, messages."""
    folder = tmp_path_factory.mktemp("ranks")
    groups = [f"{','.join(TRAINED)}:2", f"{','.join(ALIKE)}:1", *(f"{name}:2" for name in ENDS)]
    command = [sys.executable, str(ROOT / "tests" / "two_ranks.py"), str(folder), *groups]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return folder, json.loads((folder / "outcome.json").read_text()), done.stderr


def held(folder: Path, scenario: str, rank: int) -> dict:
    return torch.load(folder / scenario / f"rank{rank}.pt", weights_only=True)


@pytest.mark.parametrize("name", TRAINED)
def test_both_ranks_hold_the_same_state(outcome, name):
    folder, ended, messages = outcome
    assert ended["gssm_aps:2"]["statuses"] == [0, 0], messages
    first, second = held(folder, name, 0), held(folder, name, 1)
    assert (first["global"], second["global"]) == (0, 1)
    assert first["print"] == second["print"]  # weights, moments, data, streams: bit for bit


@pytest.mark.parametrize("name", ALIKE)
def test_two_ranks_equal_one_process_with_the_same_global_batch(outcome, name):
    folder, ended, messages = outcome
    assert ended["gssm_aps:1"]["statuses"] == [0], messages
    two, one = held(folder, name, 0)["algorithm"], held(folder, f"{name}_1", 0)["algorithm"]
    assert two.keys() == one.keys()
    tolerance = 100 * TOLERANCE if name in ("trpo", "acktr", "maml", "pe_ppo") else TOLERANCE
    for key, value in two.items():
        torch.testing.assert_close(value, one[key], rtol=0, atol=tolerance, msg=lambda text, key=key: f"{key}: {text}")


def test_bodies_are_shared_out_and_their_rows_are_those_of_one_process(outcome):
    folder, _, messages = outcome
    two, one = held(folder, "dr_ppo", 1), held(folder, "dr_ppo_1", 0)
    assert (two["stepped"], one["stepped"]) == ([8], [16]), messages
    assert torch.equal(two["real"], one["real"])


def test_an_environment_that_fails_on_one_rank_ends_all_as_such(outcome):
    _, ended, messages = outcome
    assert ended["fails:2"]["statuses"] == [3, 3], messages
    assert ended["fails:2"]["seconds"] < 60
    assert "an arm came off" in messages
    assert "an environment of another process failed" in messages


def test_only_the_first_rank_writes(outcome):
    folder, _, _ = outcome
    run = folder / "gssm_aps" / "run"
    with (run / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == held(folder, "gssm_aps", 0)["rows"]  # every row once, not once per rank
    assert checkpoint.steps(run / "checkpoints") == [2, 1]
    assert sorted(path.name for path in run.iterdir()) == ["checkpoints", "results.csv"]


def test_a_signal_to_one_rank_stops_all_at_the_same_boundary(outcome):
    folder, ended, messages = outcome
    assert ended["signalled:2"]["statuses"] == [75, 75], messages
    assert checkpoint.load(folder / "signalled" / "run" / "checkpoints")[0] == 1


def test_all_end_when_one_dies(outcome):
    _, ended, _ = outcome
    first, second = ended["dies:2"]["statuses"]
    assert second == 9
    assert first not in (0, None)  # None: it hung and had to be killed
    assert ended["dies:2"]["seconds"] < 60


def test_a_loss_that_is_not_finite_on_one_rank_ends_all_as_diverged(outcome):
    _, ended, messages = outcome
    assert ended["diverges:2"]["statuses"] == [4, 4], messages


def fit(folder: Path, *words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "mbrl_lightning.fit", f"out={folder}", "accelerator=cpu", "devices=2", *words]
    return subprocess.run([*command, "strategy=ddp"], env=environment(), capture_output=True, text=True, timeout=200)


def test_the_command_line_trains_on_two_devices(tmp_path):
    done = fit(tmp_path, "conf=debug")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "debug" / "gssm_aps" / "seed0"
    assert checkpoint.load(run / "checkpoints")[0] == 2
    assert json.loads((run / "manifest.json").read_text())["finished_iterations"] == 2
    assert done.stdout.count("[2/2]") == 1  # one progress line, not one per rank


FAMILY = """
import os
from dataclasses import replace
from mbrl_lightning.envs import make_family

def family():
    whole, steps = make_family("cartpole"), []
    def build(tasks):
        steps.append(1)
        if os.environ.get("LOCAL_RANK", "0") == "1" and len(steps) == 3:
            os._exit(9)
        return whole.build(tasks)
    return replace(whole, build=build)
"""


@pytest.mark.slow
def test_the_command_line_ends_when_a_rank_dies(tmp_path):
    (tmp_path / "dying.py").write_text(FAMILY)
    done = fit(tmp_path, "conf=debug", f"env.file={tmp_path / 'dying.py'}", "loop.iterations=50")
    assert done.returncode == 75
    assert "another process of this run ended" in done.stderr
