"""Many configurations in one command: `python -m mbrl_lightning.sweep conf=a,b algorithm=x,y seeds=0..4 key=1,2`.

Every combination of the values is an arm, trained with every seed. Finished runs are skipped and stopped ones go on, so the
command may be given again; a run that fails is lost alone.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mbrl_lightning.config import load_config
from mbrl_lightning.config.console import answer, make_callable
from mbrl_lightning.config.option import option
from mbrl_lightning.config.schema import Config
from mbrl_lightning.config.words import Words, describe, read, take
from mbrl_lightning.errors import ConfigError
from mbrl_lightning.runs import seed_jobs
from mbrl_lightning.runs.storage import replace_file

if TYPE_CHECKING:
    from mbrl_lightning.report.tables import Table

WHOLE = ("seeds", "logger")  # lists of their own
REFUSED = {
    "seed": "write seeds=",
    "resume": "the command resumes by itself",
    "overwrite": "remove the runs, or set out=",
}
FEW, MOST = 5, 1000  # problems of arms that are told, and arms of a sweep


@dataclass
class Options:
    """Words of the command line that are not the configuration's."""

    launcher: str = option(
        "local",
        "here, jobs= runs at a time; job arrays of Slurm; a Ray cluster",
        choices=("local", "slurm", "ray"),
    )


HELP = f"""usage: python -m mbrl_lightning.sweep conf=NAME[,NAME...] [algorithm=NAME,...] [seeds=0..4] [key=value,... ...]

Trains every combination of the values with every seed, and prints one table. Runs lie below out= as those of
`python -m mbrl_lightning.fit`; where other keys than conf and algorithm have several values, in a folder of that name. Finished
runs are skipped, stopped ones go on, a crash loses one run: give the same command again.

{describe(Options)}

Any key of `python -m mbrl_lightning.fit --help` may have values with commas between. jobs= is how many runs are trained at a time
(launcher=slurm: all at once, launcher=ray: as many as there is room for, unless given). launcher=ray goes to the cluster of
RAY_ADDRESS, or makes one of this machine. With launcher=slurm, slurm.NAME=VALUE goes to submitit, such as slurm.partition=gpu
slurm.time=240 [minutes; a day unless given] slurm.mem_gb=8; a run that is preempted saves and is queued again."""


@dataclass(frozen=True)
class Arm:
    """One combination: what it is called beside its conf and algorithm, its words for `mbrl_lightning.fit`, what they say."""

    name: str
    words: list[str]
    config: Config


def arms_of(words: Words) -> list[Arm]:
    """Every combination of the values of a command line; a ConfigError says what is wrong with them, before any begins."""
    words.problems += [f"{key}=: {why}" for key, why in REFUSED.items() if key in words.pairs]
    words.problems += [f"{word!r}: key=value is expected" for word in words.bare]
    words.raise_problems("see python -m mbrl_lightning.sweep --help")
    values = {key: [text] if key in WHOLE else _values(text) for key, text in words.pairs.items()}
    varied = [key for key, texts in values.items() if len(texts) > 1 and key not in ("conf", "algorithm")]
    arms, problems = list[Arm](), dict[str, str]()  # each problem with an arm that has it
    if (count := math.prod(map(len, values.values()))) > MOST:
        raise ConfigError(f"{count} combinations of values", f"give at most {MOST} at a time")
    for chosen in itertools.product(*values.values()):
        pairs = dict(zip(values, chosen, strict=True))
        name = " ".join(f"{key}={pairs[key]}" for key in varied)
        folder = re.sub(r"[^A-Za-z0-9_.=,+-]+", "_", name.replace(" ", ","))
        out = "/".join(filter(None, [pairs.get("out", Config.out).rstrip("/"), folder]))
        own = [f"{key}={text}" for key, text in ({"seeds": "0"} | pairs | {"out": out}).items()]
        try:
            arms.append(Arm(name, own, load_config(own)))
        except ConfigError as error:
            first, *several = error.cause.split("\n  - ")
            problems |= dict.fromkeys(several or [first], " ".join(f"{key}={text}" for key, text in pairs.items()))
    if problems:
        told = [f"{arm}: {problem}" for problem, arm in [*problems.items()][:FEW]]
        more = [f"and {len(problems) - FEW} more"] if len(problems) > FEW else []
        raise ConfigError("\n  - ".join(["arms that cannot be:", *told, *more]), "leave those values out")
    return arms


