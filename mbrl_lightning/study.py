"""MB-MPO's own studies as commands that draw the figure: `python -m mbrl_lightning.study biased seeds=0..2`.

A study is a set of arms, each a configuration, on the same family with the same budget. Finished runs are kept and skipped,
stopped ones go on, so the command may be given again, with more seeds too.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mbrl_lightning.config import load_config
from mbrl_lightning.config.console import answer, make_callable
from mbrl_lightning.config.option import option
from mbrl_lightning.config.words import describe, read, take
from mbrl_lightning.errors import ConfigError, did_you_mean
from mbrl_lightning.runs.results import Row, read_results

if TYPE_CHECKING:
    from mbrl_lightning.report.tables import Table


class Study(NamedTuple):
    """A figure of Clavera et al. 2018, what is asked, `key=value` words of each arm by its name, and those of all arms."""

    figure: str
    question: str
    arms: Mapping[str, str]
    base: str = "conf=half_cheetah_200 algorithm=mb_mpo"


STUDIES = {
    "plasticity": Study(
        "Fig. 3",
        "Does the policy change most by its inner step where the models disagree?",
        {"mb_mpo": ""},
        "conf=point2d algorithm=mb_mpo loop.keep=1000",
    ),
    "biased": Study(
        "Fig. 4",
        "Half-cheetah, 100 steps, models off by U(0, b_max) and noise of 0.1: does it still run?",
        {
            f"{algorithm}, b_max={bias}": f"algorithm={algorithm} meta.bias={bias}"
            for bias in ("0", "0.5", "1")
            for algorithm in ("mb_mpo", "me_trpo")
        },
        "conf=half_cheetah_200 env.options.horizon=100 meta.noise=0.1",
    ),
    "horizon": Study(
        "Fig. 5",
        "Half-cheetah, 1,000 steps: is learning steady with an inner step, and without?",
        {"with adaptation": "", "without adaptation": "meta.inner_lr=0"},
        "conf=half_cheetah_200 algorithm=mb_mpo env.options.horizon=1000 search.horizon=200 search.initial_starts=0.5 "
        "loop.tasks_per_iteration=4 evaluation.context=2000",
    ),
    "tailored": Study(
        "Fig. 6",
        "Who should collect the real data: the adapted policies, or the one before it adapts?",
        {"adapted policies collect": "", "the policy before it adapts": "meta.collectors=prior"},
    ),
    "inner_step": Study(
        "Fig. 7a",
        "How large an inner step?",
        {f"inner step {size}": f"meta.inner_lr={size}" for size in ("0", "0.01", "0.1", "0.3")},
    ),
    "ensemble": Study(
        "Fig. 7b",
        "How many models?",
        {f"{count} model{'s' * (count > 1)}": f"dynamics.members={count}" for count in (1, 3, 5, 10)},
    ),
    "outer_steps": Study(
        "Fig. 7c",
        "How many outer steps before the models are fitted again?",
        {f"{count} outer steps": f"meta.updates={count}" for count in (10, 30, 60)},
    ),
}


@dataclass
class Options:
    """Words of the command line that are not the configuration's."""

    name: str = option("", f"{' | '.join(STUDIES)}", bare=True, required=True, item="NAME")
    out: str = option("runs/studies", "runs are in out/NAME/<arm>, table and figure in out/NAME")


LINES = "\n".join(f"  {name:<12} {study.figure}: {study.question}" for name, study in STUDIES.items())
HELP = f"""usage: python -m mbrl_lightning.study NAME [seeds=0..2] [key=value ...]

Trains every arm of one of MB-MPO's studies (Clavera et al. 2018) with every seed, prints the table and draws the figure.

{LINES}

{describe(Options)}

Any other key of `python -m mbrl_lightning.fit --help` goes to all arms; one that tells the arms apart cannot be given.
"""
OUT = Options.out


def folder_of(arm: str) -> str:
    """Name of an arm's folder."""
    return re.sub(r"[^a-z0-9.]+", "_", arm.lower()).strip("_")


def arm_words(name: str, words: Sequence[str], out: str = OUT) -> dict[str, list[str]]:
    """The command line of `mbrl_lightning.fit` for every arm of a study, with runs below `out`.

    The user's `key=value` words replace the study's own; a ConfigError if there is no such study, or arms differ in a word.
    """
    if name not in STUDIES:
        raise ConfigError(f"no study '{name}'{did_you_mean(name, STUDIES)}", f"choose one of {', '.join(STUDIES)}")
    given = read(words).pairs
    arms = {arm: read(changes.split()).pairs for arm, changes in STUDIES[name].arms.items()}
    if taken := sorted(given.keys() & {key for changes in arms.values() for key in changes}):
        raise ConfigError(f"{', '.join(taken)}: the arms of '{name}' differ in that", "leave it out")
    base = {"seeds": "0..2"} | read(STUDIES[name].base.split()).pairs | given
    pairs = {arm: base | changes | {"out": f"{out}/{name}/{folder_of(arm)}"} for arm, changes in arms.items()}
    return {arm: [f"{key}={value}" for key, value in own.items()] for arm, own in pairs.items()}


