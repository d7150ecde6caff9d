"""M3PO's performance guarantees in numbers: `python -m mbrl_lightning.bounds gamma=0.95 eps_m=0.1 eps_pi=0.02 k=1..10`.

With `run=` the errors are those that a run has measured of its own model and policy. The formulas are in `guarantees.py`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mbrl_lightning.config.console import answer, make_callable
from mbrl_lightning.config.option import option
from mbrl_lightning.config.words import describe, read, take
from mbrl_lightning.errors import ConfigError

DEFAULTS: dict[str, Any] = {"gamma": 0.95, "eps_m": 0.1, "eps_pi": 0.02, "k": list(range(1, 51))}
DISTANCE: dict[str, Any] = {"minimum": 0, "maximum": 1, "why": "total variation distance"}
MOST_LENGTHS = 6  # columns of a run's table


@dataclass
class Options:
    """Keys of the command line; what is None has another default where there is a run."""

    gamma: float | None = option(None, "discount", minimum=0, below=1, shown="0.95")
    eps_m: float | None = option(None, "model error: total variation distance", shown="0.1", **DISTANCE)
    eps_pi: float | None = option(
        None, "total variation distance of the policy from the one that collected the data", shown="0.02", **DISTANCE
    )
    k: list[int] | None = option(
        None,
        "imagined steps of a branch: 7, 1..50 or [1,5,10]",
        minimum=1,
        why="Theorem 2 holds for k >= 1 only; without an imagined step there is no return in the model to bound",
        shown="1..50",
    )
    r_max: float = option(1.0, "bound of the expected reward", above=0)
    run: str = option("", "a run of M3PO, or a folder above several, whose evaluations give eps_m, eps_pi, gamma and k")
    out: str = option("bounds", "folder for the figures")


HELP = f"""usage: python -m mbrl_lightning.bounds [key=value ...]

Prints how far the return in the model can be from the true one by M3PO's Theorem 1 (rollouts from the initial state on,
C_Th1) and Theorem 2 (k steps that branch off real histories, C_Th2, as printed and as the sum in its proof gives it), which
k is best, and draws the paper's Fig. 4 (fig4.png). With run= it draws the errors along the run and what they bound
(bounds.png); a value given on the command line takes the place of the run's.

{describe(Options)}"""


def parse(argv: Sequence[str]) -> Options:
    """Options from `key=value` words."""
    words = read(argv)
    options = take(Options, words)
    if options.run and len(options.k or ()) > MOST_LENGTHS:
        words.problems.append(f"k: with run= at most {MOST_LENGTHS} lengths; each is a column of the table")
    words.raise_problems("see python -m mbrl_lightning.bounds --help")
    return options


def bounds(options: Options) -> str:
    """The tables as plain text; the figure goes to `options.out`."""
    draws = importlib.util.find_spec("matplotlib") is not None
    text, picture = _of_run(options, draws) if options.run else _of_numbers(options, draws)
    drawn = f"figure: {picture}" if draws else "no figure: matplotlib is missing (pip install 'mbrl_lightning[viz]')"
    return f"{text}\n\n{drawn}"


def _of_numbers(options: Options, draws: bool) -> tuple[str, Path]:
    from mbrl_lightning.bounds import tables

    gamma, eps_m, eps_pi, k = (
        DEFAULTS[key] if getattr(options, key) is None else getattr(options, key) for key in DEFAULTS
    )
    text = tables.bounds_table(gamma, eps_m, eps_pi, k, options.r_max).text()
    picture = Path(options.out) / "fig4.png"
    if draws:
        tables.comparison(picture, sorted({*tables.GAMMAS, gamma}), options.r_max)
    return text, picture


def _of_run(options: Options, draws: bool) -> tuple[str, Path]:
    from mbrl_lightning.bounds import tables
    from mbrl_lightning.bounds.guarantees import vacuous_above

    errors = tables.read_errors(options.run)
    gamma = options.gamma if options.gamma is not None else _configured(options.run, "sac.gamma")
    if gamma is None:
        raise ConfigError(f"{options.run}: its configuration does not say one sac.gamma", "give gamma=")
    k = options.k or [_configured(options.run, "branch.length") or 1]
    given = (gamma, k, options.r_max, options.eps_m, options.eps_pi)
    runs = {name: (columns, tables.run_bounds(columns, *given)) for name, columns in errors.items()}
    limit = float(vacuous_above(gamma, options.r_max))
    shown = [tables.run_table(name, *found, limit).text() for name, found in runs.items()]
    picture = Path(options.out) / "bounds.png"
    if draws:
        tables.along_runs(runs, limit, picture)
    return "\n\n".join([f"gamma={gamma:g}, r_max={options.r_max:g}", *shown, tables.LIMITS]), picture


def _configured(run: str, key: str) -> Any:
    """The value on which the configurations of a run, or of all runs below a folder, agree; else None."""
    from omegaconf import OmegaConf

    folder = Path(run)
    files = [folder / "config.yaml"] if (folder / "config.yaml").is_file() else folder.rglob("config.yaml")
    values = {OmegaConf.select(OmegaConf.load(file), key) for file in files}
    return values.pop() if len(values) == 1 else None


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    return answer(argv, lambda: HELP, lambda words: print(bounds(parse(words))))


make_callable(__name__)
