"""The command line: `python -m mbrl_lightning COMMAND`, or `mbrl COMMAND`."""

import importlib
import sys
from collections.abc import Sequence

from mbrl_lightning.config.console import answer, guard
from mbrl_lightning.errors import ConfigError, did_you_mean

COMMANDS = {
    "fit": "meta-train and meta-test an algorithm on a task family, one seed or several",
    "sweep": "every combination of confs, algorithms, seeds and values, here or on Slurm; one table",
    "evaluate": "meta-test a finished or running run on unseen, extreme or training tasks",
    "play": "a page with the body of a run: change its task while it acts, and watch it adapt",
    "export": "what a run has learned as ONNX files (or PyTorch's .pt2), to use without this library",
    "record": "the real transitions of a run as a Minari dataset",
    "fit_model": "a dynamics model from Minari datasets, and whether it knows how far it errs",
    "report": "tables and curves of runs, side by side and beside the papers' numbers",
    "check_env": "is a task family sound? Checks before anything is trained on it",
    "headroom": "what knowing the task is worth in a family, to a policy and to a model",
    "perfect_model": "what an algorithm's planner makes of the true simulator",
    "study": "comparisons of methods and settings: every arm, the table, the figure; `quick` checks results",
    "bounds": "M3PO's performance guarantees in numbers, of given errors or along a run",
}
LINES = "\n".join(f"  {name:<15}{line}" for name, line in COMMANDS.items())
HELP = f"""usage: mbrl COMMAND [key=value ...]          (or python -m mbrl_lightning COMMAND, python -m mbrl_lightning.COMMAND)

{LINES}

mbrl COMMAND --help tells the keys of a command; mbrl --version the version.

exit status: 0 done, 2 usage, 3 environment, 4 diverged, 5 storage, 75 preempted (resumable), 130 interrupted"""


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; the rest of the words goes to the command's own `main`."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in COMMANDS:
        return int(importlib.import_module(f"mbrl_lightning.{words[0]}").main(words[1:]))
    if words and words[0] not in ("--help", "-h", "help", "--version"):
        return guard(lambda: _refuse(words[0]))
    return answer(words or ["--help"], lambda: HELP, lambda _: None) or (0 if words else 2)


def _refuse(word: str) -> int:
    known = ", ".join(COMMANDS)
    raise ConfigError(f"'{word}': no such command{did_you_mean(word, COMMANDS)}", f"choose one of {known}")


if __name__ == "__main__":
    sys.exit(main())
