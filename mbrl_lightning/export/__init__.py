"""What a run has learned as files that need no PyTorch: `python -m mbrl_lightning.export run=RUN out=FILE.onnx`."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mbrl_lightning import load
from mbrl_lightning.config.console import answer, make_callable
from mbrl_lightning.config.files import located
from mbrl_lightning.config.option import option
from mbrl_lightning.config.words import describe, parse
from mbrl_lightning.errors import ConfigError
from mbrl_lightning.runs.storage import probe

NEEDED = ("onnx", "onnxscript", "onnxruntime")  # of the extra `export`


@dataclass
class Options:
    """Keys of the command line."""

    run: str = option("", "run folder, e.g. runs/cartpole/gssm_aps/seed0, or pretrained:NAME", required=True)
    out: str = option("", "FILE.onnx for onnxruntime, or FILE.pt2 for PyTorch's `torch.export.load`", required=True)
    n: int = option(1, "environments that are acted in at once", minimum=1)
    env_file: str | None = option(None, "where the run's env.file is now, if it has moved")


HELP = f"""usage: python -m mbrl_lightning.export run=RUN out=FILE.onnx [key=value ...]

Writes what the run's agent does as graphs with its normalisers inside: FILE.onnx acts, FILE_begin.onnx gives the belief that
an episode begins with, FILE_adapt.onnx what is believed after a context, FILE_step.onnx after the one step just made; the last
two where the method learns from such. Names, units, limits and shapes are in each file's metadata, `mbrl_lightning`. Then 100
steps in unseen tasks, kept in FILE_check.npz, are repeated with the files alone, and actions may differ by 1e-5.

{describe(Options)}"""


def export(run: str | Path, out: str | Path, n: int = 1, env_file: str | None = None) -> dict[str, Any]:
    """Export the newest checkpoint of a run; the contract, as in the files' metadata, with `difference`, that of the check.

    Arguments are those of the command line.

    Raises:
        ConfigError: the name of the file is not one of the two kinds, an extra is missing, or the method cannot be a graph.
        StorageError: there is no complete checkpoint, or a file cannot be written.
    """
    file = Path(out)
    if file.suffix not in (".onnx", ".pt2") or not file.stem or file.is_dir():
        raise ConfigError(f"out={out}: a file's name that ends in .onnx or .pt2 is expected", "write out=policy.onnx")
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing and file.suffix == ".onnx":
        remedy = "pip install 'mbrl_lightning[export]', or write out=FILE.pt2, which needs PyTorch alone"
        raise ConfigError(f"out={out}: {', '.join(missing)} missing", remedy)
    probe(file.parent)  # before the work
    agent = load(run, env_file)
    from mbrl_lightning.export.files import write

    return write(agent, located(run), file, n)


def _command(words: list[str]) -> None:
    options = parse(Options, words, "export")
    print("graphs are made, and checked on 100 steps; of a planner that takes minutes", flush=True)
    contract = export(**vars(options))
    for part, name in contract["parts"].items():
        print(f"{part:<6} {Path(options.out).parent / name}")
    print(f"actions of 100 real steps differ by at most {contract['difference']:.1e} from the run's own")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    return answer(argv, lambda: HELP, _command)


make_callable(__name__)
