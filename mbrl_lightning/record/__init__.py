"""The real transitions of a run as a Minari dataset: `python -m mbrl_lightning.record run=RUN out=cartpole/recorded-v0`."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mbrl_lightning.config import read_run_config
from mbrl_lightning.config.console import answer, make_callable, quiet_libraries
from mbrl_lightning.config.files import is_pretrained
from mbrl_lightning.config.option import option
from mbrl_lightning.config.words import describe, parse
from mbrl_lightning.errors import ConfigError
from mbrl_lightning.runs.run import version_told


def require_minari() -> None:
    """A ConfigError, before anything heavy is loaded, where the extra is missing."""
    if importlib.util.find_spec("minari") is None:
        raise ConfigError("recorded data need minari", "pip install 'mbrl_lightning[offline]'")


@dataclass
class Options:
    """Keys of the command line."""

    run: str = option("", "run folder, e.g. runs/cartpole/gssm_aps/seed0", required=True)
    out: str = option("", "name of the dataset, as Minari has it: (namespace/)name-v0", required=True)
    env_file: str | None = option(None, "where the run's env.file is now, if it has moved")


HELP = f"""usage: python -m mbrl_lightning.record run=RUN out=NAME-v0 [key=value ...]

Writes what a run holds of real transitions into Minari's store (MINARI_DATASETS_PATH, or ~/.minari), one episode after the
other; an episode's metadata has its `task`, the dataset's the names of the parameters. Where a hidden task switches in an
episode, another one begins.

{describe(Options)}"""


def record(run: str | Path, out: str, env_file: str | None = None) -> tuple[int, int]:
    """Write the real transitions of the newest checkpoint of a run; how many episodes and transitions. Arguments as above.

    Raises:
        ConfigError: there is no run, Minari is missing, or the name is taken or none of its names.
        StorageError: there is no complete checkpoint.
    """
    if is_pretrained(run):
        raise ConfigError(f"{run} has weights alone: no data to record", "give a run's folder")
    require_minari()
    with version_told(Path(run)):
        cfg = read_run_config(run, env_file)
        quiet_libraries()
        from mbrl_lightning.data import recordings
        from mbrl_lightning.data.buffer import TaskBuffer
        from mbrl_lightning.envs import family_of
        from mbrl_lightning.runs import checkpoint

        family = family_of(cfg.env)
        step, state = checkpoint.load(Path(run) / "checkpoints")
        checkpoint.refuse_other_family(state.get("family"), family.described(), str(run))
    real = TaskBuffer(len(family.parameters), cfg.loop.buffer)
    real.load_state_dict(state["world"]["real"])
    facts = {"family": family.spec.name, "algorithm": cfg.algorithm, "seed": cfg.seed, "iteration": step}
    return recordings.write(real, family, out, facts)


def _command(words: list[str]) -> None:
    options = parse(Options, words, "record")
    episodes, transitions = record(**vars(options))
    print(f"{options.out}: {transitions} transitions in {episodes} episodes")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    return answer(argv, lambda: HELP, _command)


make_callable(__name__)
