"""Planning for sixteen environments in one call, against a Python loop over them, by us and by TorchRL's CEMPlanner."""

from __future__ import annotations

from dataclasses import replace

import torch
from tensordict import TensorDict
from torchrl.modules import CEMPlanner

from benchmarks.measure import Ratio, compare, ratio
from mbrl_lightning.config.methods import PlannerConfig
from mbrl_lightning.config.schema import DynamicsConfig
from mbrl_lightning.data.collect import collect, random_actions
from mbrl_lightning.envs import make_family
from mbrl_lightning.models.mlp import MLPDynamics
from mbrl_lightning.models.model_env import ModelEnv
from mbrl_lightning.policies.planners import make_planner

ONE, LOOP, TORCHRL = "one call", "the same planner in a loop", "TorchRL's CEMPlanner in a loop"
ENVIRONMENTS, WANTED = 16, 5.0
CASES = ((500, 5, 200, WANTED), (500, 5, 32, None), (50, 1, 32, None))  # candidates, members, width, ratio wanted
SIZES = PlannerConfig(kind="cem", horizon=20, candidates=500, iterations=1, elites=25)


class Planning:
    """Sixteen half-cheetahs in different states, and an ensemble of models that has seen some of their data.

    Args:
        candidates: action sequences.
        members: of the ensemble.
        width: of its two hidden layers.
        device: where the models are.
        chunk: rows in memory at once.
    """

    def __init__(
        self, candidates: int, members: int, width: int, device: str = "cpu", chunk: int = SIZES.chunk
    ) -> None:
        family, self.generator = make_family("half_cheetah_200"), torch.Generator().manual_seed(0)
        act, tasks = random_actions(family.spec, self.generator), torch.ones(ENVIRONMENTS, 1)
        data = collect(family.simulate(tasks), family.spec, act, 50, self.generator)
        dynamics = MLPDynamics(family.spec, DynamicsConfig(hidden=width, layers=1, members=members))
        dynamics.observe(data.flatten(0, 1))
        dynamics.to(device)
        self.observation = data["observation"][:, -1].to(device)
        many, single = (ModelEnv.of(dynamics, dynamics.tell(torch.zeros(count, 0))) for count in (ENVIRONMENTS, 1))
        sizes = replace(SIZES, candidates=candidates, chunk=chunk)
        self.together, self.alone = make_planner(many, sizes), make_planner(single, sizes)
        self.theirs = CEMPlanner(
            single,
            planning_horizon=SIZES.horizon,
            optim_steps=SIZES.iterations,
            num_candidates=candidates,
            top_k=SIZES.elites,
        ).to(device)

    def one_call(self) -> None:
        """All environments at once."""
        self.together.plan(self.observation, self.generator)

    def loop(self) -> None:
        """One after the other; candidates and members are still one batch."""
        for row in self.observation:
            self.alone.plan(row.unsqueeze(0), self.generator)

    def torchrl(self) -> None:
        """The same with TorchRL's own planner, on the same model."""
        for row in self.observation:
            self.theirs(TensorDict({"observation": row}, batch_size=[]))


def run(repeats: int) -> list[Ratio]:
    """Measure with a model of usual width, a narrow one, and where there is little to compute."""
    ratios = []
    for candidates, members, width, wanted in CASES:
        work = Planning(candidates, members, width)
        sides = {ONE: work.one_call, LOOP: work.loop, TORCHRL: work.torchrl}
        seconds = compare(sides, min(repeats, 5), calls=1)
        case = f"{ENVIRONMENTS} x {candidates} x {SIZES.horizon} x {members}, hidden {width}, {width}"
        ratios.append(ratio("planning", case, seconds, LOOP, ONE, floor=wanted))
        ratios.append(ratio("planning", case, seconds, TORCHRL, ONE))
    return ratios
