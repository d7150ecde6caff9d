"""A sweep here: what its arms are, that one crash loses one run, and that the same command finishes what is missing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from mbrl_lightning import sweep as command
from mbrl_lightning.config.words import read
from mbrl_lightning.errors import ConfigError
from mbrl_lightning.runs import seed_jobs

pytestmark = pytest.mark.usefixtures("elsewhere")


def arms(line: str):
    return command.arms_of(read(line.split()))


def test_arms_are_all_combinations_each_with_a_folder_of_what_is_varied():
    found = arms(
        "conf=cartpole,acrobot algorithm=gssm,gssm_aps seeds=0..2 dynamics.lr=1e-3,1e-2 evaluation.shots=[0,1]"
    )
    assert len(found) == 8
    assert {(arm.config.conf, arm.config.algorithm, arm.config.dynamics.lr) for arm in found} == {
        (conf, algorithm, lr)
        for conf in ("cartpole", "acrobot")
        for algorithm in ("gssm", "gssm_aps")
        for lr in (1e-3, 1e-2)
    }
    assert {(arm.name, arm.config.out) for arm in found} == {
        (f"dynamics.lr={lr}", f"runs/dynamics.lr={lr}") for lr in ("1e-3", "1e-2")
    }
    assert all(arm.config.seeds == "0..2" and arm.config.evaluation.shots == [0, 1] for arm in found)
    folders = {str(job.folder) for arm in found for job in seed_jobs.plan(arm.config, arm.words)}
    assert len(folders) == 24
    (only,) = arms("conf=cartpole logger=csv,tensorboard out=x")
    assert (only.config.logger, only.config.out, only.config.seeds) == (["csv", "tensorboard"], "x", "0")


def test_a_relative_and_an_absolute_folder_of_one_sweep_share_one(tmp_path):
    assert command._out(arms(f"conf=cartpole out={tmp_path}/x,y")) == tmp_path
    assert str(command._out(arms("conf=cartpole dynamics.lr=1e-3,1e-2"))) == "runs"


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("conf=cartpole,carpole", "did you mean 'cartpole'"),
        ("conf=cartpole algorithm=gssm_aps,dr_ppo dynamics.lr=1e-3", "conf=cartpole algorithm=dr_ppo"),
        ("conf=cartpole seed=1", "write seeds="),
        ("conf=cartpole overwrite=true", "overwrite=: remove the runs"),
        ("conf=cartpole launcher=pbs", "must be one of local, slurm, ray"),
        ("conf=cartpole slurm.time=3", "slurm.time: only with launcher=slurm"),
        (
            "conf=cartpole "
            + " ".join(f"dynamics.{key}=1,2,3,4,5,6,7,8,9,10" for key in ("lr", "tasks", "hidden", "layers")),
            "10000",
        ),
    ],
)
def test_a_sweep_that_cannot_be_says_which_of_its_arms(line, part, capsys):
    assert command.main(line.split()) == 2
    assert part in capsys.readouterr().err


def test_what_is_wrong_with_several_arms_is_told_once(capsys):
    assert command.main(["conf=cartpole,acrobot", "algorithm=gssm,gsm", "dynamics.lr=0,1e-3"]) == 2
    told = capsys.readouterr().err
    assert (told.count("algorithm=gsm: unknown"), told.count("dynamics.lr=0.0: must")) == (1, 1)


def test_a_job_array_is_told_by_what_its_jobs_wait_for(monkeypatch):
    slurm = pytest.importorskip("mbrl_lightning.sweep.slurm")
    waits, states = "7_0 PENDING Resources\n7_1 RUNNING None\n7_2 RUNNING None\n", {}
    over, gone = ("7_0 TIMEOUT TimeLimit\n", "", 0), ("", "Invalid job id", 1)
    answers = [(waits, "", 0), ("", "connection refused\n", 1), over, gone]
    answer = lambda *_: SimpleNamespace(**dict(zip(("stdout", "stderr", "returncode"), answers.pop(0))))  # noqa: E731, B905
    monkeypatch.setattr(slurm, "_told", answer)
    told = [slurm._queued("7", states) for _ in range(4)]
    assert told == ["1 PENDING Resources, 2 RUNNING", "squeue fails, waiting for it: connection refused", None, None]
    assert states["7_0"] == "TIMEOUT TimeLimit"


@pytest.mark.parametrize(
    ("state", "log", "status", "part"),
    [
        ("TIMEOUT TimeLimit", True, 75, "ended with status 75 (Slurm: TIMEOUT TimeLimit); see"),
        ("OUT_OF_MEMORY OutOfMemory", True, 1, "the last line"),
        ("FAILED NonZeroExitCode", False, 1, "never started (Slurm: FAILED NonZeroExitCode)"),
    ],
)
def test_a_run_that_slurm_ended_says_how(state, log, status, part, tmp_path, capsys):
    slurm = pytest.importorskip("mbrl_lightning.sweep.slurm")
    paths = SimpleNamespace(result_pickle=tmp_path / "none", stdout=tmp_path / "log")
    if log:
        paths.stdout.write_text("the last line\n")
    slurm._look(job := seed_jobs.Job(0, tmp_path, []), SimpleNamespace(paths=paths), state, False)
    assert job.status == status
    assert part in capsys.readouterr().err


def test_parameters_of_slurm_are_read_as_submitit_wants_them_or_named():
    slurm = pytest.importorskip("mbrl_lightning.sweep.slurm")
    given = {"time": "90", "mem_gb": "0.5", "setup": "module load x", "account": "0012", "name": "7"}
    read = {"time": 90, "mem_gb": 0.5, "setup": ["module load x"], "account": "0012", "name": "7", "exclusive": True}
    assert slurm._values(given | {"exclusive": "true", "srun_args": "[-v,-l]"}) == read | {"srun_args": ["-v", "-l"]}
    with pytest.raises(ConfigError) as raised:
        slurm._values({"time": "1:00:00", "mem_gb": "lots", "partitoin": "x", "array_parallelism": "few"})
    assert all(
        part in raised.value.cause
        for part in ("whole number of minutes", "mem_gb=lots: a number", "'partition'?", "=few")
    )


def test_without_submitit_or_slurm_what_is_missing_is_named(capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert command.main(["conf=cartpole", "launcher=slurm"]) == 2
    assert "pip install 'mbrl_lightning[cluster]'" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    monkeypatch.setenv("PATH", "")
    assert command.main(["conf=cartpole", "launcher=slurm"]) == 2
    assert "no sbatch, srun" in capsys.readouterr().err


def test_one_crash_loses_one_run_and_the_same_command_trains_it_alone(in_this_process, monkeypatch, capsys):
    line = ["conf=debug", "algorithm=dr_ppo", "seeds=0,1", "loop.iterations=1", "evaluation.episodes=1"]
    whole, begun = seed_jobs.command_of, []

    def crashing(job):
        begun.append(str(job.folder))
        return ["sh", "-c", "exit 4"] if "dr_ppo/seed1" in str(job.folder) else whole(job)

    monkeypatch.setattr(seed_jobs, "command_of", crashing)
    assert command.main(line) == 4
    said = capsys.readouterr()
    assert len(begun) == 2
    assert "seed 1: failed with exit status 4" in said.err
    assert [row.split()[:5] for row in said.out.splitlines() if row.startswith("  debug")] == [
        ["debug", "dr_ppo", "1", "of", "2"]
    ]
    begun.clear()
    monkeypatch.setattr(seed_jobs, "command_of", lambda job: begun.append(str(job.folder)) or whole(job))
    assert command.main(line) == 0
    assert begun == ["runs/debug/dr_ppo/seed1"]
    assert "2 of 2" in (text := capsys.readouterr().out)
    assert "1 of 2" not in text
    with pytest.raises(ConfigError, match="exist with another configuration"):
        command.sweep([*line, "search.lr=1e-5"])
