"""Where else the numbers of a run go: TensorBoard, Weights & Biases, MLflow, by Lightning's loggers; results.csv is the truth."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mbrl_lightning.config.console import log
from mbrl_lightning.config.schema import Config
from mbrl_lightning.errors import ConfigError
from mbrl_lightning.runs.storage import read_file, replace_file

EXTRAS = {"tensorboard": "tb", "wandb": "wandb", "mlflow": "mlflow"}
IDENTITIES = "loggers.json"


def require_extras(loggers: Sequence[str], video: bool) -> None:
    """A ConfigError names a logger, or what makes films, whose package is not here, and the extra that has it."""
    wanted = [(f"logger={name}", name, EXTRAS[name]) for name in loggers if name in EXTRAS]
    for word, package, extra in wanted + [("video=true", "imageio_ffmpeg", "viz")] * video:
        if find_spec(package) is None:
            remedy = f"pip install 'mbrl_lightning[{extra}]', or leave it out"
            raise ConfigError(f"{word}, but the package is not here", remedy)


class Loggers:
    """The loggers that a run asked for. One that fails costs a warning, and is left alone from then on.

    A resumed run goes on in the same W&B and MLflow run: their identities are kept in its folder.

    Args:
        cfg: with the names in `logger`.
        folder: the run's; None: no loggers.
        settings: the configuration, flat, for their tables.
    """

    def __init__(self, cfg: Config, folder: Path | None, settings: dict[str, Any]) -> None:
        self.there: dict[str, Any] = {}
        for name in cfg.logger if folder is not None else ():
            if name in EXTRAS:
                assert folder is not None
                self._call(name, lambda name=name: self._begin(name, cfg, folder, settings))

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Numbers by name at a count of real steps."""
        for name, logger in list(self.there.items()):
            self._call(name, lambda logger=logger: logger.log_metrics(metrics, step=step))

    def close(self, status: str) -> None:
        """Say how the run ended, `success` or `failed`; what is on its way is written."""
        for name, logger in list(self.there.items()):
            self._call(name, lambda name=name, logger=logger: _end(name, logger, status))
        self.there.clear()

    def _begin(self, name: str, cfg: Config, folder: Path, settings: dict[str, Any]) -> None:
        place = folder / IDENTITIES
        known = json.loads(read_file(place)) if place.exists() else {}
        self.there[name] = logger = _made(name, cfg, folder, known.get(name))
        logger.log_hyperparams(settings)
        identity = {"wandb": "version", "mlflow": "run_id"}.get(name)
        if identity is not None:
            replace_file(place, json.dumps(known | {name: getattr(logger, identity)}).encode())

    def _call(self, name: str, what: Any) -> None:
        try:
            what()
        except Exception as error:  # results.csv has the same numbers
            said = str(error) or "can its place be written? results.csv has all numbers"
            log.warning("no more numbers to %s: %s: %s", name, type(error).__name__, said)
            self.there.pop(name, None)


def _made(name: str, cfg: Config, folder: Path, identity: str | None) -> Any:
    title = f"{cfg.conf}/{cfg.algorithm}/seed{cfg.seed}"
    if name == "tensorboard":
        from lightning.fabric.loggers import TensorBoardLogger

        return TensorBoardLogger(folder, name="", version="events")
    if name == "wandb":
        from lightning.pytorch.loggers import WandbLogger

        group = f"{cfg.conf}/{cfg.algorithm}"
        return WandbLogger(
            name=title, id=identity, resume="allow", save_dir=folder, project="mbrl_lightning", group=group
        )
    from lightning.pytorch.loggers import MLFlowLogger

    warnings.filterwarnings("ignore", "MLFlow only allows")  # brackets of units are left out of names
    # a store of files is no longer supported by MLflow itself
    where = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{folder.resolve()}/mlflow.db")
    return MLFlowLogger("mbrl_lightning", run_name=title, run_id=identity, tracking_uri=where)


def _end(name: str, logger: Any, status: str) -> None:
    logger.finalize(status)
    if name == "wandb":  # otherwise the next run of this process would go on in it
        logger.experiment.finish(exit_code=int(status != "success"))
