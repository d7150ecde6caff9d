"""Meta-test a finished or running run: `python -m mbrl_lightning.evaluate run=RUN [tasks=test] [episodes=10]`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mbrl_lightning.config import read_run_config
from mbrl_lightning.config.console import answer, make_callable, quiet_libraries
from mbrl_lightning.config.option import option
from mbrl_lightning.config.words import describe, parse
from mbrl_lightning.errors import ConfigError
from mbrl_lightning.runs.storage import Lock, probe

if TYPE_CHECKING:
    from mbrl_lightning.runs.results import Row


@dataclass
class Options:
    """Keys of the command line."""

    run: str = option("", "run folder, e.g. runs/cartpole/gssm_aps/seed0", required=True)
    tasks: str = option(
        "test",
        "unseen tasks inside the training range, tasks outside it (extreme), or fresh draws (train)",
        choices=("test", "extreme", "train"),
    )
    episodes: int | None = option(None, "episodes per task and context length", minimum=1, shown="(the run's)")
    context: int | None = option(
        None, "transitions of the exploration policy at shot 1", minimum=1, shown="(the run's)"
    )
    seed: int = option(0, "of the evaluation's own random stream", minimum=0)
    figures: bool = option(True, "draw latent space, imagined against real, adaptation curve")
    baselines: bool = option(
        False,
        "also fit two models to the run's data, one told nothing of the task and one told its true parameters, and "
        "measure their one-step errors beside the run's own (takes minutes)",
    )
    video: bool = option(False, "film the policy in the first unseen task")
    into: str = option(
        "",
        "results: also put the rows into the run's results.csv, in place of those of the same tasks",
        choices=("results",),
    )
    env_file: str | None = option(None, "where the run's env.file is now, if it has moved")


HELP = f"""usage: python -m mbrl_lightning.evaluate run=RUN [key=value ...]

Loads the newest checkpoint of a run, adapts on unseen tasks without touching the run, prints the meta-test table and
writes evaluation_<tasks>.csv and figures into RUN/evaluation.

{describe(Options)}"""


def load_run(folder: str | Path, env_file: str | None = None) -> Any:
    """The loop of a run as it was at its newest complete checkpoint, for looking at and evaluating.

    Args:
        folder: run folder.
        env_file: where the run's `env.file` is now, if it has moved.

    Returns:
        A `MetaLoop` that writes nothing; its `results` hold the run's rows.

    Raises:
        ConfigError: no run there.
        StorageError: no complete checkpoint.
    """
    cfg = read_run_config(folder, env_file)
    quiet_libraries()
    from mbrl_lightning.algorithms import make_algorithm
    from mbrl_lightning.envs import family_of
    from mbrl_lightning.loop import MetaLoop
    from mbrl_lightning.runs import checkpoint
    from mbrl_lightning.runs.results import read_results

    _, state = checkpoint.load(Path(folder) / "checkpoints")
    cfg.devices, cfg.num_nodes, cfg.strategy = 1, 1, "auto"
    cfg.accelerator = "cpu" if cfg.accelerator == "cpu" else "auto"  # the run's GPU may not be here
    family = family_of(cfg.env)
    algorithm = make_algorithm(cfg, family)
    loop = MetaLoop(cfg, family, algorithm, quiet=True)
    checkpoint.refuse_mismatch(state["algorithm"], algorithm.state_dict(), str(folder))
    loop.load_state_dict(state)
    loop.results.rows.extend(read_results(folder))
    return loop


def evaluate(
    run: str | Path,
    tasks: str = "test",
    episodes: int | None = None,
    context: int | None = None,
    seed: int = 0,
    figures: bool = True,
    baselines: bool = False,
    video: bool = False,
    into: str = "",
    env_file: str | None = None,
) -> Any:
    """Meta-test the newest checkpoint of a run.

    Args:
        run: run folder.
        tasks: `test`, `extreme` or `train`.
        episodes: per task and context length; None: as the run was configured.
        context: K, transitions at shot 1; None: as the run was configured.
        seed: of the evaluation stream.
        figures: draw into `run/evaluation`.
        baselines: fit and measure a blind and a told model on the run's data.
        video: film one unseen task.
        into: `results` also puts the rows of these tasks into the run's own results (see `put_into_results`).
        env_file: as in `load_run`.

    Returns:
        `Results` with the new rows alone.
    """
    loop = load_run(run, env_file)
    from mbrl_lightning.measuring import diagnostics
    from mbrl_lightning.runs.results import Results

    if tasks == "extreme" and not len(loop.family.extreme):
        raise ConfigError(f"{loop.family.spec.name} has no extreme tasks", "use tasks=test")
    cfg = loop.cfg.evaluation
    cfg.episodes, cfg.context = episodes or cfg.episodes, context or cfg.context
    folder = Path(run) / "evaluation"
    probe(folder)
    loop.results = Results(None, loop.results.algorithm, loop.results.env, loop.results.seed)
    loop.streams["evaluation"].manual_seed(seed)
    loop.evaluate(full=True, split=tasks, baselines=baselines)
    loop.results.save_as(folder / f"evaluation_{tasks}.csv")  # the earlier one stays until there is another
    if into:
        print(put_into_results(run, [row for row in loop.results.rows if row.split == tasks]))
    if figures:
        diagnostics.draw(loop, folder)
    if video:
        diagnostics.film(loop, folder / "policy.mp4")
    return loop.results


def put_into_results(run: str | Path, rows: Sequence[Row]) -> str:
    """Rows measured after a run put into its `results.csv`, in place of those of the same tasks and iteration.

    Args:
        run: run folder.
        rows: at least one; of one split and iteration.

    Returns:
        What was done, in words.

    Raises:
        StorageError: the run is being trained, or the file cannot be written; it is as before.
    """
    from mbrl_lightning.runs.results import Results

    lock = Lock(Path(run) / "lock")
    lock.acquire()
    try:
        results = Results(Path(run) / "results.csv", rows[0].algorithm, rows[0].env, rows[0].seed)
        gone = results.put_in_place(rows)
    finally:
        lock.release()
    where = f"{rows[0].split} tasks at iteration {rows[0].iteration}"
    return f"{results.path}: {len(rows)} rows of {where} put in place of {gone}"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""

    def command(argv: list[str]) -> None:
        options = parse(Options, argv, "evaluate")
        evaluate(**vars(options))
        from mbrl_lightning.report import report

        folder = Path(options.run) / "evaluation"
        print(report([folder / f"evaluation_{options.tasks}.csv"], out=folder))
        print(f"tables, rows and figures are in {folder}")

    return answer(argv, lambda: HELP, command)


make_callable(__name__)
if __name__ == "__main__":
    sys.exit(main())
