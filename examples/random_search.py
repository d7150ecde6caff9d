"""A method of your own: augmented random search (Mania, Guy & Recht, NeurIPS 2018) over the weights of one policy.

    python -m mbrl_lightning.fit conf=cartpole algorithm_file=examples/random_search.py

Its keys stand in `random_search.yaml` beside it. Saving, resuming, the meta-test, tables and pictures come with `Algorithm`.
"""

import torch
from tensordict import TensorDict

from mbrl_lightning.algorithms.base import Algorithm
from mbrl_lightning.config.schema import Config
from mbrl_lightning.data.collect import episode_returns
from mbrl_lightning.data.world import RealWorld
from mbrl_lightning.envs.family import TaskFamily
from mbrl_lightning.networks.step import GradientStep
from mbrl_lightning.policies.heads import Policy

SPREAD = 0.05  # of the weights that are tried


class RandomSearch(Algorithm):
    """In each of `search.tasks` real tasks an episode with the weights moved one way, and one with them moved back."""

    def __init__(self, family: TaskFamily, cfg: Config) -> None:
        super().__init__(family, cfg)
        self.policy = Policy(self.spec, cfg.policy, 0)

    @torch.no_grad()
    def improve(self, world: RealWorld, step: GradientStep) -> dict[str, float]:
        """A step of `search.lr` along the moves, each as long as what it gained over its opposite (Algorithm 2, V1)."""
        tasks = self.family.sample(self.cfg.search.tasks, self.generator)
        weights = {name: parameter[0] for name, parameter in self.policy.net.named_parameters()}
        moves = {name: torch.randn(len(tasks), *w.shape, generator=self.generator) for name, w in weights.items()}
        tried = {name: torch.cat([w + SPREAD * moves[name], w - SPREAD * moves[name]]) for name, w in weights.items()}
        belief = self.begin(2 * len(tasks)).set("policy", TensorDict(tried, batch_size=[2 * len(tasks)]))
        (data,) = world.interact(tasks.repeat(2, 1), self, belief, self.spec.horizon)
        returns = episode_returns(data, self.spec)
        there, back = returns.chunk(2)
        for name, weight in weights.items():
            weight += self.cfg.search.lr * torch.tensordot((there - back) / returns.std(), moves[name], 1) / len(tasks)
        if int(self.iteration) == 0:
            self.policy.norm.fit(self.spec.features(data["observation"]).flatten(0, 1))
        return {"real/return": float(returns.mean())}


algorithm = RandomSearch
