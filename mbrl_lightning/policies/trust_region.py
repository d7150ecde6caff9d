"""Trust region policy optimisation (Schulman et al. 2015), of a policy itself or of what inner gradient steps make of it.

    maximise  mean_k E[ pi(a; theta'_k) / pi_old(a) A ]   subject to   mean_k KL(pi_old || pi(theta'_k)) <= delta

With theta'_k = theta this is TRPO; with theta'_k from an inner step on task k it is the outer step of MAML-TRPO and of MB-MPO
(Clavera et al. 2018, Eq. 5 and section A.3). Products with the Hessian of the constraint are exact, J^T F J v with the
Jacobian J of the inner steps and the Fisher matrix F of the adapted policies: the gradient of the constraint is 0 where it is
taken, so nothing else is left of a derivative of third order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.objectives import LossModule

from mbrl_lightning.beliefs.gradient import GradientAdaptation, Linearised, Losses, Parameters, repeat
from mbrl_lightning.config.console import log
from mbrl_lightning.config.methods import MetaConfig
from mbrl_lightning.config.schema import SearchConfig
from mbrl_lightning.errors import DivergedError
from mbrl_lightning.networks.gaussians import kl_divergence, log_prob
from mbrl_lightning.networks.step import GradientStep
from mbrl_lightning.policies.heads import Policy
from mbrl_lightning.policies.returns import advantages

BACKTRACKS, BACKTRACK = 15, 0.8  # step sizes tried by the line search, and the factor from one to the next
Outputs = tuple[Tensor, Tensor]
"""Means (or logits) `[M, N, A]` and deviations, broadcastable to them."""


def density(policy: Policy, outputs: Outputs, action: Tensor) -> Tensor:
    """Log density of sampled actions `[M, N, A]`, `[M, N]`."""
    if policy.spec.discrete:
        return (torch.log_softmax(outputs[0], -1) * action).sum(-1)
    return log_prob(action, *outputs)


def executed_density(policy: Policy, outputs: Outputs, action: Tensor) -> Tensor:
    """The same of actions as the environment took them, clipped to [-1, 1]: at a bound, the mass beyond it."""
    if policy.spec.discrete:
        return density(policy, outputs, action)
    loc, scale = outputs[0], outputs[1].expand_as(outputs[0])
    inside = log_prob(action.unsqueeze(-1), loc.unsqueeze(-1), scale.unsqueeze(-1))
    beyond = torch.special.log_ndtr(((action.sign() * loc) - 1) / scale)
    return torch.where(action.abs() < 1, inside, beyond).sum(-1)


def divergence(policy: Policy, old: Outputs, new: Outputs) -> Tensor:
    """KL(old || new), `[M, N]`."""
    if policy.spec.discrete:
        before, after = torch.log_softmax(old[0], -1), torch.log_softmax(new[0], -1)
        return (before.exp() * (before - after)).sum(-1)
    return kl_divergence(*old, *new)


def standardised_advantages(policy: Policy, data: TensorDictBase, cfg: SearchConfig) -> Tensor:
    """See `returns.advantages`; the data `[M, B, T]` are what it asks for, with `inputs`, and `next.observation`."""
    last = policy.norm(policy.spec.features(data["next", "observation"][..., -1, :]))
    return advantages(data["inputs"], last, data, cfg.gamma, cfg.lam)


@torch.no_grad()
def sampled_rows(policy: Policy, data: TensorDictBase, scale: Tensor) -> TensorDict:
    """What a trust region asks of trajectories `[M, B, T]`, as rows `[M, N]`; adds `scale` and `action_log_prob`.

    The data are `inputs`, `action` (before it is clipped), `advantage`, and the means (or logits) `loc` it was sampled with;
    `scale` are the deviations, broadcastable to `[M, N, A]`.
    """
    rows = data.select("inputs", "action", "advantage", "loc").flatten(1, 2)
    rows["scale"] = scale.expand_as(rows["loc"])
    rows["action_log_prob"] = density(policy, (rows["loc"], rows["scale"]), rows["action"])
    return rows


def inner_loss(policy: Policy, rows: TensorDictBase, density_of: Callable[..., Tensor] = density) -> Losses:
    """Minus the vanilla policy gradient's objective, E[log pi(a) A], on rows `[M, N]`: `inputs`, `action`, `advantage`."""

    def losses(parameters: Parameters) -> Tensor:
        outputs = policy.distribution(rows["inputs"], parameters)
        return -(density_of(policy, outputs, rows["action"]) * rows["advantage"]).mean(1)

    return losses


