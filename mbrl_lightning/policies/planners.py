"""Action choice by search in a model: random shooting, CEM, iCEM and MPPI, for B environments in one call.

All four draw N action sequences of H steps about a plan, score each by its discounted known reward, averaged over the E
members of the model, and draw the plan together. Discrete actions: the plan holds probabilities in the place of means.

TorchRL's CEMPlanner and MPPIPlanner lack what is needed here: a plan that is handed in and back, environments in a batch, the
best sequence instead of a mean over elites (CEM), weights that cannot overflow (MPPI), discounts, a caller's generator,
bounded memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from tensordict import TensorDict
from torch import Tensor

from mbrl_lightning.config.console import log
from mbrl_lightning.config.methods import PlannerConfig
from mbrl_lightning.envs.spec import EnvSpec
from mbrl_lightning.models.imagination import outcome
from mbrl_lightning.networks import traced

Advance = Callable[[Tensor, Tensor], Tensor]
"""What is searched in: observations `[B, R, S]`, actions `[B, R, A]` -> next observations, R rows in each of B environments.

A model of E members takes the R rows in E equal blocks, one a member, as `Dynamics.imagine` does.
"""


class Guide(Protocol):
    """What a policy that was learned apart adds to a search: candidates, and what is still to come where they end."""

    candidates: int

    def propose(self, observation: Tensor, generator: torch.Generator) -> Tensor:
        """Actions `[B, R, A]` for observations `[B, R, S]`; in each block of R/E rows the first without noise."""

    def value(self, observation: Tensor) -> Tensor:
        """Discounted rewards to come, `[B, R]`, from observations `[B, R, S]`."""


# icem: noise has power 1 / frequency^COLOUR; share of the elites that are tried again; how fast candidates get fewer
COLOUR, KEPT, DECAY = 2.0, 0.3, 1.25


class Planner:
    """What the four have in common. B environments, N candidates, H steps, A actions; E = `members` vote on each candidate.

    Attributes:
        failures: searches, counted by environment, in which no candidate had a finite return.
        guide: a policy among whose candidates the search chooses, too; None: none.
    """

    guide: Guide | None = None

    def __init__(self, spec: EnvSpec, cfg: PlannerConfig, members: int = 1) -> None:
        self.spec, self.cfg, self.members = spec, cfg, members
        self.iterations, self.failures = cfg.iterations, 0

    # -- the search

    @torch.no_grad()
    def plan(
        self, advance: Advance, observation: Tensor, generator: torch.Generator, start: TensorDict
    ) -> tuple[Tensor, TensorDict]:
        """Search from each of B states `[B, S]` at once, starting from the plan that was returned a step ago, or `cold`.

        Returns:
            Actions `[B, A]` within bounds, and the plan for the next step, batch `[B]`. Where no candidate has a finite
            return the action is the safe one (zero) and the plan is cold.
        """
        cold = self.cold(len(observation)).apply(lambda value: value.to(observation))
        start = start if self.cfg.warm_start else cold
        mean, kept = start["mean"], start["kept"]
        std = torch.full_like(mean, self.cfg.initial_std)
        best, top = mean, observation.new_full((len(observation),), -math.inf)
        proposed = self.proposals(advance, observation, generator)
        for iteration in range(self.iterations):
            candidates = self.sample(mean, std, self.population(iteration), generator)
            candidates[:, 0] = self.execute(mean)
            if kept.shape[1]:
                again = candidates[:, 1 : 1 + kept.shape[1]]
                again.copy_(torch.where(kept.isfinite().all(-1, keepdim=True).all(-2, keepdim=True), kept, again))
            candidates = torch.cat([candidates, proposed], 1)
            scores = self.score(advance, observation, candidates)
            value, row = scores.max(1)
            rows = torch.arange(len(row), device=row.device)
            found = candidates[rows, row]
            best, top = torch.where((value > top).view(-1, 1, 1), found, best), torch.maximum(value, top)
            usable, news = torch.isfinite(value).view(-1, 1, 1), self.refit(candidates, self.weigh(scores), mean, std)
            mean, std = (torch.where(usable, new, old) for new, old in zip(news, (mean, std), strict=True))
            if kept.shape[1]:
                order = scores.topk(kept.shape[1]).indices
                kept = torch.where(usable.unsqueeze(1), candidates[rows.unsqueeze(1), order], kept)
        action = self.choose(best, mean)[:, 0]
        later = TensorDict({"mean": mean, "kept": kept}, batch_size=[len(row)])
        return self._guard(action, self.shift(later), cold, torch.isfinite(top))

    def proposals(self, advance: Advance, observation: Tensor, generator: torch.Generator) -> Tensor:
        """The guide's candidates `[B, n, H, A]`, an equal number made in each member."""
        count = 0 if self.guide is None else -(-self.guide.candidates // self.members) * self.members
        state, actions = observation.unsqueeze(1).expand(-1, count, -1), list[Tensor]()
        for _ in range(self.cfg.horizon if count else 0):
            assert self.guide is not None
            actions.append(self.guide.propose(state, generator))
            state = advance(state, actions[-1])
        shape = (len(observation), 0, self.cfg.horizon, self.spec.action_dim)
        return torch.stack(actions, 2) if count else observation.new_zeros(shape)

    def score(self, advance: Advance, observation: Tensor, candidates: Tensor) -> Tensor:
        """Discounted returns `[B, N]` of `candidates` `[B, N, H, A]` from `[B, S]`; minus infinity if not finite.

        At most `planner.chunk` rows (environments x candidates x members) are in memory at once, or one candidate of each;
        what comes out does not depend on it, but for rounding.
        """
        width = max(1, self.cfg.chunk // (len(observation) * self.members))
        scores = torch.cat([self._returns(advance, observation, part) for part in candidates.split(width, 1)], 1)
        return torch.where(torch.isfinite(scores), scores, -math.inf)

    def _returns(self, advance: Advance, observation: Tensor, candidates: Tensor) -> Tensor:
        (batch, count, horizon, _), members = candidates.shape, self.members
        state = observation.unsqueeze(1).expand(batch, members * count, -1)
        total = observation.new_zeros(batch, members * count)
        alive = torch.ones_like(total, dtype=torch.bool)
        for step in range(horizon):
            action = candidates[:, :, step].repeat(1, members, 1) if members > 1 else candidates[:, :, step]
            before, state = state, advance(state, action)
            reward, ended = outcome(self.spec, before, action, state)
            # A reward such as -1 for "not there" is finite in a state that is not. After its end no state counts.
            reward = torch.where(torch.isfinite(state.sum(-1)), reward, math.nan)
            total = total + self.cfg.gamma**step * torch.where(alive, reward, 0.0)
            alive = alive & ~ended
        if self.guide is not None:
            total = total + self.cfg.gamma**horizon * torch.where(alive, self.guide.value(state), 0.0)
        return total.view(batch, members, count).mean(1)

    def _guard(self, action: Tensor, plan: TensorDict, cold: TensorDict, good: Tensor) -> tuple[Tensor, TensorDict]:
        if not traced():
            if not (bad := int((~good).sum())):
                return action, plan
            if not self.failures:
                what = (
                    "no candidate of the planner has a finite return in %d of %d environments; they get a zero action"
                )
                log.warning("%s: " + what, self.spec.name, bad, len(good))
            self.failures += bad
        return torch.where(good.unsqueeze(1), action, self.fallback(action)), plan.where(good, cold)

    # -- plans: means (or probabilities) `[B, H, A]`, and sequences to try again `[B, k, H, A]`

    def cold(self, batch: int) -> TensorDict:
        """The plan of one who knows nothing, batch `[B]`."""
        shape = (batch, self.cfg.horizon, self.spec.action_dim)
        mean = torch.full(shape, 1 / shape[-1] if self.spec.discrete else 0.0)
        return TensorDict({"mean": mean, "kept": mean.new_zeros(batch, 0, *shape[1:])}, batch_size=[batch])

    def shift(self, plan: TensorDict) -> TensorDict:
        """The same plan a step later; its last step is what a cold one has."""
        last = self.cold(len(plan))["mean"][:, -1:].to(plan["mean"])
        plan["mean"] = torch.cat([plan["mean"][:, 1:], last], 1)
        again = self.execute(last).unsqueeze(1).expand(-1, plan["kept"].shape[1], -1, -1)
        plan["kept"] = torch.cat([plan["kept"][:, :, 1:], again], 2)
        return plan

    def execute(self, mean: Tensor) -> Tensor:
        """The sequence that a plan's mean `[..., A]` stands for."""
        if not self.spec.discrete:
            return mean.clamp(-1, 1)
        return torch.nn.functional.one_hot(mean.argmax(-1), self.spec.action_dim).to(mean)

    def fallback(self, action: Tensor) -> Tensor:
        """What to do when nothing can be foreseen: zero, or the discrete action that comes nearest to it; like `[B, A]`."""
        if not self.spec.discrete:
            return torch.zeros_like(action)
        choices = torch.eye(self.spec.action_dim).to(action)
        return choices[self.spec.action_features(choices).square().sum(-1).argmin()].expand_as(action)

    # -- what the four do differently

    def population(self, iteration: int) -> int:
        """Candidates N of an iteration."""
        return self.cfg.candidates

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """White noise of unit variance `[B, N, H, A]`."""
        return torch.randn(shape, generator=generator, device=generator.device)

    def sample(self, mean: Tensor, std: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """`[B, count, H, A]` sequences within bounds about a plan."""
        shape = (len(mean), count, *mean.shape[1:])
        if not self.spec.discrete:
            return (mean.unsqueeze(1) + std.unsqueeze(1) * self.noise(shape, generator).to(mean)).clamp_(-1, 1)
        uniform = torch.rand(shape, generator=generator, device=generator.device).to(mean).clamp(1e-9, 1 - 1e-7)
        return self.execute(mean.clamp_min(1e-9).log().unsqueeze(1) - torch.log(-torch.log(uniform)))

    def weigh(self, scores: Tensor) -> Tensor:
        """Weights `[B, N]` that sum to 1, from returns `[B, N]`; here the best alone."""
        return torch.zeros_like(scores).scatter(1, scores.argmax(1, keepdim=True), 1.0)

    def refit(self, candidates: Tensor, weights: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """The next plan's mean and deviation, `[B, H, A]` both; here the weighted mean, and the deviation as it was."""
        new = (weights[:, :, None, None] * candidates).sum(1)
        if self.spec.discrete:  # no choice dies out
            new = new.lerp(torch.full_like(new, 1 / self.spec.action_dim), self.cfg.min_std)
        return new, std

    def choose(self, best: Tensor, mean: Tensor) -> Tensor:
        """The sequence whose first action is executed: the best candidate `[B, H, A]`, or the plan's mean."""
        return best


class RandomShooting(Planner):
    """Uniform candidates, once; the best is executed, and tried again at the next step."""

    def __init__(self, spec: EnvSpec, cfg: PlannerConfig, members: int = 1) -> None:
        super().__init__(spec, cfg, members)
        self.iterations = 1

    def sample(self, mean: Tensor, std: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """`[B, count, H, A]`, whatever the plan."""
        return self.spec.random_action((len(mean), count, mean.shape[1]), generator).to(mean)


class CEM(Planner):
    """Cross-entropy method: mean and deviation of the elites, several times over; `planner.momentum` of the old ones stays."""

    def weigh(self, scores: Tensor) -> Tensor:
        """The elites alike, `[B, N]`."""
        value, rows = scores.topk(self.cfg.elites)
        finite = torch.isfinite(value).to(scores)
        return torch.zeros_like(scores).scatter(1, rows, finite / finite.sum(1, keepdim=True).clamp_min(1))

    def refit(self, candidates: Tensor, weights: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the elites, `[B, H, A]` both."""
        fresh, share = super().refit(candidates, weights, mean, std)[0], 1 - self.cfg.momentum
        spread = (weights[:, :, None, None] * (candidates - fresh.unsqueeze(1)).square()).sum(1).sqrt()
        return mean.lerp(fresh, share), std.lerp(spread, share).clamp_min(self.cfg.min_std)


class ICEM(CEM):
    """Improved CEM (Pinneri et al. 2020): noise with memory, elites that are tried again, fewer candidates each time."""

    def __init__(self, spec: EnvSpec, cfg: PlannerConfig, members: int = 1) -> None:
        super().__init__(spec, cfg, members)
        self.colour = coloured(cfg.horizon, COLOUR)

    def cold(self, batch: int) -> TensorDict:
        """See Planner.cold; there are no elites to try again yet, which is said by NaN."""
        plan, count = super().cold(batch), min(round(KEPT * self.cfg.elites), self.population(10**6) - 1)
        plan["kept"] = torch.full((batch, count, *plan["mean"].shape[1:]), math.nan)
        return plan

    def population(self, iteration: int) -> int:
        """Candidates N of an iteration: fewer and fewer, but twice the elites."""
        floor = min(2 * self.cfg.elites, self.cfg.candidates)
        return max(floor, int(self.cfg.candidates * DECAY ** -min(iteration, 100)))

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Noise of unit variance whose power falls with frequency along H, `[B, N, H, A]`."""
        white = super().noise(shape, generator)
        return torch.einsum("ht,bnta->bnha", self.colour.to(white), white)


class MPPI(Planner):
    """Path integral control (Williams et al. 2015): the mean of all candidates, weighted by exp(return / temperature)."""

    def weigh(self, scores: Tensor) -> Tensor:
        """Softmax of returns over candidates, `[B, N]`."""
        finite = torch.where(torch.isfinite(scores).any(1, keepdim=True), scores, 0.0)
        return torch.softmax(finite / self.cfg.temperature, 1)

    def choose(self, best: Tensor, mean: Tensor) -> Tensor:
        """The plan's mean."""
        return self.execute(mean)


PLANNERS: dict[str, type[Planner]] = {"random": RandomShooting, "cem": CEM, "icem": ICEM, "mppi": MPPI}


def make_planner(spec: EnvSpec, cfg: PlannerConfig, members: int = 1) -> Planner:
    """The planner that `cfg.kind` names."""
    return PLANNERS[cfg.kind](spec, cfg, members)


def coloured(horizon: int, exponent: float) -> Tensor:
    """Matrix `[H, H]` that turns white noise into noise of unit variance with power 1 / frequency^exponent."""
    frequency = torch.fft.rfftfreq(horizon, dtype=torch.float64).clamp_min(1 / horizon)
    scale = frequency ** (-exponent / 2)
    white = torch.fft.rfft(torch.eye(horizon, dtype=torch.float64), dim=0)
    matrix = torch.fft.irfft(white * scale[:, None], horizon, dim=0)
    return (matrix / matrix.square().sum(1, keepdim=True).sqrt()).float()
