"""What every command line of the package shares: exit codes, quiet dependencies, which process may speak."""

import contextlib
import importlib
import importlib.metadata
import logging
import os
import sys
import traceback
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mbrl_lightning import __version__
from mbrl_lightning.errors import ConfigError, EnvError, MBRLError, StorageError

log = logging.getLogger("mbrl_lightning")  # warnings of the package; with no handler Python prints them plainly


def guard(command: Callable[[], int | None]) -> int:
    """Run a command, whose None is 0, and give its exit status.

    Errors of the package become two lines on stderr; an environment's own exception keeps its traceback above
    them. Anything unexpected passes through with its traceback.
    """
    try:
        status = command() or 0
        sys.stdout.flush()  # here, where somebody listens to what it raises, and not when Python ends
        return status
    except MBRLError as error:
        if isinstance(error, EnvError) and error.__cause__ is not None:
            traceback.print_exception(error.__cause__)
        print(error, file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # `... | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if error.filename is None:  # not about a file: a socket, a process
            raise
        print(StorageError.of(error), file=sys.stderr)
        return StorageError.exit_code
    except KeyboardInterrupt:
        print("error[E-INT]: interrupted\n  remedy: run the command again", file=sys.stderr)
        return 130


def answer(argv: Sequence[str] | None, help_text: Callable[[], str], command: Callable[[list[str]], int | None]) -> int:
    """What every `main` is: run a command on its words (None: those of this process), or tell its help or the version."""
    words = list(sys.argv[1:] if argv is None else argv)
    if {"--help", "-h", "help"} & set(words):
        return guard(lambda: print(help_text().rstrip()))
    if "--version" in words:
        return guard(lambda: print(f"mbrl_lightning {__version__}"))
    return guard(lambda: command(words))


class _CallableModule(types.ModuleType):
    """A module that is called as its function of the same name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self, self.__name__.rpartition(".")[2])(*args, **kwargs)


def make_callable(module: str) -> None:
    """Let `from mbrl_lightning import fit` be called: the name is the module's and the function's, whichever is first."""
    sys.modules[module].__class__ = _CallableModule


def rank() -> int:
    """Number of this process among those of a distributed run, 0 if there is only one; known before PyTorch is imported.

    torchrun sets RANK, SLURM sets SLURM_PROCID, Lightning's launcher LOCAL_RANK (and NODE_RANK on further nodes).
    """
    for name in ("RANK", "SLURM_PROCID"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    local, node = os.environ.get("LOCAL_RANK", "0"), os.environ.get("NODE_RANK", "0")
    return int(local) if node in ("", "0") and local.isdigit() else 1


def quiet_libraries() -> None:
    """Import the PyTorch stack without its chatter; a ConfigError if its versions do not belong together."""
    os.environ.setdefault("RL_LOGGING_LEVEL", "WARNING")  # "Initialized LazyTensorStorage ...", read at import
    try:
        with contextlib.suppress(ImportError, AttributeError):  # another version of it: slower, but sound
            command = Path(sys.argv[0])  # in somebody's own program they are there
            if command.stem == "mbrl" or Path(__file__).resolve().parents[1] in command.resolve().parents:
                _hide("scipy", "matplotlib")
        for name in ("torch", "tensordict", "torchrl", "lightning.fabric"):
            importlib.import_module(name)
    except (ImportError, OSError) as error:
        together = "pip install 'torch>=2.7' 'torchrl>=0.14.1,<0.15' 'tensordict>=0.14.3,<0.15'"
        remedy = f"install versions that belong together: {together}"
        raise ConfigError(f"the PyTorch stack does not load: {error}", remedy) from error
    for name in ("torchrl", "lightning.fabric", "lightning.fabric.utilities.rank_zero", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING)  # hardware and launcher lines, tips; set at import


def _hide(*names: str) -> None:
    """Let packages count as not installed: Lightning asks torchmetrics for its version, and that takes 1.6 s to load these."""
    imports: Any = importlib.import_module("lightning_utilities.core.imports")
    version, available = imports._version, imports.package_available

    def version_of(name: str) -> str:
        if name in names:
            raise importlib.metadata.PackageNotFoundError(name)
        return str(version(name))

    imports._version, imports.package_available = version_of, lambda name: name not in names and available(name)