class TrustRegionLoss(LossModule):
    """Surrogate objective and divergence of M tasks; TorchRL has no loss of this kind."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy
        self.in_keys, self.out_keys = ["target", "policy"], ["loss_objective", "kl"]

    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """Means over tasks of minus E[pi(a) / pi_old(a) A], `loss_objective`, and of KL(pi_old || pi), `kl`.

        Args:
            tensordict: batch `[M]` with `target` `[M, N]` (see `sampled_rows`), and `policy`, the parameters `[M, ...]` of
                the policies in question, as `Policy.adaptable` names them.
        """
        target, policy = tensordict["target"], self.policy
        outputs = policy.distribution(target["inputs"], dict(tensordict["policy"].items()))
        ratio = (density(policy, outputs, target["action"]) - target["action_log_prob"]).exp()
        kl = divergence(policy, (target["loc"], target["scale"]), outputs)
        losses = {"loss_objective": -(ratio * target["advantage"]).mean(1).mean(), "kl": kl.mean(1).mean()}
        return TensorDict(losses, batch_size=[])


class TrustRegion:
    """One constrained step: conjugate gradient on exact products, then a backtracking line search.

    Parameters move here as in `GradientStep`: by quantities averaged over ranks, and only if they are finite.

    A batch `[M]` holds `target`, sampled by the adapted policies (see `sampled_rows`), and, if there are inner steps, `support`
    `[M, steps, N]`: `inputs`, `action`, `advantage`, sampled by the policies that each step started from.
    """

    def __init__(self, policy: Policy, cfg: MetaConfig, adaptation: GradientAdaptation | None = None) -> None:
        self.policy, self.loss, self.cfg = policy, TrustRegionLoss(policy), cfg
        self.adaptation = adaptation or GradientAdaptation((), 0.0)

    def theta(self, tasks: int) -> Parameters:
        """The policy's parameters as constants, the same for each of M = `tasks`, `[M, ...]`."""
        return repeat(((name, value.detach()) for name, value in self.policy.adaptable().items()), tasks, stacked=True)

    def linearise(self, batch: TensorDictBase) -> Linearised:
        """The inner steps from `theta`."""
        return self.adaptation.linearise(self._inner(batch), self.theta(len(batch)))

    def adapt(self, batch: TensorDictBase, parameters: Parameters) -> Parameters:
        """Parameters `[M, ...]` after the inner steps from `parameters` `[1, ...]`."""
        return self.adaptation(self._inner(batch), repeat(parameters.items(), len(batch), stacked=True))

    def judge(self, batch: TensorDictBase, parameters: Parameters) -> TensorDict:
        """The loss of policies with `parameters` `[M, ...]`."""
        own = TensorDict(dict(parameters), batch_size=batch.batch_size)
        return cast(TensorDict, self.loss(batch.select("target").set("policy", own)))

    def _inner(self, batch: TensorDictBase) -> list[Losses]:
        if self.adaptation.idle:
            return []
        return [inner_loss(self.policy, rows) for rows in batch["support"].unbind(1)]

    def __call__(self, batch: TensorDictBase, step: GradientStep, linear: Linearised | None = None) -> dict[str, float]:
        """Improve the policy on one batch `[M]`; it is left as it was if no backtrack improves it.

        `linear` are the inner steps on `batch["support"]`, where they were linearised when they were taken. DivergedError if the
        gradient or a product is not finite.

        Returns:
            `surrogate` (the gain), `kl`, `accepted`, `backtracks`, and `inner_kl`, how far the inner steps take the policy.
        """
        linear = linear or self.linearise(batch)
        gradient, gain_before, inner_kl = self._gradient(batch, linear, step)
        product = self._products(batch, linear.adapted, step)
        direction = conjugate_gradient(product, gradient, self.cfg.cg_steps)
        told = [gradient.isfinite().all(), direction.isfinite().all(), direction @ product(direction), inner_kl]
        *finite, curvature, moved = torch.stack([value.to(direction) for value in told]).tolist()  # the host waits once
        for what, good in zip(("policy gradient", "conjugate gradient"), finite, strict=True):
            if not good:
                raise DivergedError(
                    f"the {what} of the trust region is not finite at gradient step {step.count}",
                    "choose a smaller meta.inner_lr or meta.delta",
                )
        found = {"surrogate": 0.0, "kl": 0.0, "accepted": 0.0, "backtracks": 0.0, "inner_kl": moved}
        if curvature > 0:
            full = direction * (2 * self.cfg.delta / curvature) ** 0.5
            found |= self._search(batch, full, gain_before, step)
        if not found["accepted"]:
            log.warning("no step of %d improves the policy within the trust region: left as it was", BACKTRACKS)
        return found

    def _gradient(self, batch: TensorDictBase, linear: Linearised, step: GradientStep) -> tuple[Tensor, Tensor, Tensor]:
        """Gradient of the surrogate in the parameters, its value, and KL(pi || pi') of the inner steps."""
        leaves = {name: value.clone().requires_grad_() for name, value in linear.adapted.items()}
        with torch.enable_grad():
            surrogate = -self.judge(batch, leaves)["loss_objective"]
            found = torch.autograd.grad(surrogate, list(leaves.values()), materialize_grads=True)
        pulled = linear.pull(dict(zip(leaves, found, strict=True)))
        gradient = step.mean(flatten({name: value.sum(0, keepdim=True) for name, value in pulled.items()}))
        with torch.no_grad():
            inputs, policy = batch["target", "inputs"][:, :: self.cfg.subsample], self.policy
            moved = policy.distribution(inputs, linear.adapted)
            kept = policy.distribution(inputs, self.theta(len(batch)))
            inner_kl = step.mean(divergence(policy, kept, moved).mean())
        return gradient, step.mean(surrogate.detach()), inner_kl

    def _products(self, batch: TensorDictBase, adapted: Parameters, step: GradientStep) -> Callable[[Tensor], Tensor]:
        """V -> (mean_k J_k^T F_k J_k + damping) v, on every `subsample`-th row."""
        every, tasks = self.cfg.subsample, len(batch)
        few = TensorDict({"target": batch["target"][:, ::every]}, batch_size=[tasks])
        if not self.adaptation.idle:
            few["support"] = batch["support"][:, :, ::every]
        linear, own = self.linearise(few), self.policy.adaptable()
        leaves = {name: value.clone().requires_grad_() for name, value in adapted.items()}
        with torch.enable_grad():
            outputs = self.policy.distribution(few["target", "inputs"], leaves)
            held = outputs[0].detach(), outputs[1].detach()
            kl = divergence(self.policy, held, outputs).mean(1)
            slopes = torch.autograd.grad(kl.sum(), list(leaves.values()), create_graph=True)

        def product(vector: Tensor) -> Tensor:
            pushed = linear.push(repeat(unflatten(vector, own).items(), tasks, stacked=True))
            vectors = [pushed[name] for name in leaves]
            with torch.enable_grad():
                fisher = torch.autograd.grad(slopes, list(leaves.values()), vectors, retain_graph=True)
            pulled = linear.pull(dict(zip(leaves, fisher, strict=True)))
            mean = step.mean(flatten({name: v.mean(0, keepdim=True) for name, v in pulled.items()}))
            return mean + self.cfg.damping * vector

        return product

    @torch.no_grad()
    def _search(self, batch: TensorDictBase, full: Tensor, gain_before: Tensor, step: GradientStep) -> dict[str, float]:
        own = self.policy.adaptable()
        for backtracks in range(BACKTRACKS):
            change = unflatten(full * BACKTRACK**backtracks, own)
            trial = {name: value + change[name] for name, value in own.items()}
            found = self.judge(batch, self.adapt(batch, trial))
            gain, moved = step.mean(torch.stack([-found["loss_objective"] - gain_before, found["kl"]])).tolist()
            if gain > 0 and moved <= self.cfg.delta:  # false for what is not a number
                for name, value in trial.items():
                    own[name].copy_(value)
                step.count += 1
                return {"surrogate": gain, "kl": moved, "accepted": 1.0, "backtracks": float(backtracks)}
        return {"backtracks": float(BACKTRACKS)}


def conjugate_gradient(product: Callable[[Tensor], Tensor], target: Tensor, steps: int) -> Tensor:
    """Solve A x = `target` `[D]` for a symmetric, positive definite A, `product`: v -> A v, by `steps` steps from 0.

    Once the squared residual is below 1e-10 of that of 0 the steps are of size 0.
    """
    solution, residual = torch.zeros_like(target), target.clone()
    direction, square = residual.clone(), residual @ residual
    limit = 1e-10 * square
    for _ in range(steps):
        along = product(direction)
        going = square > limit
        size = torch.where(going, square / (direction @ along), 0)
        solution = solution + size * direction
        residual = residual - size * along
        following = residual @ residual
        direction = torch.where(going, residual + following / square * direction, direction)
        square = following
    return solution


def flatten(parameters: Parameters) -> Tensor:
    """All parameters in one vector."""
    return torch.cat([value.flatten() for value in parameters.values()])


def unflatten(vector: Tensor, like: Parameters) -> Parameters:
    """Undo `flatten`, with the shapes of `like`."""
    parts = vector.split([value.numel() for value in like.values()])
    return {name: part.view_as(value) for (name, value), part in zip(like.items(), parts, strict=True)}
