"""One control step of GrBAL, which adapts its model and plans in it, against the same planner in the model as it is."""

from __future__ import annotations

import torch

from benchmarks.measure import Ratio, compare, ratio
from benchmarks.setting import random_steps
from mbrl_lightning.algorithms import make_algorithm
from mbrl_lightning.config import compose
from mbrl_lightning.envs import make_family

ADAPTING, PLANNING = "adapt and plan", "plan alone"
SHIPPED = {"conf": "half_cheetah_disabled", "algorithm": "grbal"}
CASES = (1, 5)  # half-cheetahs at once


class Control:
    """A belief in the middle of an episode: its past is full, its plan is warm.

    Args:
        rows: half-cheetahs at once.
        frozen: it never adapts.
    """

    def __init__(self, rows: int, frozen: bool) -> None:
        cfg = compose(SHIPPED)
        family, self.generator = make_family(cfg.env.name, **cfg.env.options), torch.Generator().manual_seed(0)
        torch.manual_seed(0)
        self.algorithm = make_algorithm(cfg, family)
        data = random_steps(family, family.sample(rows, self.generator), 50, self.generator)
        self.algorithm.dynamics.observe(data.flatten(0, 1))
        self.algorithm.dynamics.idle = frozen
        self.belief, self.steps, self.now = self.algorithm.begin(rows), data.unbind(1), 0
        for _ in range(cfg.l2a.past + 2):
            self()

    def __call__(self) -> None:
        """One step of all rows; they are shown recorded steps, whatever they choose."""
        step = self.steps[self.now % len(self.steps)]
        _, belief = self.algorithm.act(self.belief, step["observation"], self.generator)
        self.belief, self.now = self.algorithm.adapt(belief, step), self.now + 1


def run(repeats: int) -> list[Ratio]:
    """The shipped configuration, adapted to the last M transitions."""
    found, cfg = [], compose(SHIPPED)
    plan = f"{cfg.planner.candidates} candidates x {cfg.planner.horizon} steps in {cfg.dynamics.members} models"
    for rows in CASES:
        sides = {ADAPTING: Control(rows, frozen=False), PLANNING: Control(rows, frozen=True)}
        case = f"GrBAL, {rows} half-cheetah{'s' * (rows > 1)}: {plan}, M = {cfg.l2a.past}"
        found.append(ratio("control step", case, compare(sides, repeats, 5), ADAPTING, PLANNING))
    return found
