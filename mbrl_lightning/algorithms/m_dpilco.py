"""M-DPILCO: deep PILCO (Gal et al. 2016) over tasks, a rival of GSSM's (Wang & van Hoof 2022, section 5.1, appendix H).

    p(s' | s, a), one network with dropout for all tasks       models.dropout.DropoutDynamics
    a particle is one mask, kept for the whole rollout         the noise of an imagined stream
    particles drawn anew from their moments at every step      search.moment_matching, policies.pathwise
    meta-test: the network refreshed on the context, then      MDPILCO._believe
    the policy fine-tuned in it                                ImaginingAlgorithm.fine_tune
Departures: the network is refreshed by plain gradient steps without masks, from what was learned of all tasks; several restarts
of the policy are searched at once, as for GSSM; moments are those of each observed number, without covariances.
"""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import Tensor

from mbrl_lightning.algorithms.imagining import ImaginingAlgorithm
from mbrl_lightning.config.schema import Config
from mbrl_lightning.envs.family import TaskFamily
from mbrl_lightning.errors import ConfigError
from mbrl_lightning.models.dropout import DropoutDynamics


class MDPILCO(ImaginingAlgorithm):
    """A policy pi(a | s) searched among functions that a dropout network holds possible; nothing is inferred of a task.

    A ConfigError if there are several `dynamics.members`: the members are the masks.
    """

    dynamics: DropoutDynamics

    def __init__(self, family: TaskFamily, cfg: Config) -> None:
        if cfg.dynamics.members > 1:
            fault = f"dynamics.members={cfg.dynamics.members}: the members of algorithm={cfg.algorithm} are its masks"
            raise ConfigError(
                fault, "set dynamics.members=1 search.holdout=0; search.rollouts is the number of particles"
            )
        super().__init__(family, cfg, DropoutDynamics, 0)

    @torch.no_grad()
    def _believe(self, x: Tensor, y: Tensor) -> TensorDict:
        """See ImaginingAlgorithm; there is no latent, but `weights` of a network refreshed on the context."""
        return self.dynamics.refreshed(x, y).update({"x": x, "y": y})

    def imagined(self, batch: TensorDict) -> TensorDict:
        """See ImaginingAlgorithm; an imagined task is what its streams' masks make of the network of all tasks."""
        return self.begin(len(batch))
