"""FAMLE, fast online adaptation through meta-learned embeddings of simulated priors (Kaushik, Anne & Mouret, IROS 2020).

    meta-training     Reptile on shared weights and on one embedding for each situation      models.embedding.training_step
    data              every training situation's own, from the simulator                     FAMLE.collect
    online            the most likely embedding of the last M transitions, then k steps on both      models.embedding.believe
    at each step      always from the meta-trained copy (as the authors' code has it)        planning.AdaptivePlanning.act
    control           the first action of a plan in the adapted model                        policies.planners
Departures: the survey's listing overwrites what was meta-trained by what is adapted, which the code does not; several
situations move the weights at once, by the mean (Reptile with a batch of tasks); inner losses are means of standardised
errors, so that a step's size does not depend on the size of a batch; plain steps online, where the code has Adam; they are
taken at every control step; situations are explored at random, then by the adapting planner, the data of all of them kept.
"""

from __future__ import annotations

from functools import partial

import torch
from tensordict import TensorDict
from torch import Tensor

from mbrl_lightning.algorithms.planning import AdaptivePlanning
from mbrl_lightning.config.schema import Config
from mbrl_lightning.data.buffer import TaskBuffer
from mbrl_lightning.data.collect import Uniform
from mbrl_lightning.data.control import Control
from mbrl_lightning.data.windows import steps_at
from mbrl_lightning.data.world import RealWorld
from mbrl_lightning.envs.family import TaskFamily
from mbrl_lightning.models.embedding import EmbeddingDynamics
from mbrl_lightning.models.imagination import mean_return
from mbrl_lightning.networks.step import GradientStep

HOLD = 5  # steps for which a random action is kept: drawn anew each time, they lead nowhere


class FAMLE(AdaptivePlanning):
    """A model of the most likely of a list of situations, a few steps away from it, and a planner in it.

    The list is the family's, or as many draws as `famle.situations` says; it never changes.
    """

    dynamics: EmbeddingDynamics
    situations: Tensor

    def __init__(self, family: TaskFamily, cfg: Config) -> None:
        draws = torch.Generator().manual_seed(int(torch.randint(2**31, ())))
        listed = family.sample(cfg.famle.situations, draws) if family.grid is None else family.grid
        listed = listed.unique(dim=0) if family.grid is None else listed
        make = partial(EmbeddingDynamics, cfg=cfg.dynamics, famle=cfg.famle, situations=len(listed))
        super().__init__(family, cfg, make, cfg.famle)
        self.register_buffer("situations", listed)

    def collect(self, world: RealWorld) -> dict[str, float]:
        """Real data of one iteration, of all situations: random actions in the first, then episodes of the planner."""
        tasks, loop = self.situations.cpu(), self.cfg.loop
        if world.iteration == 0:
            world.real.add_tasks(tasks)
            uniform = Uniform(Control(self.spec, hold=min(HOLD, self.spec.horizon)))
            list(world.interact(tasks, uniform, uniform.begin(len(tasks)), loop.exploration_steps, exploratory=True))
            return {}
        (data,) = world.interact(tasks, self, self.begin(len(tasks)), loop.episode_steps or self.spec.horizon)
        return {"real/return": float(mean_return(data, self.spec))}

    def fit(self, real: TaskBuffer, step: GradientStep, steps: int, generator: torch.Generator) -> dict[str, float]:
        """`steps` meta steps of Reptile on data of `dynamics.tasks` situations each; their length falls to 0."""
        dynamics, famle, optimizer = self.dynamics, self.cfg.famle, self.optimizers["dynamics"]
        data = real.transitions().to(step.fabric.device)
        dynamics.see(real, self.cfg.search.bounds)
        known = min(len(self.situations), len(real.tasks))  # recorded data may be of fewer
        done, size = 0, (famle.inner_steps, self.cfg.dynamics.targets)

        def draw() -> TensorDict:
            nonlocal done
            chosen = torch.randperm(known, generator=generator)[: self.cfg.dynamics.tasks]
            # the loss is a mean over situations, and each embedding is that of one
            for group, rate in zip(
                optimizer.param_groups, (famle.meta_lr, famle.embedding_lr * len(chosen)), strict=True
            ):
                group["lr"] = rate * (1 - done / steps)
            done += 1
            rows = real.target_rows(chosen, size[0] * size[1], generator).view(-1, *size)
            batch = dynamics.columns(steps_at(data, rows.to(step.fabric.device)))
            return TensorDict(batch | {"situation": chosen}, batch_size=[len(chosen)])

        found = step.fit(dynamics.training_step, draw, optimizer, steps)
        return {f"train/model_{name}": value for name, value in found.items()}
