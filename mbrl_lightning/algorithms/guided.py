"""GrBAL, ReBAL or MB-MPC whose plans a soft actor-critic helps with (LOOP, Sikchi et al. 2021; TD-MPC, Hansen et al. 2022).

    LOOP, Eq. 3    a plan is worth its rewards and the discounted value of where it ends    policies.planners.Planner._returns
    Algorithm 1    candidates of the policy beside those about the last plan                 policies.planners.Planner.proposals
                   actor and critics by SAC on all real data                                 Guided.improve
The actor and its critics are told nothing of the task; what adapts is the model in which their candidates are tried. Departures:
the policy collects as many steps as the planner; no constraint that draws the plan to the policy (the candidates do); a mean over
members in place of LOOP's penalised one.
"""

from __future__ import annotations

from functools import partial

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

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
        noise = self.policy.noise(observation.shape[:2], generator)
        noise[:, :: -(-self.candidates // self.members)] = 0
        inputs = self.policy.inputs(observation.flatten(0, 1), observation.new_zeros(observation.shape[:2].numel(), 0))
        return self.policy.sac.act(inputs, noise.flatten(0, 1).to(observation)).view(*observation.shape[:2], -1)

    def value(self, observation: Tensor) -> Tensor:
        """See planners.Guide."""
        rows = observation.flatten(0, 1)
        return self.policy.value(rows, rows.new_zeros(len(rows), 0)).view(observation.shape[:2])


class Alone:
    """The policy without a planner, as an agent (`data.collect.Agent`)."""

    def __init__(self, policy: SoftPolicy) -> None:
        self.policy = policy

    def begin(self, tasks: int) -> TensorDict:
        """Nothing is believed."""
        return TensorDict({"latent": torch.zeros(tasks, 0)}, batch_size=[tasks]).to(self.policy.norm.mean.device)

    def act(
        self, belief: TensorDict, observation: Tensor, noise: torch.Generator | None = None
    ) -> tuple[Tensor, TensorDict]:
        """See `data.collect.Agent`."""
        seen = observation.to(belief["latent"].device)
        drawn = None if noise is None else self.policy.noise((len(seen),), noise).to(seen.device)
        return self.policy.act(seen, belief, drawn).cpu(), belief

    def adapt(self, belief: TensorDict, transitions: TensorDictBase) -> TensorDict:
        """It learns nothing on the way."""
        return belief


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
        agent, index, steps = Alone(self.policy), world.index, cfg.loop.episode_steps or self.spec.horizon
        parts = world.interact(
            world.tasks, agent, agent.begin(len(index)), steps, self.generator, cfg.sac.every, index=index
        )
        decisions = Decisions(real, 1)
        self.policy.replay(decisions, real.num_steps - int(self.read), latents, step, optimizer, self.generator)
        found = self.policy.learn(parts, decisions, latents, step, optimizer, self.generator)
        self.read.fill_(real.num_steps)
        return {"real/return_policy" if name == "real/return" else name: value for name, value in found.items()}
