"""RL2, fast reinforcement learning by a slow one (Duan et al. 2016): a recurrent policy whose state outlasts episodes.

    section 2.2, a trial is several episodes of one task, and what is maximised is its whole return    RL2.improve
    input: observation, last action, reward and termination; the state outlasts the episodes         RL2.adapt
    the outer learner, PPO here, by back-propagation through whole trials                            RL2._remember, policies.ppo
Departures: PPO in place of TRPO with a linear baseline; policy and value share one recurrent unit; what they see beside its
state is the observation, standardised by the first batch's statistics.
"""

from __future__ import annotations

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from mbrl_lightning.algorithms.base import Algorithm
from mbrl_lightning.beliefs.history import TransitionInputs
from mbrl_lightning.config.schema import Config
from mbrl_lightning.data.collect import Agent
from mbrl_lightning.data.world import RealWorld
from mbrl_lightning.envs.family import TaskFamily
from mbrl_lightning.errors import ConfigError
from mbrl_lightning.networks.step import GradientStep
from mbrl_lightning.policies.heads import Policy
from mbrl_lightning.policies.ppo import PPO


class RL2(Algorithm):
    """A policy given the state of a recurrent unit that reads all transitions of a trial.

    An update has `search.tasks` trials of `loop.episodes_per_task` episodes. The state `latent` `[M, H]` is under `trial` of the
    belief, which is what outlasts an episode; `age` counts the steps of the present one.
    """

    policy: Policy

    def __init__(self, family: TaskFamily, cfg: Config) -> None:
        super().__init__(family, cfg)
        family.require_several()
        if cfg.loop.episodes_per_task < 2:
            raise ConfigError(
                f"loop.episodes_per_task={cfg.loop.episodes_per_task}: in a trial of one episode nothing can be put to use later",
                "set loop.episodes_per_task to at least 2, or algorithm=dr_ppo",
            )
        self.inputs = TransitionInputs(self.spec)
        self.policy = Policy(self.spec, cfg.policy, cfg.history.hidden)
        self.ppo = PPO(self.policy, cfg.search, cfg.policy)
        self.memory = nn.GRU(self.inputs.pair_dim + 1, cfg.history.hidden, batch_first=True)
        self.optimizers = {"policy": torch.optim.Adam(self.parameters(), lr=cfg.search.lr, fused=True)}

    # -- belief

    def begin(self, tasks: int) -> TensorDict:
        """A state of zeros, at the start of a trial."""
        state = torch.zeros(tasks, self.cfg.history.hidden, device=self.device)
        trial = TensorDict({"latent": state}, batch_size=[tasks])
        return super().begin(tasks).update({"trial": trial, "age": torch.zeros_like(state[:, 0], dtype=torch.long)})

    @torch.no_grad()
    def adapt(self, belief: TensorDict, transitions: TensorDictBase) -> TensorDict:
        """The state after K further transitions `[M, K]` in order, at whose end an episode begins, or after the one just made."""
        one = transitions.ndim == 1
        rows = (transitions.unsqueeze(1) if one else transitions).to(self.device)
        if not rows.shape[1]:
            return belief
        age = belief["age"].unsqueeze(1) if one else rows["age"]
        state = self.memory(self._pairs(rows, age), belief["trial", "latent"].unsqueeze(0).contiguous())[1][0]
        trial = TensorDict({"latent": state}, batch_size=belief.batch_size)
        return belief.clone(False).update({"trial": trial, "age": belief["age"] + 1 if one else 0 * belief["age"]})

    def _pairs(self, rows: TensorDictBase, age: Tensor) -> Tensor:
        """Transitions `[M, K]` of the given ages as the recurrent unit reads them, `[M, K, D + 1]`; the last entry is an end."""
        following, ended = rows["next", "observation"], age + 1 >= self.spec.horizon
        for rule in (self.spec.termination, self.spec.training_termination):
            ended = ended if rule is None else ended | rule(following)
        pair = self.inputs.pair(rows["observation"], rows["action"], following)
        return torch.cat([pair, ended.unsqueeze(-1).to(pair)], -1)

    def act(
        self, belief: TensorDict, observation: Tensor, noise: torch.Generator | None = None
    ) -> tuple[Tensor, TensorDict]:
        """See Algorithm.act; what the policy is told is the state."""
        action, trial = super().act(belief["trial"], observation, noise)
        return action, belief.clone(False).update(trial.select("taken", strict=False))

    def sample(self, observation: Tensor, belief: TensorDict, noise: torch.Generator) -> dict[str, Tensor]:
        """See Algorithm.sample; for `PPO`."""
        return self.ppo.sample(self.policy, observation, belief["latent"], noise)

    # -- training

    def improve(self, world: RealWorld, step: GradientStep) -> dict[str, float]:
        """Collect trials in new tasks, then PPO epochs on them, `search.updates` times."""
        metrics: dict[str, float] = {}
        search, steps = self.cfg.search, self.cfg.loop.episodes_per_task * self.spec.horizon
        for update in range(search.updates):
            tasks = self.family.sample(search.tasks, self.generator)
            (data,) = world.interact(tasks, self, self.begin(len(tasks)), steps, self.generator)
            found = self._returns(data)
            data = data.to(self.device)
            pairs = self._pairs(data, data["age"])
            rows = self._rows(data.update(data.pop("taken"))).set("pairs", pairs)
            optimizer = self.optimizers["policy"]
            learned = self.ppo.learn(self.policy, rows, step, optimizer, self.generator, self._remember)
            metrics = found | {f"train/{name}": value for name, value in learned.items()}
            if not int(self.iteration) and not update:
                self.inputs.fit(world.real.transitions().to(self.device))
                self.policy.norm.load_state_dict(self.inputs.current_norm.state_dict())
        return metrics

    def _rows(self, data: TensorDict) -> TensorDict:
        """Trials `[M, T]` as the loss takes them: only the end of a trial is an end, and its time runs on over the episodes."""
        data["age"] = torch.arange(data.shape[1], device=self.device).expand(data.shape)
        ended = torch.zeros_like(data["next", "done"])
        ended[:, -1] = True
        data["next", "done"] = ended
        nothing = torch.zeros(1, 1, self.policy.latent_dim, device=self.device)  # nobody asks what comes after the end
        return self.ppo.rows(self.policy, data, nothing).view(data.shape)

    def _remember(self, batch: TensorDict) -> dict[str, Tensor]:
        """Let policy and value see the states that today's unit has in trials `[N, T]`, which are zeros at their start."""
        states = nn.functional.pad(self.memory(batch["pairs"][:, :-1])[0], (0, 0, 1, 0))
        seen = torch.cat([batch["inputs"][..., : -self.policy.latent_dim], self.policy.gain * states], -1)
        batch.update({"inputs": seen, "seen": seen})
        return {}

    def _returns(self, data: TensorDict) -> dict[str, float]:
        """Mean returns of the first and the second episode of trials `[M, T]`."""
        number, reward = data["episode"] // len(data), data["next", "reward"].squeeze(-1)
        unit = self.spec.horizon if self.spec.unit == "step" else 1
        first, second = (float((reward * (number == k)).sum(1).mean()) / unit for k in (0, 1))
        return {"real/return": first, "real/second": second}

    # -- meta-testing

    def explorer(self, tasks: int) -> tuple[Agent, TensorDict]:
        """The policy itself: a context is the first part of a trial."""
        return self, self.begin(tasks)

    def shots(self, full: bool) -> list[int]:
        """See Algorithm.contexts."""
        return self.contexts(full)

    def controls(self, belief: TensorDict) -> dict[str, TensorDict]:
        """The first episode of a trial."""
        return {"unadapted": self.begin(len(belief))}
