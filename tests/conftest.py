"""Small configurations and data shared by the tests."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("RL_LOGGING_LEVEL", "WARNING")  # read when TorchRL is imported

import pytest
import torch
from fakes import VARIANTS, random_steps, read_by, shortened
from tensordict import TensorDict

import mbrl_lightning
from mbrl_lightning import fit
from mbrl_lightning.algorithms import make_algorithm
from mbrl_lightning.config import compose, to_yaml
from mbrl_lightning.config.schema import Config
from mbrl_lightning.data.buffer import TaskBuffer
from mbrl_lightning.envs import family_of, make_family
from mbrl_lightning.envs.family import TaskFamily
from mbrl_lightning.loop import MetaLoop
from mbrl_lightning.runs import seed_jobs

torch.set_num_threads(1)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder of its own; child processes still find the package."""
    monkeypatch.setenv("PYTHONPATH", str(Path(mbrl_lightning.__file__).parents[1]))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeds are trained here, and their processes only end as they did: none has to load PyTorch again."""
    monkeypatch.setattr(seed_jobs, "command_of", lambda job: ["sh", "-c", f"exit {fit.main(job.words)}"])


@pytest.fixture
def tiny() -> Callable[..., Config]:
    """`tiny(algorithm, section={key: value})`: the `debug` configuration with changes, as far as the algorithm reads them."""

    def make(algorithm: str = "gssm_aps", **changes: Any) -> Config:
        changes = {"conf": "debug", "algorithm": algorithm} | changes
        return compose(read_by({key: value for key, value in changes.items() if value is not None}))

    return make


@pytest.fixture
def make_loop(tiny: Callable[..., Config]) -> Callable[..., MetaLoop]:
    """`make_loop(algorithm, family=, folder=, stop=, section={key: value})`: a loop ready to fit, 3 test tasks."""

    def make(
        algorithm: str = "gssm_aps",
        family: TaskFamily | None = None,
        folder: Path | None = None,
        stop: Any = None,
        cfg: Config | None = None,
        **changes: Any,
    ) -> MetaLoop:
        cfg = cfg or tiny(algorithm, **changes)
        family = family or shortened(family_of(cfg.env))
        loop = MetaLoop(cfg, family, make_algorithm(cfg, family), folder, stop, quiet=True)
        if stop is not None:
            stop.loop = loop
        return loop

    return make


@pytest.fixture(scope="session")
def cartpole() -> TaskFamily:
    return make_family("cartpole")


@pytest.fixture(scope="session")
def recorded(cartpole: TaskFamily) -> TensorDict:
    """Random-policy transitions [6 tasks, 60 steps] of the cart-pole; do not write into it."""
    tasks = cartpole.sample(6, torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(6)
    data = random_steps(cartpole, tasks, 60, generator)
    return data.lock_()


@pytest.fixture
def filled(cartpole: TaskFamily, recorded: TensorDict) -> TaskBuffer:
    """A buffer with the recorded transitions, all of them exploratory."""
    buffer = TaskBuffer(len(cartpole.parameters), 2000)
    index = buffer.add_tasks(cartpole.sample(6, torch.Generator().manual_seed(5)))
    buffer.extend(recorded, index, exploratory=True)
    return buffer


@pytest.fixture
def trained(make_loop: Callable[..., MetaLoop], tmp_path: Path) -> Callable[..., tuple[MetaLoop, Path]]:
    """`trained(variant)`: the loop of a run after one iteration without its meta-test, and its folder."""

    def make(name: str, **changes: Any) -> tuple[MetaLoop, Path]:
        algorithm, own = VARIANTS[name]
        folder = tmp_path / f"{name}{len([*tmp_path.iterdir()])}"
        loop = make_loop(algorithm, folder=folder, **{"loop": {"iterations": 1}} | own | changes)
        loop.evaluate = lambda full: {}
        loop.fit()
        (folder / "config.yaml").write_text(to_yaml(loop.cfg))
        (folder / "manifest.json").write_text(json.dumps({"mbrl_lightning": mbrl_lightning.__version__}))
        return loop, folder

    return make