def _values(text: str) -> list[str]:
    """`a,b` is two values, `[a,b]` and `{a:1,b:2}` one."""
    found, depth = [""], 0
    for sign in text:
        depth += (sign in "[{(") - (sign in "]})")
        found[-1] += sign
        if sign == "," and depth == 0:
            found[-1:] = [found[-1][:-1], ""]
    return list(dict.fromkeys(found))


def sweep(argv: Sequence[str]) -> tuple[int, str]:
    """Train what is missing of a command line's arms.

    Returns:
        Exit status of the first run that failed, 0 if none did, 75 or 130 after a signal; the table as plain text.

    Raises:
        ConfigError: an arm that cannot be, or has runs with another configuration; no Slurm or submitit where they are asked for.
    """
    words = read(argv)
    options = take(Options, words, strict=False)
    cluster = {key: words.pairs.pop(key) for key in list(words.pairs) if key.startswith("slurm.")}
    if cluster and options.launcher != "slurm":
        words.problems.append(f"{', '.join(cluster)}: only with launcher=slurm")
    at_once = words.pairs.get("jobs")
    arms = arms_of(words)
    if options.launcher != "local":
        _require(options.launcher)
    jobs = [seed_jobs.plan(arm.config, arm.words) for arm in arms]
    every = [job for own in jobs for job in own]
    if options.launcher == "slurm":
        from mbrl_lightning.sweep.slurm import train

        status = train(every, arms[0].config, _out(arms), cluster, int(at_once or len(every)))
    elif options.launcher == "ray":
        from mbrl_lightning.sweep import ray

        status = ray.train(every, arms[0].config, _out(arms), int(at_once or len(every)))
    else:
        status, _ = seed_jobs.train(every, arms[0].config)
    return status, _table(arms, jobs).text()


def _out(arms: Sequence[Arm]) -> Path:
    outs = {arm.config.out for arm in arms}
    return Path(os.path.commonpath(outs if len({*map(os.path.isabs, outs)}) == 1 else map(os.path.abspath, outs)))


def _require(launcher: str) -> None:
    package, extra = {"slurm": ("submitit", "cluster"), "ray": ("ray", "ray")}[launcher]
    if importlib.util.find_spec(package) is None:
        cause = f"launcher={launcher} needs {package}, which is missing"
        raise ConfigError(cause, f"pip install 'mbrl_lightning[{extra}]'")
    if launcher == "ray":
        return
    missing = [name for name in ("sbatch", "srun", "squeue", "scontrol") if shutil.which(name) is None]
    if missing:
        cause = f"launcher=slurm: no {', '.join(missing)} on this machine"
        raise ConfigError(cause, "give the command on a machine of the cluster, or leave launcher= away")


def _table(arms: Sequence[Arm], jobs: Sequence[Sequence[seed_jobs.Job]]) -> Table:
    """A line for each arm: the return on unseen tasks of the seeds that are finished; also written as `sweep.md` in out."""
    from mbrl_lightning.report.curves import at_context
    from mbrl_lightning.report.kinds import interval
    from mbrl_lightning.report.statistics import score_matrix
    from mbrl_lightning.report.tables import Table, span
    from mbrl_lightning.runs.results import read_results

    table = Table("return on unseen tasks", ["family", "algorithm", "with", "seeds", "real steps", "return", "unit"])
    for arm, own in zip(arms, jobs, strict=True):
        done = [job.folder for job in own if job.status == 0]
        rows = [row for row in at_context(read_results(done) if done else []) if row.metric == "return/policy"]
        scores = score_matrix(rows)[2]
        cells = [span({row.real_steps for row in rows}), interval(scores), rows[0].unit] if rows else ["-", "-", "-"]
        table.rows.append([arm.config.conf, arm.config.algorithm, arm.name, f"{len(done)} of {len(own)}", *cells])
    table.notes.append(
        "interquartile mean over seeds and tasks [95 % interval of a bootstrap over seeds], finished runs alone"
    )
    replace_file(_out(arms) / "sweep.md", (table.markdown() + "\n").encode())
    return table


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""

    def command(argv: list[str]) -> int:
        status, text = sweep(argv)
        print(f"\n{text}")
        return status

    return answer(argv, lambda: HELP, command)


make_callable(__name__)
