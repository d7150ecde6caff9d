"""How far an inner step takes a policy, state by state, beside how much the models disagree there (MB-MPO, Fig. 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mbrl_lightning.algorithms.mb_mpo import MBMPO
from mbrl_lightning.beliefs.gradient import repeat
from mbrl_lightning.policies.trust_region import divergence
from mbrl_lightning.report import canvas

SIDE, LIMIT = 41, 2.5  # of the grid of states; starts reach to 2


@dataclass(frozen=True)
class Plasticity:
    """Both quantities over `states` `[N, S]`, at one iteration of a run.

    Attributes:
        kl: KL(pi || pi'_k) in nats, mean over the K adapted policies, `[N]`.
        deviation: of the K models' predictions under the policy's mean action, mean over entries, `[N]`.
    """

    run: str
    iteration: int
    states: Tensor
    kl: Tensor
    deviation: Tensor

    @property
    def correlation(self) -> float:
        """Spearman's rank correlation of the two over states."""
        return rank_correlation(self.kl, self.deviation)


@torch.no_grad()
def plasticity(algorithm: MBMPO, states: Tensor) -> tuple[Tensor, Tensor]:
    """KL(pi || pi'_k), mean over the adapted policies of the last iteration, and the models' deviation at `states` `[N, S]`."""
    policy, tasks = algorithm.policy, algorithm.tasks
    inputs = policy.norm(policy.spec.features(states)).expand(tasks, -1, -1)
    before = policy.distribution(inputs, repeat(policy.adaptable().items(), tasks, stacked=True))
    after = policy.distribution(inputs, dict(algorithm.adapted.adaptable()))
    following = algorithm.dynamics.predictions(states.unsqueeze(0), before[0][:1].clamp(-1, 1), algorithm.begin(1))
    return divergence(policy, before, after).mean(0), following[:, 0].std(0, correction=0).mean(-1)


def rank_correlation(first: Tensor, second: Tensor) -> float:
    """Spearman's, `[N]` and `[N]`; ties keep the order they come in, which real numbers seldom have."""
    ranks = torch.stack([value.argsort().argsort().double() for value in (first, second)])
    return float(torch.corrcoef(ranks)[0, 1])


def grid(side: int = SIDE, limit: float = LIMIT) -> Tensor:
    """States `[side^2, 2]` of the plane."""
    axis = torch.linspace(-limit, limit, side)
    return torch.cartesian_prod(axis, axis)


def draw_maps(last: Sequence[Plasticity], path: Path) -> Path:
    """Maps of both for the first run, and both against each other for all, in one PNG."""
    figure, panels = canvas.blank(1, 3, 4.6, 4.0)
    first, side = last[0], round(len(last[0].states) ** 0.5)
    edge = float(first.states.max())
    maps = {"deviation of the models": first.deviation, "KL of policy and adapted policies": first.kl}
    for axes, (title, shown) in zip(panels, maps.items(), strict=False):
        values = np.log10(shown.clamp_min(1e-12).numpy()).reshape(side, side).T
        image = axes.imshow(values, origin="lower", extent=(-edge, edge, -edge, edge), cmap="viridis")
        figure.colorbar(image, ax=axes, shrink=0.8)
        axes.set(title=f"log10 {title}, {first.run}", xlabel="x [m]", ylabel="y [m]")
        axes.grid(False)
    for index, each in enumerate(last):
        label = f"{each.run}, rank correlation {each.correlation:+.2f}"
        panels[2].loglog(each.deviation, each.kl, ".", markersize=2, color=canvas.colour(index), label=label)
    panels[2].set(xlabel="deviation of the models", ylabel="KL of policy and adapted policies [nats]")
    panels[2].legend(fontsize=8, markerscale=4)
    return canvas.save(figure, path)
