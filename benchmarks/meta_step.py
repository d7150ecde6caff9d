"""One MAML-TRPO meta step of MB-MPO, against the sum of its stages written out bare."""

from __future__ import annotations

import math

import torch
from lightning.fabric import Fabric
from torch import Tensor
from torch.nn import functional as F

from benchmarks.measure import Ratio, compare, ratio
from benchmarks.setting import random_steps
from mbrl_lightning.algorithms.mb_mpo import MBMPO
from mbrl_lightning.config import compose
from mbrl_lightning.data.buffer import TaskBuffer
from mbrl_lightning.envs import make_family
from mbrl_lightning.networks.step import GradientStep
from mbrl_lightning.policies.trust_region import BACKTRACKS

OURS, BARE = "library", "sum of bare stages"
Weights = list[Tensor]


class BareMetaStep:
    """The same sizes, weights and equations on plain tensors: no TensorDict, module, family or configuration in sight.

    Args:
        algorithm: with fitted models.
        starts: states to begin in `[n, S]`.
    """

    def __init__(self, algorithm: MBMPO, starts: Tensor) -> None:
        self.spec, self.meta, self.starts = algorithm.spec, algorithm.cfg.meta, starts
        dynamics, policy = algorithm.dynamics, algorithm.policy
        self.members, self.steps = dynamics.decoder.copies, self.spec.horizon
        layers = [layer for layer in dynamics.decoder if hasattr(layer, "weight")]
        self.model = [t.detach().contiguous() for layer in layers for t in (layer.bias, layer.weight)]
        inputs, outputs = dynamics.input_norm, dynamics.target_norm
        self.x = inputs.loc, inputs.inverse_std
        self.y = outputs.loc, outputs.inverse_std.reciprocal()
        self.bounds, self.seen = (dynamics.low, dynamics.high), (policy.norm.loc, policy.norm.inverse_std)
        self.theta = [value.detach().clone() for value in policy.adaptable().values()]

    def head(self, own: Weights, inputs: Tensor) -> Tensor:
        """Mean actions of stacked two-layer policies; `own` is weight, bias, ..., log deviation."""
        for at in (0, 2):
            inputs = torch.tanh(torch.baddbmm(own[at + 1], inputs, own[at]))
        return torch.baddbmm(own[5], inputs, own[4])

    def density(self, loc: Tensor, log_std: Tensor, action: Tensor) -> Tensor:
        """Log density of actions."""
        deviations = (action - loc) * (-log_std).exp()
        return -(0.5 * deviations.square() + log_std + 0.5 * math.log(2 * math.pi)).sum(-1)

    @torch.no_grad()
    def rollout(self, own: Weights) -> tuple[Tensor, ...]:
        """Inputs, actions, means, advantages and log densities of K x R x T imagined steps, each `[K, N, ...]`."""
        members, count = self.members, self.meta.rollouts
        observation = self.starts[torch.randint(len(self.starts), (members * count,))]
        std, rows = own[6].exp(), []
        for _ in range(self.steps):
            features = self.spec.features(observation)
            inputs = ((features - self.seen[0]) * self.seen[1]).view(members, count, -1)
            loc = self.head(own, inputs)
            action = loc + std * torch.randn_like(loc)
            clipped = action.flatten(0, 1).clamp(-1, 1)
            y = ((torch.cat([features, clipped], -1) - self.x[0]) * self.x[1]).view(members, count, -1)
            for at in range(0, len(self.model), 2):
                y = torch.baddbmm(self.model[at], y, self.model[at + 1])
                y = F.relu(y) if at + 2 < len(self.model) else y
            following = self.spec.untarget(observation, y.flatten(0, 1) * self.y[1] + self.y[0])
            following = following.clamp(*self.bounds)
            rows.append((inputs, action, loc, observation, clipped, following))
            observation = following
        columns = [torch.stack(column, -2) for column in zip(*rows, strict=True)]
        inputs, action, loc = (value.flatten(1, 2) for value in columns[:3])
        reward = self.spec.reward(*columns[3:])
        advantage = self.advantages(columns[0], reward.view(members, count, -1).double())
        return inputs, action, loc, advantage, self.density(loc, own[6], action)

    def advantages(self, inputs: Tensor, reward: Tensor) -> Tensor:
        """Returns minus a ridge regression, standardised, `[K, N]`."""
        totals, total = torch.empty_like(reward), torch.zeros_like(reward[..., 0])
        for t in range(self.steps - 1, -1, -1):
            total = reward[..., t] + 0.99 * total
            totals[..., t] = total
        x = inputs.double().clamp(-10, 10)
        t = (torch.arange(self.steps, dtype=torch.float64) / 100).view(-1, 1).expand(*reward.shape, 1)
        design = torch.cat([x, x.square(), t, t.square(), t**3, torch.ones_like(t)], -1).flatten(1, 2)
        totals = totals.flatten(1).unsqueeze(-1)
        gram = design.mT @ design + 1e-5 * torch.eye(design.shape[-1], dtype=torch.float64)
        found = (totals - design @ torch.linalg.solve(gram, design.mT @ totals)).squeeze(-1)
        return ((found - found.mean(1, keepdim=True)) / found.std(1, keepdim=True)).float()

    def inner(self, theta: Weights, data: tuple[Tensor, ...], graph: bool) -> tuple[Weights, Weights, Weights]:
        """Leaves, their gradients, and the parameters after the inner step, each `[K, ...]`."""
        own = [p.detach().expand(self.members, *p.shape[1:]).requires_grad_() for p in theta]
        loss = -(self.density(self.head(own, data[0]), own[6], data[1]) * data[3]).mean(1).sum()
        gradients = torch.autograd.grad(loss, own, create_graph=graph)
        after = [(p - self.meta.inner_lr * g).detach() for p, g in zip(own, gradients, strict=True)]
        return own, list(gradients), after

    def curved(self, own: Weights, gradients: Weights, vectors: Weights) -> Weights:
        """Products with the inner step's Jacobian (symmetric: its transpose too)."""
        found = torch.autograd.grad(gradients, own, vectors, retain_graph=True)
        return [v - self.meta.inner_lr * h for v, h in zip(vectors, found, strict=True)]

    def judge(self, own: Weights, old: Weights, data: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Surrogate and divergence, `[]`."""
        loc = self.head(own, data[0])
        surrogate = ((self.density(loc, own[6], data[1]) - data[4]).exp() * data[3]).mean()
        ratio_ = (2 * (old[6] - own[6])).exp()
        distance = (data[2] - loc).square() * (-2 * own[6]).exp()
        return surrogate, (0.5 * (ratio_ + distance - 1 - ratio_.log()).sum(-1)).mean()

    def __call__(self) -> None:
        """Two rollouts with advantages, inner step, gradient, conjugate gradient, line search."""
        theta = self.theta
        before = self.rollout([p.expand(self.members, *p.shape[1:]).contiguous() for p in theta])
        own, slopes, adapted = self.inner(theta, before, graph=True)
        after = self.rollout(adapted)
        leaves = [p.clone().requires_grad_() for p in adapted]
        surrogate, _ = self.judge(leaves, adapted, after)
        pulled = self.curved(own, slopes, list(torch.autograd.grad(surrogate, leaves)))
        gradient = torch.cat([g.sum(0).flatten() for g in pulled])
        every = self.meta.subsample
        few, seen = (tuple(value[:, ::every] for value in data) for data in (before, after))
        own, slopes, _ = self.inner(theta, few, graph=True)
        leaves = [p.clone().requires_grad_() for p in adapted]
        _, kl = self.judge(leaves, adapted, seen)
        curves = torch.autograd.grad(kl * self.members, leaves, create_graph=True)

        def product(vector: Tensor) -> Tensor:
            pushed = self.curved(own, slopes, [v.expand_as(p) for v, p in zip(self.split(vector), own, strict=True)])
            fisher = torch.autograd.grad(curves, leaves, pushed, retain_graph=True)
            return torch.cat([v.mean(0).flatten() for v in self.curved(own, slopes, list(fisher))]) + 1e-5 * vector

        x, r = torch.zeros_like(gradient), gradient.clone()
        p, square = r.clone(), r @ r
        for _ in range(self.meta.cg_steps):
            along = product(p)
            size = square / (p @ along)
            x, r = x + size * p, r - size * along
            following = r @ r
            p, square = r + following / square * p, following
        full = x * (2 * self.meta.delta / (x @ product(x))).sqrt()
        for attempt in range(BACKTRACKS):
            trial = [t + c for t, c in zip(theta, self.split(full * 0.8**attempt), strict=True)]
            moved = self.inner(trial, before, graph=False)[2]
            with torch.no_grad():
                gain, kl = self.judge(moved, adapted, after)
            if gain > surrogate and kl <= self.meta.delta:
                break

    def split(self, vector: Tensor) -> Weights:
        """A flat vector in the shapes of the parameters."""
        parts = vector.split([p.numel() for p in self.theta])
        return [part.view_as(p) for part, p in zip(parts, self.theta, strict=True)]


def run(repeats: int) -> list[Ratio]:
    """Half-cheetah, 5 models x 20 trajectories x 200 steps before and after the inner step; see the class."""
    cfg = compose({"conf": "half_cheetah_200", "algorithm": "mb_mpo"})
    family = make_family(cfg.env.name)
    torch.manual_seed(0)
    algorithm, step = MBMPO(family, cfg), GradientStep(Fabric(accelerator="cpu", devices=1))
    draw, real = torch.Generator().manual_seed(0), TaskBuffer(len(family.parameters))
    tasks = family.sample(20, draw)
    data = random_steps(family, tasks, family.spec.horizon, draw)
    real.extend(data, real.add_tasks(tasks), exploratory=True)
    algorithm.fit(real, step, 30, draw)
    algorithm.policy.norm.fit(family.spec.features(data["observation"]))
    worlds = algorithm._worlds(real, step, draw)
    start = {name: value.detach().clone() for name, value in algorithm.policy.adaptable().items()}

    def ours() -> None:
        batch, _, linear = algorithm._trajectories(worlds)
        algorithm.outer(batch, step, linear)
        with torch.no_grad():  # every repeat starts from the same policy
            for name, value in algorithm.policy.adaptable().items():
                value.copy_(start[name])

    sides = {OURS: ours, BARE: BareMetaStep(algorithm, worlds.initial)}
    meta, members = cfg.meta, algorithm.dynamics.decoder.copies
    case = f"MB-MPO, half_cheetah_200: {members} models x {meta.rollouts} x {family.spec.horizon}, twice"
    return [ratio("meta step", case, compare(sides, repeats, 1), OURS, BARE, ceiling=1.25)]
