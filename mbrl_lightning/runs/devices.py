"""Devices and processes of a run: what is asked for must be there, and a process that dies or stands still ends all."""

import os
import socket
import subprocess
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning.fabric import Fabric
from lightning.fabric.strategies import DDPStrategy
from lightning.fabric.utilities.exceptions import MisconfigurationException

from mbrl_lightning.config.console import rank
from mbrl_lightning.config.schema import Config
from mbrl_lightning.errors import ConfigError, MBRLError, Preempted

PATIENCE = timedelta(minutes=10)  # of one rank with another; pictures and checkpoints are rank 0's alone


def make_fabric(config: Config) -> Fabric:
    """Fabric as configured, not launched; a ConfigError, before a folder is made, says what is not to be had here."""
    # On a machine of a cluster Lightning would have `srun` before every command, a single process's too.
    warnings.filterwarnings("ignore", message="The `srun` command is available")
    several = config.devices * config.num_nodes > 1
    strategy: Any = DDPStrategy(timeout=PATIENCE) if several and config.strategy in ("auto", "ddp") else config.strategy
    try:
        port = os.environ.get("MASTER_PORT", "")
        if config.devices > 1 and rank() == 0 and port.isdigit() and "TORCHELASTIC_RUN_ID" not in os.environ:
            with socket.socket() as probe:
                probe.bind(("", int(port)))
        return Fabric(
            accelerator=config.accelerator,
            devices=config.devices,
            num_nodes=config.num_nodes,
            strategy=strategy,
            precision=config.precision,  # type: ignore[arg-type]
        )
    except (OSError, OverflowError) as error:
        raise ConfigError(f"MASTER_PORT={port}: {error}", "unset it, or choose a free port") from error
    except (MisconfigurationException, RuntimeError, TypeError, ValueError) as error:
        asked = " ".join(f"{key}={getattr(config, key)}" for key in ("accelerator", "devices", "strategy", "precision"))
        remedy = "choose what this machine has, e.g. accelerator=cpu devices=1"
        raise ConfigError(f"{asked}: {' '.join(str(error).split())}", remedy) from error


@contextmanager
def together(fabric: Fabric, folder: Path, grace: float = 10.0) -> Iterator[None]:
    """Where one process of several fails, those that were started here end too, after `grace` [s], and the cause is told.

    Raises:
        MBRLError: in place of what PyTorch says when a process is gone; of the kind of that process's exit status.
    """
    try:
        yield
    except BaseException as error:
        started: list[subprocess.Popen[bytes]] = getattr(fabric.strategy.launcher, "procs", [])
        others = started.copy()
        started.clear()  # Lightning's observer of these would kill this process before it has spoken
        with suppress(subprocess.TimeoutExpired):
            for process in others if isinstance(error, Exception) else ():
                process.wait(grace)
        statuses = [process.poll() for process in others]
        for process in others:
            process.kill()
            process.wait()
        if fabric.world_size == 1 or not isinstance(error, RuntimeError):
            raise
        kinds = {kind.exit_code: kind for kind in MBRLError.__subclasses__()}
        raise kinds.get(next((status for status in statuses if status), 75), Preempted)(
            f"another process of this run ended or stands still (exit statuses {statuses}): {str(error)[:200]}",
            f"see what it said; continue with resume={folder}",
        ) from error
