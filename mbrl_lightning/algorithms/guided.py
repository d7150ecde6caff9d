"""GrBAL, ReBAL or MB-MPC whose plans a soft actor-critic helps with (LOOP, Sikchi et al. 2021; TD-MPC, Hansen et al. 2022).

    LOOP, H-step lookahead   a plan is worth its rewards and the discounted value of its end    planners.Planner._returns
    TD-MPC, Algorithm 1      candidates of the policy beside those about the last plan          planners.Planner.proposals
                             actor and critics by SAC on all real data                          Guided.improve
The actor and its critics are told nothing of the task; what adapts is the model in which their candidates are tried. Departures:
the policy collects as many steps as the planner; no constraint that draws the plan to the policy (the candidates do); members
count alike.
"""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from mbrl_lightning.algorithms.base import Algorithm
from mbrl_lightning.algorithms.planning import AdaptivePlanning
from mbrl_lightning.config.schema import Config
from mbrl_lightning.data.decisions import Decisions
from mbrl_lightning.data.world import RealWorld
from mbrl_lightning.envs.family import TaskFamily
from mbrl_lightning.models.adaptive import make_adaptive
from mbrl_lightning.networks.step import GradientStep
from mbrl_lightning.policies.soft import SoftPolicy

SHARE = 0.25  # as many candidates as these of `planner.candidates` are the policy's


class SoftGuide:
    """`planners.Guide` of a soft policy; it makes `candidates` of them, an equal number in each of E = `members`."""

    def __init__(self, policy: SoftPolicy, candidates: int, members: int) -> None:
        self.policy, self.candidates, self.members = policy, candidates, members

    def propose(self, observation: Tensor, generator: torch.Generator) -> Tensor:
        """See planners.Guide."""
        noise, rows = self.policy.noise(observation.shape[:2], generator), observation.flatten(0, 1)
        noise[:, :: -(-self.candidates // self.members)] = 0
        nothing = TensorDict({"latent": rows.new_zeros(len(rows), 0)})
        return self.policy.act(rows, nothing, noise.flatten(0, 1).to(rows)).view(*observation.shape[:2], -1)

    def value(self, observation: Tensor) -> Tensor:
        """See planners.Guide."""
        rows = observation.flatten(0, 1)
        return self.policy.value(rows, rows.new_zeros(len(rows), 0)).view(observation.shape[:2])


class Guided(AdaptivePlanning):
    """A model that adapts within M steps, and a planner in it that a policy and its value help.

    Args:
        family: the task family.
        cfg: that of L2A, `policy` and `sac`.

    Raises:
        ConfigError: see `SoftPolicy`.
    """

    policy: SoftPolicy
    read: Tensor

    def __init__(self, family: TaskFamily, cfg: Config) -> None:
        super().__init__(family, cfg, partial(make_adaptive, cfg=cfg.dynamics, l2a=cfg.l2a), cfg.l2a)
        self.policy = SoftPolicy(self.spec, cfg, 0)
        self.optimizers["sac"] = torch.optim.Adam(self.policy.sac.trained_parameters(), lr=cfg.sac.lr, fused=True)
        self.planner.guide = SoftGuide(self.policy, round(SHARE * cfg.planner.candidates), cfg.dynamics.members)
        self.register_buffer("read", torch.zeros((), dtype=torch.long))

    def improve(self, world: RealWorld, step: GradientStep) -> dict[str, float]:
        """The policy's own episodes in this iteration's tasks, with the updates that are due for all that is new.

        A value is of the policy that it was learned from: without data of its own, explored, the actor falls behind the planner.
        """
        cfg, real = self.cfg, world.real
        if not int(self.iteration):
            self.policy.norm.fit(self.spec.features(real.transitions()["observation"]).to(self.device))
        latents, optimizer = torch.zeros(len(real.tasks), 0), self.optimizers["sac"]
        index, steps = world.index, cfg.loop.episode_steps or self.spec.horizon
        # what a method without a planner does
        agent: Any = SimpleNamespace(
            **{name: partial(getattr(Algorithm, name), self) for name in ("begin", "act", "adapt")}
        )
        parts = world.interact(
            world.tasks, agent, agent.begin(len(index)), steps, self.generator, cfg.sac.every, index=index
        )
        decisions = Decisions(real, 1)
        self.policy.replay(decisions, real.num_steps - int(self.read), latents, step, optimizer, self.generator)
        found = self.policy.learn(parts, decisions, latents, step, optimizer, self.generator)
        self.read.fill_(real.num_steps)
        return {"real/return_policy" if name == "real/return" else name: value for name, value in found.items()}
