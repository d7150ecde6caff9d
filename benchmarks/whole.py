"""Where the wall-clock of a run goes, and how much of it is neither environment, model nor policy."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from benchmarks.measure import Share
from mbrl_lightning.algorithms import make_algorithm
from mbrl_lightning.config import compose
from mbrl_lightning.envs import make_family
from mbrl_lightning.loop import MetaLoop

STAGES = ("collect", "model", "policy", "evaluate")
RUNS = {
    "cartpole": {
        "loop.iterations": 2,
        "loop.first_model_steps": 300,
        "loop.model_steps": 300,
        "loop.last_model_steps": 0,
        "search.updates": 15,
        "evaluation.episodes": 1,
    },
    "half_cheetah": {
        "loop.iterations": 2,
        "loop.first_model_steps": 150,
        "loop.model_steps": 150,
        "search.updates": 5,
        "evaluation.shots": [1.0],
    },
}


def run() -> list[Share]:
    """Two iterations of each configuration with its networks and batches, checkpoints and meta-test."""
    shares = []
    for conf, shorter in RUNS.items():
        cfg = compose({"conf": conf, **shorter})
        family = make_family(cfg.env.name, **cfg.env.options)
        with tempfile.TemporaryDirectory() as folder:
            loop = MetaLoop(cfg, family, make_algorithm(cfg, family), Path(folder), quiet=True)
            began = time.perf_counter()
            loop.fit()
            total = time.perf_counter() - began
        seconds = {stage: loop.times[stage] for stage in STAGES} | {"total": total}
        outside = 1 - sum(loop.times[stage] for stage in STAGES) / total
        shares.append(Share(f"{conf}: {cfg.loop.iterations} short iterations", seconds, outside, 0.05))
    return shares
