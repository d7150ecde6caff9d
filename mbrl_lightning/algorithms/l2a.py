"""L2A, learning to adapt (Nagabandi et al., ICLR 2019): GrBAL, ReBAL, and MB-MPC, which is the same without adaptation.

    Eq. 3                    theta moves so that inner steps on M transitions predict the next K        L2A.fit
    Algorithm 1, lines 4-6   segments of M + K steps, cut at random out of all episodes                 data.windows.Segments
    Algorithm 2, line 5      at every control step theta'_t from the last M transitions                 L2A.act
    line 6                   the first action of a plan in the model of theta'_t                        policies.planners
Variants are values of `l2a.adaptation`: `gradient` is GrBAL, `recurrent` ReBAL, `none` MB-MPC. Departures: gains of the inputs
adapt too (`l2a.adapts`); step sizes are learned, one for each layer and one for all gains; the inner loss is a sum over the
transitions there are, divided by M, so that an episode adapts from its second step on and what is learned knows of short
pasts; no early stopping; ReBAL's state reads observed changes too, and only the last M of them, and does not roll on in a plan.
"""

from __future__ import annotations

from functools import partial

from mbrl_lightning.algorithms.planning import AdaptivePlanning
from mbrl_lightning.config.schema import Config
from mbrl_lightning.envs.family import TaskFamily
from mbrl_lightning.models.adaptive import make_adaptive


class L2A(AdaptivePlanning):
    """A model that adapts within M steps, and a planner in it; meta-testing is acting on. Tasks may switch inside an episode."""

    def __init__(self, family: TaskFamily, cfg: Config) -> None:
        super().__init__(family, cfg, partial(make_adaptive, cfg=cfg.dynamics, l2a=cfg.l2a), cfg.l2a)
