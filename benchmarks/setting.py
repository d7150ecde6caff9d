"""What several benchmarks need: a family, an algorithm of its configuration, and some real data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from lightning.fabric import Fabric
from tensordict import TensorDict
from torch import Tensor

from mbrl_lightning.algorithms import make_algorithm
from mbrl_lightning.algorithms.gssm_aps import GSSMAPS
from mbrl_lightning.config import compose
from mbrl_lightning.config.schema import Config
from mbrl_lightning.data.buffer import TaskBuffer
from mbrl_lightning.data.collect import Uniform, collect
from mbrl_lightning.data.control import Control
from mbrl_lightning.envs import make_family
from mbrl_lightning.envs.family import TaskFamily
from mbrl_lightning.networks.step import GradientStep


@dataclass
class Setting:
    """GSSM+APS on one family, with random-policy data in its buffer and normalisers fitted to them."""

    cfg: Config
    family: TaskFamily
    algorithm: GSSMAPS
    real: TaskBuffer
    step: GradientStep
    generator: torch.Generator


def random_steps(family: TaskFamily, tasks: Tensor, steps: int, generator: torch.Generator) -> TensorDict:
    """Transitions `[M, steps]` of tasks `[M, P]` under random actions."""
    uniform = Uniform(Control(family.spec))
    start = uniform.begin(len(tasks))
    return collect(family.simulate(tasks), family.spec, uniform, start, steps, generator, generator)


def prepare(conf: str, tasks: int = 20, steps: int = 300) -> Setting:
    """Build it with the sizes of `conf/<conf>.yaml`.

    Args:
        conf: name of a configuration.
        tasks: tasks with data.
        steps: transitions of each.
    """
    cfg = compose({"conf": conf})
    family = make_family(cfg.env.name, **cfg.env.options)
    algorithm = make_algorithm(cfg, family)
    assert isinstance(algorithm, GSSMAPS)
    generator = torch.Generator().manual_seed(0)
    real = TaskBuffer(len(family.parameters), cfg.loop.buffer)
    drawn = family.sample(tasks, generator)
    data = random_steps(family, drawn, steps, generator)
    real.extend(data, real.add_tasks(drawn), exploratory=True)
    transitions = real.transitions()
    algorithm.dynamics.observe(transitions, cfg.search.bounds)
    algorithm.policy.norm.fit(family.spec.features(transitions["observation"]))
    step = GradientStep(Fabric(accelerator="cpu", devices=1))
    return Setting(cfg, family, algorithm, real, step, generator)
