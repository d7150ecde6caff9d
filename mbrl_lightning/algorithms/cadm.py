"""CaDM, context-aware dynamics model (Lee, Seo, Lee, Lee & Shin, ICML 2020), with a planner: CaDM + PE-TS.

    context encoder   z from the last M (changes of the observation, actions)                ContextDynamics.believe
    loss              the next K steps forwards, and the same steps backwards, with one z     ContextDynamics.training_step
    segments          M + K steps, cut at random out of all episodes, masked at their ends    data.windows.Segments
    control           at every step a new z, and the first action of a plan                   planning.AdaptivePlanning.act
`cadm.backward=0` is the forward-only model, `cadm.context_dim=0` PETS. Departures: each output's likelihood is weighted by
its own variance (`dynamics.variance_weight`); members see the same segments and share the backward head; a candidate is scored by
each member's mean, without noise, in place of 20 particles; bounds of the variances are fixed.
"""

from __future__ import annotations

from functools import partial

from mbrl_lightning.algorithms.planning import AdaptivePlanning
from mbrl_lightning.config.schema import Config
from mbrl_lightning.envs.family import TaskFamily
from mbrl_lightning.models.context import ContextDynamics


class CaDM(AdaptivePlanning):
    """A planner in an ensemble that is told what the last transitions say of the task."""

    dynamics: ContextDynamics

    def __init__(self, family: TaskFamily, cfg: Config) -> None:
        super().__init__(family, cfg, partial(ContextDynamics, cfg=cfg.dynamics, cadm=cfg.cadm), cfg.cadm)
