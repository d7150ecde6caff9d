"""MIER, meta-reinforcement learning by model identification and experience relabelling (Mendonca et al. 2020).

    Algorithm 1  meta-train a model of dynamics and reward; SAC given each task's context vector   MIER.fit, policies.soft
    Eq. 3        the vector is what gradient steps on a context make of a learned prior            IdentifiedDynamics.identify
    Algorithm 2  on an unseen task all of the model moves to its context; real state-action pairs
                 of training are relabelled by it, and the policy learns on from them              MIER.fine_tune
Departures: the sizes of the inner steps are learned; contexts are random actions; the policy of every test task is tuned, in
place of those alone that look out of distribution.
"""

from __future__ import annotations

import copy
from functools import partial

import torch
from tensordict import TensorDict
from torch import Tensor

from mbrl_lightning.algorithms.imagining import ImaginingAlgorithm
from mbrl_lightning.config.schema import Config
from mbrl_lightning.data.buffer import TaskBuffer
from mbrl_lightning.data.decisions import Decisions
from mbrl_lightning.envs.family import TaskFamily
from mbrl_lightning.models.base import MAX_GRAD_NORM
from mbrl_lightning.models.identified import IdentifiedDynamics
from mbrl_lightning.models.imagination import outcome
from mbrl_lightning.networks.step import GradientStep
from mbrl_lightning.policies.soft import SoftSearch


class MIER(ImaginingAlgorithm):
    """A policy given a context vector that is found by gradient in a model; ConfigError where nothing varies."""

    dynamics: IdentifiedDynamics

    def __init__(self, family: TaskFamily, cfg: Config) -> None:
        family.require_several()
        super().__init__(family, cfg, partial(IdentifiedDynamics, mier=cfg.mier), cfg.dynamics.latent_dim)

    def make_search(self, latent: int) -> SoftSearch:
        """SAC alone."""
        return SoftSearch(self.spec, self.cfg, latent)

    @torch.no_grad()
    def _believe(self, x: Tensor, y: Tensor) -> TensorDict:
        """See ImaginingAlgorithm."""
        latent = self.dynamics.identify(x, y)
        return TensorDict({"latent": latent, "x": x, "y": y}, batch_size=[len(x)])

    def imagined(self, batch: TensorDict) -> TensorDict:
        """See ImaginingAlgorithm."""
        return self._believe(*self._standardised(batch["context"]))

    def fine_tune(
        self, belief: TensorDict, real: TaskBuffer, step: GradientStep, generator: torch.Generator
    ) -> TensorDict | None:
        """The belief with `policy` parameters `[M, ...]` that learned on from relabelled data, one task after another."""
        evaluation, stacks = self.cfg.evaluation, list[dict[str, Tensor]]()
        rows, latents = Decisions(real, self.control.hold).rows, list[Tensor]()
        for task in range(len(belief)):
            model, policy = self._moved(belief[task : task + 1], step), copy.deepcopy(self.policy)
            latents.append(model.prior.detach())
            optimizer = torch.optim.Adam(policy.sac.trained_parameters(), lr=evaluation.fine_tune_lr, fused=True)
            for _ in range(evaluation.fine_tune_updates):
                drawn = self.relabelled(model, rows.draw(self.cfg.sac.batch, generator))
                policy.update(drawn, step, optimizer, generator)
            step.check()
            stacks.append({name: value.detach()[0] for name, value in policy.sac.policy.net.named_parameters()})
        own = {name: torch.stack([stack[name] for stack in stacks]) for name in stacks[0]}
        tuned = {"latent": torch.stack(latents), "policy": TensorDict(own, batch_size=[len(belief)])}
        return belief.clone(False).update(tuned)

    def _moved(self, belief: TensorDict, step: GradientStep) -> IdentifiedDynamics:
        """A copy of the model after `mier.model_steps` steps of all of it on the context of one task, phi as its `prior`."""
        model = copy.deepcopy(self.dynamics).requires_grad_(True)
        model.prior.data.copy_(belief["latent"][0])
        optimizer = torch.optim.Adam([model.prior, *model.decoder.parameters()], lr=self.cfg.dynamics.lr, fused=True)

        def losses() -> dict[str, Tensor]:
            return {"loss": model.errors(belief["x"], belief["y"], model.prior.unsqueeze(0)).mean()}

        for _ in range(self.cfg.mier.model_steps if belief["x"].shape[1] else 0):
            step(losses, optimizer, MAX_GRAD_NORM)
        step.check()
        return model

    @torch.no_grad()
    def relabelled(self, model: IdentifiedDynamics, rows: TensorDict) -> TensorDict:
        """Decisions `[N]` as they would have ended in the task whose vector is the model's `prior`."""
        device = self.device
        observation, command = rows["observation"].to(device), rows["command"].to(device)
        belief = TensorDict({"latent": model.prior.unsqueeze(0)}, batch_size=[1])
        reward = torch.zeros(len(rows), device=device)
        terminated = reward.bool()
        for _ in range(self.control.hold):
            action = self.control.action(observation, command).clamp(-1, 1)
            following = model.imagine(observation.unsqueeze(0), action.unsqueeze(0), belief)[0]
            earned, ended = outcome(self.spec, observation, action, following)
            reward, terminated = reward + earned * ~terminated, terminated | ended
            observation = following
        new = {"following": observation, "reward": reward.unsqueeze(1), "terminated": terminated.float().unsqueeze(1)}
        new |= {"observation": rows["observation"].to(device), "command": command}
        return TensorDict(new | {"latent": model.prior.expand(len(rows), -1)}, batch_size=[len(rows)])
