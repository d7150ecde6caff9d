"""Meta-train and meta-test: `python -m mbrl_lightning.fit conf=NAME [key=value ...]`, or `fit(conf=...)`.

PyTorch is imported inside functions, after the configuration has been checked: a typo answers in a second.
"""

import contextlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mbrl_lightning.config import compose, load_config, to_yaml
from mbrl_lightning.config.console import answer, log, make_callable, quiet_libraries
from mbrl_lightning.config.schema import Config
from mbrl_lightning.config.usage import help_text
from mbrl_lightning.errors import ConfigError, DivergedError, StorageError
from mbrl_lightning.record import require_minari
from mbrl_lightning.runs import checkpoint
from mbrl_lightning.runs.loggers import require_extras
from mbrl_lightning.runs.results import Results
from mbrl_lightning.runs.run import Run, version_told
from mbrl_lightning.runs.signals import StopFlag

if TYPE_CHECKING:
    from lightning.fabric import Fabric

    from mbrl_lightning.envs.family import TaskFamily
    from mbrl_lightning.loop import MetaLoop


def fit(config: Config | None = None, **overrides: Any) -> Results:
    """Train one seed and return its result rows.

    Args:
        config: a checked configuration; or give
        **overrides: the same keys as on the command line, sections as dicts:
            `fit(conf="debug", seed=1, loop={"iterations": 3})`.

    Returns:
        All rows of the run, also written to its folder; those of a finished run at once.

    Raises:
        MBRLError: see `mbrl_lightning.errors`; the subclass says what kind of fault it was.
    """
    if config is None:
        config = compose(overrides)
    elif overrides:
        raise ConfigError("fit() takes a Config or keyword overrides, not both", "put the overrides into the Config")
    if config.seeds is not None:
        raise ConfigError("fit() trains one seed", "call it once per seed, or use the command line for seeds=")
    with StopFlag() as stop, _version_told(config.resume):
        return _train(Run(config), stop)


def _version_told(resumed: str | None) -> contextlib.AbstractContextManager[None]:
    return version_told(Path(resumed).expanduser()) if resumed else contextlib.nullcontext()


def _train(run: Run, stop: StopFlag) -> Results:
    config = run.config
    if run.finished and not config.overwrite:
        results, done = run.restored_results(), config.loop.iterations
        print(f"{run.folder} is finished ({done} iterations); a larger loop.iterations= would extend it")
        return results
    require_extras(config.logger, config.video)
    if config.data:
        require_minari()
    if run.writer:  # before PyTorch, which takes seconds
        print(run.announced(), flush=True)
    quiet_libraries()
    from mbrl_lightning.envs import family_of
    from mbrl_lightning.runs.devices import make_fabric, together

    fabric = make_fabric(config)
    family = family_of(config.env)
    if config.devices * config.num_nodes == 1:  # ranks agree on stopping, at the end of an iteration
        stop.heed("give the same command again")
    try:
        with run, together(fabric, run.folder):
            loop = _build_loop(run, family, stop, fabric)
            results = loop.fit()
            if run.writer:
                run.finish(dict(loop.times))
    except DivergedError as error:
        raise DivergedError(error.cause, f"{error.remedy}: {_way_on(run)}") from error
    return results


def _way_on(run: Run) -> str:
    """What to add to the command of a run that diverged, so that it works."""
    if checkpoint.newest(run.checkpoints) < 0:
        return f"give the same command again with that{' and overwrite=true' if run.learned else ''}"
    out = f"out={run.config.out.rstrip('/')}_again"
    return f"give the command that began the run again with that, and init_from={run.folder} {out} for its last good weights"


def _build_loop(run: Run, family: "TaskFamily", stop: StopFlag, fabric: "Fabric") -> "MetaLoop":
    """The loop as it stood at the newest checkpoint, with the weights of another run, or new."""
    from mbrl_lightning.algorithms import make_algorithm
    from mbrl_lightning.loop import MetaLoop

    config = run.config
    algorithm = make_algorithm(config, family)
    loop = MetaLoop(config, family, algorithm, run.folder, stop, watch=lambda it: _draw(it, run), fabric=fabric)
    resuming = config.resume is not None and bool(checkpoint.steps(run.checkpoints))
    if config.resume is not None and not resuming:
        after = any(row.iteration > config.loop.checkpoint_every for row in loop.results.rows)
        if after or run.manifest.get("finished_iterations"):
            raise StorageError(
                f"{run.folder}: its results are there, but its checkpoints are gone",
                "start anew with another out=, or with overwrite=true, which replaces the results",
            )
        log.warning("%s has no checkpoint yet: starting from the beginning", run.folder)
        loop.results.truncate(-1)
    if resuming or config.init_from:
        loop.restore(run.folder if resuming else Path(config.init_from or ""), weights_only=not resuming)
    if config.data and not resuming:
        from mbrl_lightning.data import recordings

        recordings.read(config.data, family.spec, family.parameters).fill(loop.world.real)
    return loop


def _draw(loop: "MetaLoop", run: Run) -> None:
    """Figures of the present state, and at the end the film that was asked for."""
    from mbrl_lightning.measuring import diagnostics, film

    last, draws = loop.iteration == run.config.loop.iterations, importlib.util.find_spec("matplotlib") is not None
    wanted = ["pictures"] * draws + ["film"] * run.config.video
    if last and wanted:
        print(f"trained; drawing its {' and '.join(wanted)}", flush=True)  # which may take as long as a short run
    if draws:
        diagnostics.draw(loop, run.figures)
    if run.config.video and last:
        film.film(loop, run.videos / "policy.mp4")


def _command(words: Sequence[str], stop: StopFlag) -> int:
    with _version_told(next((word.removeprefix("resume=") for word in words if word.startswith("resume=")), None)):
        return _trained(words, stop)


def _trained(words: Sequence[str], stop: StopFlag) -> int:
    config = load_config([word for word in words if word != "--print-config"])
    if "--print-config" in words:
        print(to_yaml(config), end="")
        return 0
    if config.seeds is not None:
        from mbrl_lightning.runs.seed_jobs import train_seeds

        stop.heed("give the same command again")
        status, folders = train_seeds(config, words)
        if folders:
            _report(folders, folders[0].parent)
        return status
    run = Run(config)
    _train(run, stop)
    if run.writer:
        _report([run.folder], run.folder)
        if any(run.figures.glob("*.png")):
            print(f"pictures of the run are in {run.figures}")
        else:
            print("no pictures: pip install 'mbrl_lightning[viz]' draws them")
        for film in sorted(run.videos.glob("*.gif")):
            print(f"its film is {film.with_suffix('.mp4')} (and .gif)")
    return 0


def _report(runs: Sequence[Path], folder: Path) -> None:
    from mbrl_lightning.report import report

    print(report(runs, folder / "report"))


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see `--help`."""
    with StopFlag() as stop:  # before PyTorch is loaded, which takes seconds
        return answer(argv, lambda: help_text(sys.argv if argv is None else argv), lambda words: _command(words, stop))


make_callable(__name__)
if __name__ == "__main__":
    sys.exit(main())