def study(name: str, words: Sequence[str] = (), out: str = OUT) -> tuple[int, str]:
    """Train what is missing, then tabulate and draw; arguments and errors as in `arm_words`.

    Returns:
        Exit status of the first run that failed, 0 if none did; the tables of what is there as plain text, with the
        figure's path, or nothing after a signal.
    """
    commands = arm_words(name, words, out)
    configs = {arm: load_config(command) for arm, command in commands.items()}  # all of them are sound, or none begins
    from mbrl_lightning.runs import seed_jobs

    status = 0
    for number, (arm, command) in enumerate(commands.items(), 1):
        print(f"{name}, {number} of {len(commands)}: {arm}", flush=True)
        ended, _ = seed_jobs.train_seeds(configs[arm], command)
        status = status or ended
        if ended in (75, 130):
            return ended, "stopped; the same command goes on from here"
    folder = Path(out) / name
    rows = rows_of(name, folder)
    return status, tabulate(name, folder, rows) if rows else "no run of this study has any rows"


def tabulate(name: str, folder: Path, rows: Sequence[Row]) -> str:
    """Tables and figure of a study, written into the folder above its runs."""
    head, tables = f"{STUDIES[name].figure} of MB-MPO. {STUDIES[name].question}", tables_of(name, rows)
    (folder / "study.md").write_text("\n\n".join([head, *(table.markdown() for table in tables)]) + "\n")
    draws, picture = importlib.util.find_spec("matplotlib") is not None, folder / f"{name}.png"
    text = [head, *(table.text() for table in tables)]
    if name == "plasticity":
        text.append(plasticity_along_runs(folder, picture if draws else None))
    elif draws:
        draw(name, rows, picture)
    missing = "no figure: matplotlib is missing (pip install 'mbrl_lightning[viz]')"
    return "\n\n".join([*text, f"figure: {picture}" if draws else missing])


def tables_of(name: str, rows: Sequence[Row]) -> list[Table]:
    """Returns of all arms, how far their bodies got, and how their training went."""
    from mbrl_lightning.report.kinds import BODY, RETURN, TRAINING
    from mbrl_lightning.report.tables import build

    env = f"{rows[0].env}, study '{name}'"
    tables = (build(rows, env, split, kind) for split, kind in (("test", RETURN), ("test", BODY), ("", TRAINING)))
    return [table for table in tables if table is not None]


def draw(name: str, rows: Sequence[Row], path: Path) -> Path:
    """Learning curves of all arms, of the policy before it adapts."""
    from mbrl_lightning.report.figures import learning_curve

    return learning_curve(rows, "return/policy", path, shot=0, title=STUDIES[name].question)


def plasticity_along_runs(folder: Path, picture: Path | None) -> str:
    """The rank correlation at every checkpoint of every run below `folder`, in words; draws the newest."""
    from mbrl_lightning.evaluate import load_run
    from mbrl_lightning.measuring.plasticity import Plasticity, draw_maps, grid, plasticity
    from mbrl_lightning.runs import checkpoint

    states, found = grid(), list[list[Plasticity]]()
    for run in sorted(file.parent for file in folder.rglob("config.yaml")):
        loop, each = load_run(run), list[Plasticity]()
        for step in reversed(checkpoint.steps(run / "checkpoints")):
            number = loop.restore(run, weights_only=True, last=step)
            each.append(Plasticity(run.name, number, states, *plasticity(loop.algorithm, states)))
        found.append(each)
    if picture is not None:
        draw_maps([each[-1] for each in found], picture)
    lines = ["rank correlation over the plane of KL(pi, pi') and the models' deviation"]
    for each in found:
        said = (f"{now.correlation:+.2f} after iteration {now.iteration}" for now in each)
        lines.append(f"  {each[-1].run}: " + ", ".join(said))
    return "\n".join(lines)


def rows_of(name: str, folder: Path) -> list[Row]:
    """Rows of all arms with runs below `folder`, each under the name of its arm."""
    there = {arm: folder / folder_of(arm) for arm in STUDIES[name].arms if (folder / folder_of(arm)).is_dir()}
    return [row._replace(algorithm=arm) for arm, place in there.items() for row in read_results(place)]


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""

    def command(argv: list[str]) -> int:
        words = read(argv)
        options = take(Options, words, strict=False)
        words.problems += [f"{word!r}: key=value is expected" for word in words.bare]
        words.raise_problems("see python -m mbrl_lightning.study --help")
        status, text = study(options.name, [f"{key}={text}" for key, text in words.pairs.items()], options.out)
        print(text)
        return status

    return answer(argv, lambda: HELP, command)


make_callable(__name__)


if __name__ == "__main__":
    sys.exit(main())
