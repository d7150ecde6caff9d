"""Meta-test a finished or running run: `python -m mbrl_lightning.evaluate run=RUN [tasks=test] [episodes=10]`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mbrl_lightning.config import read_run_config
from mbrl_lightning.config.console import answer, quiet_libraries
from mbrl_lightning.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from mbrl_lightning.runs.results import Row

HELP = """usage: python -m mbrl_lightning.evaluate run=RUN [key=value ...]

Loads the newest checkpoint of a run, adapts on unseen tasks without touching the run, prints the meta-test table and
writes evaluation_<tasks>.csv and figures into RUN/evaluation.

  run=RUN         run folder, e.g. runs/cartpole/gssm_aps/seed0
  tasks=test      test (unseen, inside the training range), extreme (outside it) or train (fresh draws)
  episodes=N      episodes per task and context length; default: the run's
  context=K       transitions of the exploration policy at shot 1; default: the run's, or the family's
  seed=0          of the evaluation's own random stream
  figures=true    draw latent space, imagined against real, adaptation curve
  rulers=false    also fit two models to the run's data, one told nothing of the task and one told its true
                  parameters, and measure their one-step errors beside the run's own (takes minutes)
  video=false     film the policy in the first unseen task
  into=results    also put the rows into the run's results.csv, in place of those of the same tasks and iteration
"""


@dataclass
class Options:
    """Keys of the command line."""

    run: str = ""
    tasks: str = "test"
    episodes: int | None = None
    context: int | None = None
    seed: int = 0
    figures: bool = True
    rulers: bool = False
    video: bool = False
    into: str = ""


def parse(argv: Sequence[str]) -> Options:
    """Options from `key=value` words; all problems at once.

    Raises:
        ConfigError: unknown key, wrong value, no run.
    """
    options, problems = Options(), []
    known = Options.__dataclass_fields__
    for word in argv:
        key, sign, value = word.partition("=")
        if not sign or key not in known:
            problems.append(f"'{word}': unknown key{did_you_mean(key, known)}")
            continue
        try:
            setattr(options, key, _read(key, value))
        except ValueError:
            problems.append(f"{word}: not a valid value")
    if options.tasks not in ("test", "extreme", "train"):
        problems.append(f"tasks={options.tasks}: choose test, extreme or train")
    if options.into not in ("", "results"):
        problems.append(f"into={options.into}: there is only into=results")
    if any(number is not None and number < 1 for number in (options.episodes, options.context)):
        problems.append("episodes and context must be at least 1")
    if not options.run:
        problems.append("run= is missing")
    if problems:
        raise ConfigError("; ".join(problems), "see python -m mbrl_lightning.evaluate --help")
    return options


def _read(key: str, value: str) -> Any:
    if key in ("run", "tasks", "into"):
        return value
    if key in ("figures", "rulers", "video"):
        if value.lower() not in ("true", "false"):
            raise ValueError(value)
        return value.lower() == "true"
    return int(value)


def load_run(folder: str | Path) -> Any:
    """The loop of a run as it was at its newest complete checkpoint, for looking at and evaluating.

    Args:
        folder: run folder.

    Returns:
        A `MetaLoop` that writes nothing; its `results` hold the run's rows.

    Raises:
        ConfigError: no run there.
        StorageError: no complete checkpoint.
    """
    cfg = read_run_config(folder)
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
    rulers: bool = False,
    video: bool = False,
    into: str = "",
) -> Any:
    """Meta-test the newest checkpoint of a run.

    Args:
        run: run folder.
        tasks: `test`, `extreme` or `train`.
        episodes: per task and context length; None: as the run was configured.
        context: K, transitions at shot 1; None: as the run was configured.
        seed: of the evaluation stream.
        figures: draw into `run/evaluation`.
        rulers: fit and measure a blind and a told model on the run's data.
        video: film one unseen task.
        into: `results` also puts the rows of these tasks into the run's own results (see `put_into_results`).

    Returns:
        `Results` with the new rows alone.
    """
    loop = load_run(run)
    from mbrl_lightning.measuring import diagnostics
    from mbrl_lightning.runs.results import Results

    if tasks == "extreme" and not len(loop.family.extreme):
        raise ConfigError(f"{loop.family.spec.name} has no extreme tasks", "use tasks=test")
    cfg = loop.cfg.evaluation
    cfg.episodes, cfg.context = episodes or cfg.episodes, context or cfg.context
    folder = Path(run) / "evaluation"
    folder.mkdir(exist_ok=True)
    path = folder / f"evaluation_{tasks}.csv"
    path.unlink(missing_ok=True)
    loop.results = Results(path, loop.results.algorithm, loop.results.env, loop.results.seed)
    loop.streams["evaluation"].manual_seed(seed)
    loop.evaluate(full=True, split=tasks, rulers=rulers)
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
    from mbrl_lightning.runs.lock import Lock
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
        options = parse(argv)
        evaluate(**vars(options))
        from mbrl_lightning.report import report

        folder = Path(options.run) / "evaluation"
        print(report([folder / f"evaluation_{options.tasks}.csv"], out=folder))
        print(f"tables, rows and figures are in {folder}")

    return answer(argv, HELP, command)


if __name__ == "__main__":
    sys.exit(main())
