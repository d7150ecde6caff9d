"""Comparisons as commands that draw the figure: `python -m mbrl_lightning.study biased seeds=0..2`.

A study is a set of arms, each a configuration. Finished runs are kept and skipped, stopped ones go on, so the command may be
given again, with more seeds too.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from mbrl_lightning.config import load_config
from mbrl_lightning.config.console import answer, make_callable
from mbrl_lightning.config.option import option
from mbrl_lightning.config.words import describe, read, take
from mbrl_lightning.errors import ConfigError, did_you_mean
from mbrl_lightning.study import adaptation, gssm_models, mb_mpo, quick, rivals
from mbrl_lightning.study.base import folder_of

STUDIES = {**mb_mpo.STUDIES, **gssm_models.STUDIES, **rivals.STUDIES, **adaptation.STUDIES, **quick.STUDIES}


@dataclass
class Options:
    """Words of the command line that are not the configuration's."""

    name: str = option("", f"{' | '.join(STUDIES)}", bare=True, required=True, item="NAME")
    out: str = option("runs/studies", "runs are in out/NAME/<arm>, table and figure in out/NAME")
    arms: str = option("*", "which arms, by patterns of their names, e.g. 'cartpole *' or 'maml,rl2'")


LINES = "\n".join(f"  {name:<12} {f'{one.figure}: ' * bool(one.figure)}{one.question}" for name, one in STUDIES.items())
HELP = f"""usage: python -m mbrl_lightning.study NAME [seeds=0..2] [key=value ...]

Trains every arm of a study with every seed, prints the table and draws the figure. Figures are MB-MPO's (Clavera et al. 2018),
tables GSSM's (Wang & van Hoof 2022).

{LINES}

{describe(Options)}

Any other key of `python -m mbrl_lightning.fit --help` goes to all arms; one that tells the arms apart cannot be given.
"""
OUT = Options.out


def arm_words(name: str, words: Sequence[str], out: str = OUT, chosen: str = Options.arms) -> dict[str, list[str]]:
    """The command line of `mbrl_lightning.fit` for every arm of a study that a pattern has `chosen`, with runs below `out`.

    The user's `key=value` words replace the study's own; a ConfigError if there is no such study or arm, or arms differ in a
    word.
    """
    if name not in STUDIES:
        raise ConfigError(f"no study '{name}'{did_you_mean(name, STUDIES)}", f"choose one of {', '.join(STUDIES)}")
    given = read(words).pairs
    wanted = [each.strip() for each in chosen.split(",")]
    arms = {
        arm: read(changes.split()).pairs
        for arm, changes in STUDIES[name].arms.items()
        if any(fnmatchcase(arm, each) for each in wanted)
    }
    if not arms:
        raise ConfigError(f"no arm of '{name}' is called {chosen!r}", f"choose among {', '.join(STUDIES[name].arms)}")
    if taken := sorted(given.keys() & {key for changes in arms.values() for key in changes}):
        raise ConfigError(f"{', '.join(taken)}: the arms of '{name}' differ in that", "leave it out")
    base = {"seeds": STUDIES[name].seeds} | read(STUDIES[name].base.split()).pairs | given
    pairs = {arm: base | changes | {"out": f"{out}/{name}/{folder_of(arm)}"} for arm, changes in arms.items()}
    return {arm: [f"{key}={value}" for key, value in own.items()] for arm, own in pairs.items()}


def study(name: str, words: Sequence[str] = (), out: str = OUT, arms: str = Options.arms) -> tuple[int, str]:
    """Train what is missing, then tabulate and draw; arguments and errors as in `arm_words`.

    Returns:
        Exit status of the first run that failed, that of the study's verdict if none did; the tables of what is there as
        plain text, with the figure's path, or nothing after a signal.
    """
    commands = arm_words(name, words, out, arms)
    configs = {arm: load_config(command) for arm, command in commands.items()}  # all of them are sound, or none begins
    from mbrl_lightning.runs import seed_jobs

    status = 0
    one, folder = STUDIES[name], Path(out) / name
    if one.train is not None:
        one.train(configs, folder)
    for number, (arm, command) in enumerate(commands.items() if one.train is None else (), 1):
        print(f"{name}, {number} of {len(commands)}: {arm}", flush=True)
        ended, _ = seed_jobs.train_seeds(configs[arm], command)
        status = status or ended
        if ended in (75, 130):
            return ended, "stopped; the same command goes on from here"
    rows = one.rows(folder)
    if not rows:
        return status, "no run of this study has any rows"
    closed, text = one.close(name, one, folder, rows)
    return status or closed, text


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""

    def command(argv: list[str]) -> int:
        words = read(argv)
        options = take(Options, words, strict=False)
        words.problems += [f"{word!r}: key=value is expected" for word in words.bare]
        words.raise_problems("see python -m mbrl_lightning.study --help")
        status, text = study(
            options.name, [f"{key}={text}" for key, text in words.pairs.items()], options.out, options.arms
        )
        print(text)
        return status

    return answer(argv, lambda: HELP, command)


make_callable(__name__)


if __name__ == "__main__":
    sys.exit(main())
