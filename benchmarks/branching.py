"""Histories: branches of imagination against the networks called bare, and the drawing of windows against one by one."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.measure import Ratio, compare, ratio
from benchmarks.setting import random_steps
from mbrl_lightning.algorithms import make_algorithm
from mbrl_lightning.algorithms.m3po import M3PO
from mbrl_lightning.config import compose
from mbrl_lightning.data.buffer import TaskBuffer
from mbrl_lightning.data.windows import Histories
from mbrl_lightning.envs import make_family
from mbrl_lightning.models.imagination import branched_rollouts

BRANCHES, ROWS, LENGTH, REAL = 100_000, 256, 10, 20_000


class Branching:
    """M3PO or a variant of it, of half-cheetah's sizes, with random-policy data; with no unit that reads windows if asked."""

    def __init__(self, name: str = "m3po", recurrent: bool = True) -> None:
        cfg = compose({"conf": "half_cheetah_fwd_bwd", "algorithm": name})
        if not recurrent:
            cfg.history.hidden, cfg.history.length = 0, 1
        family = make_family(cfg.env.name)
        algorithm = make_algorithm(cfg, family)
        assert isinstance(algorithm, M3PO)
        self.algorithm, self.generator = algorithm, torch.Generator().manual_seed(0)
        tasks = family.sample(4, self.generator)
        data = random_steps(family, tasks, REAL // 4, self.generator)
        self.real = TaskBuffer(1)
        self.real.extend(data, self.real.add_tasks(tasks), exploratory=False)
        algorithm.dynamics.see(self.real, 0.1, fit=True)
        self.histories = Histories(self.real, algorithm.dynamics.inputs, cfg.history.length)
        self.start = self.histories.before(self.histories.draw(BRANCHES, self.generator))

    def act(self, inputs: object) -> Tensor:
        """Sampled actions."""
        return self.algorithm._sample(self.generator, inputs)  # type: ignore[arg-type]

    def branch(self) -> None:
        """One imagined step from every history, by the library: heads, noise, rewards, windows to learn from."""
        branched_rollouts(self.algorithm.dynamics, self.act, self.start, 1, self.generator)

    @torch.no_grad()
    def bare(self) -> None:
        """The forward passes of policy and model alone."""
        inputs = self.start["inputs"]
        self.algorithm.dynamics(inputs, self.act(inputs))

    def draw(self) -> None:
        """A batch of windows in one gather."""
        self.histories.window(self.histories.draw(ROWS, self.generator))

    def draw_one_by_one(self) -> None:
        """The same windows, each walked back to the beginning of its episode or L steps."""
        seen, windows = self.histories, torch.zeros(ROWS, LENGTH + 1, self.histories.pairs.shape[1])
        mask = torch.zeros(ROWS, LENGTH + 1, dtype=torch.bool)
        for number, row in enumerate(seen.draw(ROWS, self.generator).tolist()):
            first = max(row - LENGTH, row - int(seen.places[1][row]))
            count = row - first + 1
            windows[number, -count:] = seen.pairs[first : row + 1]
            mask[number, -count:] = True


def run(repeats: int) -> list[Ratio]:
    """100,000 branches of one step, and the drawing of 256 windows."""
    work = Branching()
    seconds = compare({"branched_rollouts": work.branch, "networks alone": work.bare}, repeats, 1)
    case = f"branches of one step from {BRANCHES:,} histories, L = {LENGTH}, half-cheetah"
    ratios = [ratio("histories", case, seconds, "branched_rollouts", "networks alone", ceiling=1.5)]
    seconds = compare({"one by one": work.draw_one_by_one, "Histories.window": work.draw}, repeats, 20)
    case = f"{ROWS} windows of {LENGTH} pairs from {REAL:,} real steps"
    return [*ratios, ratio("histories", case, seconds, "one by one", "Histories.window")]
