"""AdMRL, model-based adversarial meta-reinforcement learning (Lin et al., NeurIPS 2020): tasks that differ in their reward alone.

    Algorithm 1  one model for all tasks; alternate: a task is moved to where the policy is worst, real
                 data are collected there, the model is fitted, the policy learns in the model       AdMRL.drawn, fit, improve
    Eq. 3        the gap that a task is moved up: return of the best policy less that of ours        AdMRL.attack
    Algorithm 2  on an unseen task: training in the model alone                                      AdMRL.fine_tune
Departures: one policy is told the task, so that its dependence on the task is differentiated as it is, where the paper needs
the implicit function theorem for policies trained one by one; the best policy is ours after `evaluation.fine_tune_updates` steps
in the model; gradients are those of imagined rollouts; a moved task is the nearest of a family's draws; what a test pays is not
told: the draw whose rewards are the nearest to those of a context is believed.
"""

from __future__ import annotations

from functools import partial

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from mbrl_lightning.algorithms.imagining import ImaginingAlgorithm
from mbrl_lightning.config.console import log
from mbrl_lightning.config.schema import Config
from mbrl_lightning.data.buffer import TaskBuffer
from mbrl_lightning.data.world import RealWorld
from mbrl_lightning.envs.family import TaskFamily
from mbrl_lightning.models.mlp import PaidDynamics
from mbrl_lightning.networks.step import GradientStep
from mbrl_lightning.policies.heads import Policy
from mbrl_lightning.policies.pathwise import PathwiseLoss, PathwiseSearch
from mbrl_lightning.policies.search import searched, starts

CANDIDATES = 512  # draws of the family, among which tasks move and are believed


class AdMRL(ImaginingAlgorithm):
    """A policy told the task, searched in a model on tasks that are moved to where it is worst.

    The belief has `errors` `[M, candidates]`, squared and summed over what was paid, and the best candidate's `task` `[M, P]`.
    Where the family does not say what a task pays for what is seen, nothing is believed and nothing moved.
    """

    search: PathwiseSearch
    candidates: Tensor
    moved: Tensor

    def __init__(self, family: TaskFamily, cfg: Config) -> None:
        family.require_several()
        if family.paid is None:
            log.warning(
                "%s: tasks do not say what they pay (`paid`): none is told from another or moved", family.spec.name
            )
        make = partial(PaidDynamics, paid=family.paid)
        super().__init__(family, cfg, make, len(family.parameters))
        self.share = 0.0 if family.paid is None else cfg.admrl.share
        self.register_buffer("candidates", family.sample(CANDIDATES, self.generator).float())
        self.register_buffer("moved", self.candidates[: round(self.share * cfg.search.tasks)].clone())

    def make_search(self, latent: int) -> PathwiseSearch:
        """Back-propagation through imagined rollouts."""
        return PathwiseSearch(self.spec, self.cfg, latent)

    # -- belief

    def begin(self, tasks: int) -> TensorDict:
        """Nothing was paid yet."""
        return self.control.begin(self._believed(torch.zeros(tasks, CANDIDATES, device=self.device)))

    def adapt(self, belief: TensorDict, transitions: TensorDictBase) -> TensorDict:
        """The belief after a context `[M, K]`; the one step just made is not taken into it."""
        if transitions.ndim == 1 or not transitions.shape[1] or self.family.paid is None:
            return belief
        parts = (transitions["observation"], transitions["action"], transitions["next", "observation"])
        before, action, after = (part.to(self.device).unsqueeze(2) for part in parts)
        errors = self.family.paid(before, action, after, self.candidates) - self.spec.reward(before, action, after)
        return belief.clone(False).update(self._believed(belief["errors"] + errors.square().sum(1)))

    def _believed(self, errors: Tensor) -> TensorDict:
        best = self.candidates[errors.argmin(1)]
        mean = self.candidates.mean(0).expand_as(best)
        return self._told(torch.where(errors.any(1, keepdim=True), best, mean)).set("errors", errors)

    def _told(self, tasks: Tensor) -> TensorDict:
        """The belief of one who knows the tasks `[M, P]`."""
        return TensorDict({"task": tasks, "latent": self.family.scale(tasks)}, batch_size=[len(tasks)])

    # -- Algorithm 1

    def drawn(self, world: RealWorld, count: int) -> Tensor:
        """Real data are collected in moved tasks, as far as there are any."""
        fresh = super().drawn(world, count)
        return torch.cat([self.moved.cpu().double(), fresh])[:count]

    def imagined_tasks(self, real: TaskBuffer, step: GradientStep, tasks: int, rows: int) -> TensorDict:
        """See `policies.search.Learner`; a share of the tasks are moved ones, the rest draws."""
        pick = torch.randint(CANDIDATES, (tasks,), generator=self.generator)
        told, count = self.candidates[pick.to(self.device)], round(self.share * tasks)
        told[:count] = self.moved[torch.arange(count) % max(len(self.moved), 1)]
        share = self.cfg.search.initial_starts
        return step.share(starts(self, self._told(told), real, rows, share, self.generator))

    def improve(self, world: RealWorld, step: GradientStep) -> dict[str, float]:
        """Move tasks, then search the policy in them and in draws."""
        metrics = self.attack(world.real, step) if int(self.iteration) and len(self.moved) else {}
        return super().improve(world, step) | metrics

    def attack(self, real: TaskBuffer, step: GradientStep) -> dict[str, float]:
        """Move every task up the gap between what a policy trained for it and what ours gets there; returns the mean gap."""
        count = len(self.moved)
        with self.dynamics.constant():
            own = self.search.tune(self, self._told(self.moved), real, step, self.generator)
            best, ours = self.policy.repeated(count), self.policy.repeated(count)
            best.net.load_state_dict(own)
            tasks = self.moved.clone().requires_grad_()
            rows = 4 * self.cfg.dynamics.members
            batch = starts(self, self._told(tasks), real, rows, 1.0, self.generator)
            gap = self._returns(best, batch) - self._returns(ours, batch)
            (slope,) = torch.autograd.grad(gap.sum(), tasks)
        slope = torch.nan_to_num(step.mean(slope))
        length = self.cfg.admrl.step * self.candidates.std(0).norm()
        aim = self.moved + length * slope / slope.norm(dim=1, keepdim=True).clamp_min(1e-12)
        self.moved.copy_(self.candidates[torch.cdist(aim, self.candidates).argmin(1)])
        return {"train/gap": float(gap.detach().mean()) * (1 if self.spec.unit == "step" else self.spec.horizon)}

    def _returns(self, policies: Policy, batch: TensorDict) -> Tensor:
        """Mean rewards `[M]` of policy m in task m, differentiable in the tasks."""
        horizon = self.cfg.search.horizon or self.spec.horizon
        loss = PathwiseLoss(policies, self.dynamics, horizon, members=searched(self.cfg), paired=True)
        return loss.rewards(batch).mean((1, 2, 3, 4))
