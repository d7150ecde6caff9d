"""A dynamics model from recorded data: `python -m mbrl_lightning.fit_model data=DATASET [dynamics=graph|ensemble|recurrent]`.

Some episodes are held out; a table and a figure say how far the model errs on them, and whether its members know.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mbrl_lightning.config import config_of
from mbrl_lightning.config.console import answer, make_callable, quiet_libraries
from mbrl_lightning.config.option import option
from mbrl_lightning.config.schema import Config
from mbrl_lightning.config.words import describe, read, take
from mbrl_lightning.errors import ConfigError
from mbrl_lightning.record import require_minari

MODELS = {"graph": "gssm_aps", "ensemble": "me_trpo", "recurrent": "m3po", "gradient": "grbal", "context": "cadm"}
UNKNOWN = Path(__file__).parent / "recorded.py"  # the family of data of which none is told


@dataclass
class Options:
    """Keys of the command line; the others are those of `fit`."""

    data: str = option("", "Minari datasets, by name or folder: one, or several, a,b", required=True)
    dynamics: str | None = option(
        None, "the model, as its algorithm would fit it; or give algorithm=", choices=tuple(MODELS), shown="graph"
    )
    out: str = option("fit_model", "folder for model, table and figure")
    steps: int = option(2000, "gradient steps at most", minimum=1)
    held_out: float = option(0.2, "share of the tasks, or of one task's episodes, to test on", above=0, below=1)


HELP = f"""usage: python -m mbrl_lightning.fit_model data=DATASET [key=value ...]

Fits a model to recorded transitions and tests it on episodes that it has not seen: errors of each output in its own units
beside those of a model that predicts no change, and the members' spread beside the error (calibration.png). Tasks are told
apart by their episodes' metadata `task`, or are the datasets. conf=NAME says that they are of that family, whose features
the model then has; without, it has the plain observation. Any key of `python -m mbrl_lightning.fit --help` may follow, such
as algorithm=, dynamics.hidden= or seed=. `python -m mbrl_lightning.fit ... init_from=OUT` begins with the model.

{describe(Options)}"""


def parsed(argv: Sequence[str]) -> tuple[Options, Config]:
    """Options, and the configuration of the rest."""
    words = read(argv)
    options = take(Options, words, strict=False)
    if options.dynamics and "algorithm" in words.pairs:
        words.problems.append("dynamics= and algorithm= exclude each other")
    fixed = {} if "algorithm" in words.pairs else {"algorithm": MODELS[options.dynamics or "graph"]}
    if not words.pairs.keys() & {"conf", "conf_file", "env.file"}:
        fixed |= {"conf_file": str(UNKNOWN.with_suffix(".yaml")), "env.file": str(UNKNOWN)}
    return options, config_of(words, **fixed)


def fit_model(
    data: str, config: Config, out: str = "fit_model", steps: int = 2000, held_out: float = 0.2
) -> dict[str, Any]:
    """Fit a model to datasets `a,b` and test it on held-out episodes: columns of the table, by name; see `fitting.fit`.

    Raises:
        ConfigError: the datasets do not fit together or the family, or there is nothing to hold out.
        EnvError: a number in them is not finite.
    """
    require_minari()
    quiet_libraries()
    from mbrl_lightning.fit_model.fitting import fit

    return fit(data.split(","), config, Path(out), steps, held_out)


def _command(words: list[str]) -> None:
    options, config = parsed(words)
    if config.resume or config.init_from or config.data:
        raise ConfigError("fit_model has no resume=, init_from= or list of data", "leave them out")
    found = fit_model(options.data, config, options.out, options.steps, options.held_out)
    print(f"{found['text']}\ntable and model are in {options.out}, and calibration.png where figures can be drawn")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    return answer(argv, lambda: HELP, _command)


make_callable(__name__)
