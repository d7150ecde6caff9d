"""GSSM with amortized policy search (Wang & van Hoof, ICML 2022), and GSSM with a policy fine-tuned at meta-test.

    Algorithm 1  collect -> fit {phi, theta} on Eq. 7 -> improve the policy in imagined tasks   MetaLoop, imagining.improve
    Algorithm 2  memory by pi_e -> z_c -> act; or fine-tune in imagination, then act        GSSMAPS.adapt, GSSM.fine_tune
    Eq. 9-10     J by back-propagation through imagined rollouts                            policies.pathwise
    Eq. 11, 16   J by PPO on [s, z_c]                                                       policies.imagined_ppo
    not theirs   SAC on real steps and on branches of imagined ones                         policies.soft
Departures: several policy restarts are searched at once and chosen by their imagined return under ensemble members that no
policy was trained on; imagined data never enters the model's buffer (Algorithm 1 says so, section E does not).
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import torch
from tensordict import TensorDict
from torch import Tensor

from mbrl_lightning.algorithms.imagining import ImaginingAlgorithm
from mbrl_lightning.beliefs.encoders import GraphEncoder
from mbrl_lightning.config.schema import Config
from mbrl_lightning.envs.family import TaskFamily
from mbrl_lightning.models.latent import LatentDynamics
from mbrl_lightning.policies.soft import SoftSearch


class GSSM(ImaginingAlgorithm):
    """GSSM without APS: pi(a | s) trained across the imagined tasks, fine-tuned in each test task's own (Algorithm 2).

    Args:
        family: the task family.
        cfg: the run's configuration.
        encoder: of contexts; that of a neural process makes it MLSM (sections 3.2 and 5.1).
        latent: width of what the policy sees of z_c.
    """

    dynamics: LatentDynamics

    def __init__(self, family: TaskFamily, cfg: Config, encoder: type[Any] = GraphEncoder, latent: int = 0) -> None:
        super().__init__(family, cfg, partial(LatentDynamics, encoder=encoder), latent)

    @torch.no_grad()
    def _believe(self, x: Tensor, y: Tensor) -> TensorDict:
        """See ImaginingAlgorithm: q(z_c | context), whose mean is the `latent`; no gradient step."""
        belief = self.dynamics.encoder.context(x, y)
        return belief.update({"latent": belief["loc"], "x": x, "y": y})

    def imagined(self, batch: TensorDict) -> TensorDict:
        """See ImaginingAlgorithm; z_c is drawn once for each task and call."""
        belief = self._believe(*self._standardised(batch["context"]))
        belief["latent"] = belief["loc"] + belief["scale"] * batch["sample"]
        return belief


class GSSMAPS(GSSM):
    """One policy pi(a | s, z_c) for all tasks, improved in imagined tasks, and nothing to fine-tune (APS)."""

    searches: ClassVar[dict[str, Any]] = GSSM.searches | {"sac": SoftSearch}

    def __init__(self, family: TaskFamily, cfg: Config, encoder: type[Any] = GraphEncoder) -> None:
        super().__init__(family, cfg, encoder, cfg.dynamics.latent_dim)

    def fine_tune(self, *_: object) -> None:
        """Adapting is one forward pass."""
