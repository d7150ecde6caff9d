"""Planning for sixteen environments in one call, against a Python loop over them, by us and by TorchRL's CEMPlanner."""

from __future__ import annotations

from dataclasses import replace

import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs import EnvBase
from torchrl.modules import CEMPlanner

from benchmarks.measure import Ratio, compare, ratio
from benchmarks.setting import random_steps
from mbrl_lightning.config.methods import PlannerConfig
from mbrl_lightning.config.schema import DynamicsConfig
from mbrl_lightning.envs import make_family
from mbrl_lightning.models.mlp import MLPDynamics
from mbrl_lightning.policies.planners import make_planner

ONE, LOOP, TORCHRL = "one call", "the same planner in a loop", "TorchRL's CEMPlanner in a loop"
ENVIRONMENTS, WANTED = 16, 5.0
CASES = ((500, 5, 200, WANTED), (500, 5, 32, None), (50, 1, 32, None))  # candidates, members, width, ratio wanted
SIZES = PlannerConfig(kind="cem", horizon=20, candidates=500, iterations=1, elites=25)


class TorchRLEnv(EnvBase):
    """The mean of the models with TorchRL's face, for its planner; rows of any number."""

    def __new__(cls, *args: object, **kwargs: object) -> TorchRLEnv:
        """Of any batch size, which TorchRL wants to know before anything else."""
        return super().__new__(cls, *args, _batch_locked=False, **kwargs)

    def __init__(self, dynamics: MLPDynamics, belief: TensorDict) -> None:
        super().__init__(device=dynamics.device, batch_size=torch.Size([]))
        self.dynamics, self.belief = dynamics, belief
        spec = dynamics.spec
        self.observation_spec = Composite(observation=Unbounded((spec.observation_dim,), device=self.device))
        self.action_spec = Bounded(-1.0, 1.0, shape=(spec.action_dim,), device=self.device)
        self.reward_spec = Unbounded((1,), device=self.device)

    @torch.no_grad()
    def _step(self, tensordict: TensorDict) -> TensorDict:
        members, spec = self.dynamics.members, self.dynamics.spec
        given = [tensordict[name].repeat(members, 1).unsqueeze(0) for name in ("observation", "action")]
        following = self.dynamics.imagine(*given, self.belief)
        reward = spec.reward(*given, following).view(members, -1, 1).mean(0)
        content = {"observation": following.view(members, -1, spec.observation_dim).mean(0), "reward": reward}
        return TensorDict(content | {"done": torch.zeros_like(reward).bool()}, batch_size=tensordict.batch_size)

    def _reset(self, tensordict: TensorDict) -> TensorDict:
        return tensordict

    def _set_seed(self, seed: int | None) -> None:
        """Nothing is drawn here."""


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
        data = random_steps(family, torch.ones(ENVIRONMENTS, 1), 50, self.generator)
        dynamics = MLPDynamics(family.spec, DynamicsConfig(hidden=width, layers=1, members=members))
        dynamics.observe(data.flatten(0, 1))
        self.dynamics = dynamics.to(device)
        self.observation, self.belief = (
            data["observation"][:, -1].to(device),
            dynamics.tell(torch.zeros(ENVIRONMENTS, 0)),
        )
        self.planner = make_planner(family.spec, replace(SIZES, candidates=candidates, chunk=chunk), members)
        self.theirs = CEMPlanner(
            TorchRLEnv(dynamics, self.belief[:1]),
            planning_horizon=SIZES.horizon,
            optim_steps=SIZES.iterations,
            num_candidates=candidates,
            top_k=SIZES.elites,
        ).to(device)

    def one_call(self) -> None:
        """All environments at once."""
        self.plan(self.observation, self.belief)

    def loop(self) -> None:
        """One after the other; candidates and members are still one batch."""
        for row in self.observation.split(1):
            self.plan(row, self.belief[:1])

    def plan(self, observation: Tensor, belief: TensorDict) -> None:
        """Search from each of the states `[B, S]` at once."""

        def advance(state: Tensor, action: Tensor) -> Tensor:
            return self.dynamics.imagine(state, action, belief)

        start = self.planner.cold(len(observation)).to(observation.device)
        self.planner.plan(advance, observation, self.generator, start)

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
