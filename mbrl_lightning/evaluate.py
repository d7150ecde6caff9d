"""Meta-test a finished or running run: `python -m mbrl_lightning.evaluate run=RUN [tasks=test] [episodes=10]`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mbrl_lightning.config import read_run_config
from mbrl_lightning.config.console import answer, make_callable, quiet_libraries
from mbrl_lightning.config.files import PRETRAINED, is_pretrained, located, read_yaml
from mbrl_lightning.config.option import option
from mbrl_lightning.config.words import describe, parse
from mbrl_lightning.errors import ConfigError
from mbrl_lightning.runs.results import Results, Row, read_results
from mbrl_lightning.runs.run import version_told
from mbrl_lightning.runs.storage import locked, probe

SPLITS = ("test", "extreme", "train")


@dataclass
class Options:
    """Keys of the command line."""

    run: str = option("", "run folder, e.g. runs/cartpole/gssm_aps/seed0, or pretrained:NAME", required=True)
    tasks: str = option("test", "unseen tasks inside the training range, outside it, or fresh draws", choices=SPLITS)
    episodes: int | None = option(None, "episodes per task and context length", minimum=1, shown="(the run's)")
    context: int | None = option(None, "explored transitions at shot 1", minimum=1, shown="(the run's)")
    seed: int = option(0, "of the evaluation's own random stream", minimum=0)
    figures: bool = option(True, "draw latent space, imagined against real, adaptation curve")
    baselines: bool = option(
        False,
        "also fit two models to the run's data, one told nothing of the task and one told its true parameters, and "
        "measure their one-step errors beside the run's own (takes minutes)",
    )
    video: bool = option(False, "film the policy in the first unseen task")
    into: str = option(
        "", "also put the rows into the run's, in place of those of the same tasks", choices=("results",)
    )
    env_file: str | None = option(None, "where the run's env.file is now, if it has moved")


HELP = f"""usage: python -m mbrl_lightning.evaluate run=RUN [key=value ...]

Loads the newest checkpoint of a run, adapts on unseen tasks without touching the run, prints the meta-test table and
writes evaluation_<tasks>.csv and figures into RUN/evaluation.

{describe(Options)}"""


def load_run(folder: str | Path, env_file: str | None = None) -> Any:
    """The `MetaLoop` of a run as it was at its newest complete checkpoint, for looking at and evaluating; it writes nothing.

    Its `results` hold the run's rows. `env_file`: where the run's `env.file` is now, if it has moved. A ConfigError where there
    is no run, a StorageError where there is no complete checkpoint.
    """
    with version_told(located(folder)):
        cfg = read_run_config(folder, env_file)
        quiet_libraries()
        from mbrl_lightning.algorithms import make_algorithm
        from mbrl_lightning.envs import family_of
        from mbrl_lightning.loop import MetaLoop

        cfg.devices, cfg.num_nodes, cfg.strategy = 1, 1, "auto"
        cfg.accelerator = "cpu" if cfg.accelerator == "cpu" else "auto"  # the run's GPU may not be here
        family = family_of(cfg.env)
        loop = MetaLoop(cfg, family, make_algorithm(cfg, family), quiet=True)
        loop.restore(located(folder), weights_only=is_pretrained(folder))
    if is_pretrained(folder):  # how long it was trained stands on its card, and its rows nowhere
        loop.real.num_steps = read_yaml(located(folder) / "card.yaml", str(folder), [])["real_steps"]
    else:
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
) -> Results:
    """Meta-test the newest checkpoint of a run into `run/evaluation`: the new rows. Arguments as on the command line."""
    loop = load_run(run, env_file)
    from mbrl_lightning.measuring import diagnostics, film

    if is_pretrained(run) and (baselines or into):
        raise ConfigError(f"{run} has weights alone: no data, and no rows", "leave baselines= and into= away")
    if tasks == "extreme" and not len(loop.family.extreme):
        raise ConfigError(f"{loop.family.spec.name} has no extreme tasks", "use tasks=test")
    cfg = loop.cfg.evaluation
    cfg.episodes, cfg.context = episodes or cfg.episodes, context or cfg.context
    folder = evaluation_folder(run)
    probe(folder)
    loop.results = Results(None, loop.results.algorithm, loop.results.env, loop.results.seed)
    loop.streams["evaluation"].manual_seed(seed)
    loop.progress.active, loop.progress.stage = True, "evaluate"
    with loop.progress.watching(lambda: f"{len(loop.results.rows):,} numbers of {tasks} tasks"):
        loop.evaluate(full=True, split=tasks, baselines=baselines)
    loop.results.save_as(folder / f"evaluation_{tasks}.csv")  # the earlier one stays until there is another
    if into:
        print(put_into_results(Path(run), [row for row in loop.results.rows if row.split == tasks]))
    if figures:
        diagnostics.draw(loop, folder)
    if video:
        film.film(loop, folder / "policy.mp4")
    return loop.results


def evaluation_folder(run: str | Path) -> Path:
    """Where the evaluation of a run goes; that of shipped weights into the present folder."""
    return Path("evaluation", str(run).removeprefix(PRETRAINED)) if is_pretrained(run) else Path(run) / "evaluation"


def put_into_results(run: Path, rows: Sequence[Row]) -> str:
    """Rows of one split and iteration put into a run's `results.csv` in place of those there; what was done, in words.

    A StorageError if the run is being trained, or the file cannot be written; it is as before.
    """
    with locked(run):
        results = Results(run / "results.csv", rows[0].algorithm, rows[0].env, rows[0].seed)
        gone = results.put_in_place(rows)
    where = f"{rows[0].split} tasks at iteration {rows[0].iteration}"
    return f"{results.path}: {len(rows)} rows of {where} put in place of {gone}"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""

    def command(argv: list[str]) -> None:
        options = parse(Options, argv, "evaluate")
        evaluate(**vars(options))
        from mbrl_lightning.report import report

        folder = evaluation_folder(options.run)
        print(report([folder / f"evaluation_{options.tasks}.csv"], out=folder))
        print(f"tables and rows{', figures' * options.figures}{', policy.mp4' * options.video} are in {folder}")

    return answer(argv, lambda: HELP, command)


make_callable(__name__)
if __name__ == "__main__":
    sys.exit(main())
