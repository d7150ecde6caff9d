"""The command line from outside: speed of errors, exit statuses, whole runs, resume, signals, several seeds.
Faults 3, 14, 25 and 35 of the reliability list."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import types
from pathlib import Path

import psutil
import pytest
from fakes import fingerprint, measured

import mbrl_lightning.fit as fit_module
from mbrl_lightning import errors
from mbrl_lightning.__main__ import COMMANDS
from mbrl_lightning.config import load_config
from mbrl_lightning.config.console import guard
from mbrl_lightning.evaluate import load_run
from mbrl_lightning.fit import main
from mbrl_lightning.runs import checkpoint, seed_jobs
from mbrl_lightning.runs.results import read_results
from mbrl_lightning.runs.run import Run, run_folder
from mbrl_lightning.runs.signals import StopFlag

FIT = [sys.executable, "-m", "mbrl_lightning.fit"]

pytestmark = pytest.mark.usefixtures("elsewhere")
KINDS = {"ConfigError": 2, "EnvError": 3, "DivergedError": 4, "StorageError": 5, "Preempted": 75, "Interrupted": 130}


@pytest.mark.parametrize(("kind", "status"), KINDS.items())
def test_exit_statuses_and_two_lines(monkeypatch, capsys, kind, status):
    def fail(run, stop):
        raise getattr(errors, kind)("the cause", "the remedy")

    monkeypatch.setattr(fit_module, "_train", fail)
    assert main(["conf=debug"]) == status
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("error[E-")
    assert first.endswith("the cause")
    assert second == "  remedy: the remedy"


def test_unexpected_errors_keep_their_traceback_and_environments_too(capsys):
    def bug():
        raise ZeroDivisionError

    def environment():
        try:
            bug()
        except ZeroDivisionError as error:
            raise errors.EnvError("task 3 failed", "mend it") from error

    with pytest.raises(ZeroDivisionError):
        guard(bug)
    assert guard(environment) == 3
    text = capsys.readouterr().err
    assert "in bug" in text
    assert text.index("ZeroDivisionError") < text.index("task 3 failed")


@pytest.mark.parametrize("module", COMMANDS)
def test_closed_pipe_ends_quietly(module):
    command = [sys.executable, "-m", f"mbrl_lightning.{module}", "--help"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 141


# -- whole runs of the debug configuration


@pytest.fixture
def plain(monkeypatch):
    """No pictures: they take longer than the training."""
    monkeypatch.setattr(fit_module, "_draw", lambda loop, run: None)


def train(*words):
    return fit_module.fit(load_config(["conf=debug", *words]))


@pytest.mark.parametrize("algorithm", ["gssm_aps", "dr_ppo"])
def test_resume_is_exact(algorithm, plain, monkeypatch):
    words = [f"algorithm={algorithm}", "loop.evaluate_every=1", "loop.iterations=3"]
    whole, parts = (Path(out, "debug", algorithm, "seed0") for out in ("whole", "parts"))
    train(*words, "out=whole")
    with monkeypatch.context() as patch:
        patch.setattr(StopFlag, "requested", signal.SIGTERM)  # as if it had come during the first iteration
        patch.setattr(StopFlag, "heed", lambda *_: None)
        with pytest.raises(errors.Preempted):
            train(*words, "out=parts")
    with (parts / "results.csv").open("a") as file:  # rows of work that was lost after the checkpoint
        file.write((whole / "results.csv").read_text().splitlines(keepends=True)[-1])
    fit_module.fit(load_config([f"resume={parts}"]))
    states = [fingerprint(checkpoint.load(folder / "checkpoints")[1]) for folder in (parts, whole)]
    assert states[0] == states[1]
    rows = [measured(read_results(folder)) for folder in (parts, whole)]
    assert rows[0] == rows[1]
    assert len(rows[0]) > 20


def test_a_finished_run_is_not_run_again_nor_overwritten_when_its_checkpoints_are_gone(plain, capsys, monkeypatch):
    rows, folder = train("loop.iterations=1").rows, run_folder(load_config(["conf=debug"]))
    with monkeypatch.context() as patch:
        patch.setattr(fit_module, "_build_loop", lambda *_: pytest.fail("trained again"))
        assert fit_module.fit(load_config([f"resume={folder}"])).rows == rows
    assert "is finished" in capsys.readouterr().out
    shutil.rmtree(folder / "checkpoints" / "step_00000001")
    with pytest.raises(errors.StorageError, match="checkpoints are gone"):
        fit_module.fit(load_config([f"resume={folder}"]))
    assert read_results(folder) == rows


def test_pictures_are_announced_before_they_are_drawn(capsys, monkeypatch):
    said = []
    monkeypatch.setattr("mbrl_lightning.measuring.diagnostics.draw", lambda *_: said.append(capsys.readouterr().out))
    train("loop.iterations=1")
    assert [text.splitlines()[-1] for text in said] == ["trained; drawing its pictures"]


def test_weights_start_a_new_run(plain):
    train("loop.iterations=1")
    source = Path("runs/debug/gssm_aps/seed0")
    train("loop.iterations=1", "seed=1", f"init_from={source}")
    damaged = source / "checkpoints/step_00000001/state.pt"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(errors.StorageError, match="step_00000001"):
        train("loop.iterations=1", "seed=2", f"init_from={source}")


def test_own_family_from_a_file(plain):
    text = "from mbrl_lightning.envs import make_family\nfamily = lambda: make_family('cartpole')\n"
    Path("mine.py").write_text(text)
    assert train("loop.iterations=1", "env.file=mine.py").rows
    Path("broken.py").write_text("1 / 0")
    with pytest.raises(errors.EnvError, match="division by zero"):
        train("seed=1", "env.file=broken.py")
    Path("empty.py").write_text("")
    with pytest.raises(errors.ConfigError, match="no function family"):
        train("seed=1", "env.file=empty.py")
    assert not Path("runs/debug/gssm_aps/seed1").exists()
    folder = Path("runs/debug/gssm_aps/seed0").absolute()
    Path("elsewhere").mkdir()
    os.chdir("elsewhere")
    assert load_run(folder).iteration == 1
    Path("../mine.py").rename("moved.py")
    with pytest.raises(errors.ConfigError, match="is not at") as caught:
        load_config([f"resume={folder}"])
    assert all(word in caught.value.remedy for word in ("env.file=", "env_file="))
    assert load_run(folder, "moved.py").iteration == 1
    fit_module.fit(load_config([f"resume={folder}", "env.file=moved.py", "loop.iterations=2"]))
    assert load_run(folder).iteration == 2


@pytest.mark.parametrize("place", ["policy", "moments"])
def test_weights_that_are_not_finite_are_not_saved_and_the_way_on_works(plain, monkeypatch, place):
    build = fit_module._build_loop

    def poisoned(*args):
        loop = build(*args)
        improve = loop.algorithm.improve

        def then_poison(*rest):
            metrics = improve(*rest)
            if loop.iteration == 1:
                optimizer = loop.algorithm.optimizers["policy"]
                parameter = next(iter(optimizer.state))
                poison = parameter.data if place == "policy" else optimizer.state[parameter]["exp_avg"]
                poison.view(-1)[0] = float("nan")
            return metrics

        loop.algorithm.improve = then_poison
        return loop

    words = ["algorithm=dr_ppo", "loop.iterations=3"]
    with monkeypatch.context() as patch:
        patch.setattr(fit_module, "_build_loop", poisoned)
        with pytest.raises(errors.DivergedError, match=r"iteration 2.* is not finite") as caught:
            train(*words)
    assert checkpoint.newest(Path("runs/debug/dr_ppo/seed0/checkpoints")) == 1
    added = re.findall(r"(?:init_from|out)=\S+", caught.value.remedy)
    assert "search.lr" in caught.value.remedy
    assert len(added) == 2
    train(*words, *added, "search.lr=1e-6")
    assert Run(load_config(["resume=runs_again/debug/dr_ppo/seed0"])).finished


def test_what_is_asked_for_and_not_here_is_a_configuration_error_and_leaves_nothing(monkeypatch):
    with pytest.raises(errors.ConfigError, match="accelerator=cuda") as caught:
        train("accelerator=cuda")
    assert "accelerator=cpu" in caught.value.remedy
    monkeypatch.setattr("mbrl_lightning.runs.loggers.find_spec", lambda name: None)
    with pytest.raises(errors.ConfigError, match="logger=wandb, but the package is not here") as caught:
        train("logger=csv,wandb")
    assert "mbrl_lightning[wandb]" in caught.value.remedy
    with pytest.raises(errors.ConfigError, match="video=true, but the package is not here"):
        train("video=true")
    with socket.socket() as taken:
        taken.bind(("", 0))
        monkeypatch.setenv("MASTER_PORT", str(taken.getsockname()[1]))
        with pytest.raises(errors.ConfigError, match="MASTER_PORT"):
            train("devices=2", "dynamics.tasks=2", "search.tasks=2")
    assert not list(Path().iterdir())


def test_a_signal_before_the_first_iteration_ends_as_preempted():
    process = subprocess.Popen([*FIT, "conf=debug"], stderr=subprocess.PIPE, text=True)
    while "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text():
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, text = process.communicate(timeout=300)
    assert process.returncode == 75
    assert "give the same command again" in text


def test_preempted_run_saves_and_can_be_resumed():
    words = [*FIT, "conf=debug", "loop.iterations=10000"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert "seed 0 -> runs/debug/gssm_aps/seed0: iteration 1 of 10000" in process.stdout.readline()
    assert process.stdout.readline().startswith("[")
    process.send_signal(signal.SIGTERM)
    _, text = process.communicate(timeout=300)
    assert process.returncode == 75
    assert "resume=" in text
    run = Run(load_config(["resume=runs/debug/gssm_aps/seed0"]))
    assert checkpoint.newest(run.checkpoints) > 0
    assert run.manifest["ended"] == "E-PRE"


# -- several seeds, with stand-ins for the training processes


@pytest.fixture
def seeds(monkeypatch):
    """Replaces the command of seed k by a script and the report by a record of its folders."""
    reported = []
    report = types.ModuleType("mbrl_lightning.report")
    report.report = lambda folders, out: reported.append([folder.name for folder in folders]) or "the table"
    monkeypatch.setitem(sys.modules, "mbrl_lightning.report", report)

    def replace(script):
        def command(job):
            return [sys.executable, "-c", script, str(job.seed), str(job.folder)]

        monkeypatch.setattr(seed_jobs, "command_of", command)
        return reported

    return replace


@pytest.mark.parametrize("jobs", [1, 3])
def test_seeds_go_on_after_a_failure_and_the_first_failure_counts(seeds, capfd, jobs):
    reported = seeds("import sys; print('last words'); sys.exit({1: 4, 2: 5}.get(int(sys.argv[1]), 0))")
    assert main(["conf=debug", "seeds=[0,1,2,3]", f"jobs={jobs}"]) == 4
    assert reported == [["seed0", "seed3"]]  # of those that did not fail
    streams = capfd.readouterr()
    assert "seed 1: failed with exit status 4" in streams.err
    assert "last words" in streams.out + streams.err


def test_finished_seeds_are_skipped_unfinished_resumed_and_others_refused(seeds):
    for seed in (0, 1):
        with Run(load_config(["conf=debug", f"seed={seed}"])) as run:
            checkpoint.save(run.checkpoints, 1 + (seed == 0), {}, keep=1)
    words = ["conf=debug", "seeds=0..2", "threads=1"]
    jobs = seed_jobs.plan(load_config(words), words)
    assert [job.status for job in jobs] == [0, None, None]
    assert jobs[1].words == ["conf=debug", "threads=1", "seed=1", f"resume={run.folder}"]
    assert jobs[2].words == ["conf=debug", "threads=1", "seed=2"]
    load_config(jobs[1].words)
    reported = seeds("import sys; sys.exit(int(sys.argv[1]) == 0)")
    assert main(words) == 0
    assert reported == [["seed0", "seed1", "seed2"]]
    assert main([*words, "search.lr=0.5"]) == 2
    longer = ["conf=debug", "seeds=[0]", "loop.iterations=99"]
    assert seed_jobs.plan(load_config(longer), longer)[0].status is None


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_reaches_every_seed_once_and_leaves_no_process(tmp_path, number, status):
    """Children that save for a moment after one signal, and would end badly after a second one."""
    child = (
        "import signal, sys, time, pathlib\n"
        "hits = []\n"
        "for s in (2, 15): signal.signal(s, lambda n, f: hits.append(n))\n"
        "pathlib.Path(sys.argv[1] + '.ready').touch()\n"
        "while not hits: time.sleep(0.01)\n"
        "time.sleep(0.3)\n"
        "pathlib.Path(sys.argv[1] + '.saved').write_text(str(len(hits)))\n"
    )
    code = (
        "import sys; from mbrl_lightning.runs import seed_jobs; from mbrl_lightning.fit import main\n"
        f"seed_jobs.command_of = lambda job: [sys.executable, '-c', {child!r}, str(job.seed)]\n"
        "sys.exit(main(['conf=debug', 'seeds=0..3', 'jobs=2']))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, start_new_session=True)
    deadline = time.monotonic() + 30
    while len(list(Path().glob("*.ready"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    children = psutil.Process(parent.pid).children(recursive=True)
    assert len(children) == 2
    os.killpg(parent.pid, number)  # as a terminal does: to all that are in the group
    parent.communicate(timeout=30)
    assert parent.returncode == status
    assert {path.name: path.read_text() for path in Path().glob("*.saved")} == {"0.saved": "1", "1.saved": "1"}
    assert not any(process.is_running() for process in children)


def test_gpus_are_shared_out_among_parallel_seeds(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    started = []
    monkeypatch.setattr(subprocess, "Popen", lambda _, env, **__: started.append(env["CUDA_VISIBLE_DEVICES"]))
    words = ["conf=debug", "seeds=0..2", "jobs=3", "accelerator=cuda"]
    config = load_config(words)
    for slot, job in enumerate(seed_jobs.plan(config, words)):
        seed_jobs._start(job, slot, config)
    assert started == ["4", "7", "4"]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,7"
