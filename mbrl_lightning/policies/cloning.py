"""How far a policy is from the data it learns from: M3PO's policy divergence (Hiraoka et al. 2020, Fig. 12).

The policies that collected the data are many; they are stood in for by one network like the policy, fitted to all actions.
"""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import Tensor

from mbrl_lightning.config.schema import Config
from mbrl_lightning.data.windows import Histories
from mbrl_lightning.networks.gaussians import kl_divergence, log_prob
from mbrl_lightning.networks.step import GradientStep
from mbrl_lightning.policies.sac import SAC, HistoryPolicy

MOST, CHECK, BATCH, LR = 200, 25, 256, 3e-3
"""Updates at most, updates between looks at held-out data, histories in an update, learning rate (it falls to 0)."""
HELD_OUT, MOST_HELD_OUT = 0.2, 2000
SATURATED = 1 - 1e-6  # an action nearer to its limits has no finite place before the tanh


def divergence_from_data(
    policy: SAC, histories: Histories, cfg: Config, step: GradientStep, generator: torch.Generator
) -> float:
    """KL(pi || pi_D) in nats, mean over recorded histories that pi_D was not fitted to.

    Neither `policy` nor the count of `step` changes; `generator` draws weights, rows and batches.
    """
    order = torch.randperm(len(histories), generator=generator).to(histories.pairs.device)
    held_out, rows = order[: int(HELD_OUT * len(order))], order[int(HELD_OUT * len(order)) :]
    held_out = held_out[:MOST_HELD_OUT] if len(held_out) else rows
    cloned = cloned_policy(policy, histories, rows, held_out, cfg, step, generator)
    inputs = histories.before(held_out)["inputs"]
    with torch.no_grad():
        # of Gaussians before the tanh, which is one to one and leaves the divergence as it is
        columns = (part.double() for part in (*policy.policy(inputs), *cloned(inputs)))
        return float(kl_divergence(*columns).mean())


def cloned_policy(
    policy: SAC,
    histories: Histories,
    rows: Tensor,
    held_out: Tensor,
    cfg: Config,
    step: GradientStep,
    generator: torch.Generator,
) -> HistoryPolicy:
    """pi_D: a network like the policy, with weights of its own, fitted to the recorded actions of `rows` `[N]`.

    By maximum likelihood; it is the one that did best on the actions of `held_out`, and the fit ends when a look at them finds
    nothing better, as a network that knows few data by heart is far from every policy.
    """
    shape = (1, histories.pairs.shape[1], histories.current.shape[1], 2 * policy.action_dim)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        cloned = HistoryPolicy(*shape, cfg.policy.hidden, cfg.policy.activation, cfg.history.hidden)
    cloned = cloned.to(histories.pairs.device)
    optimizer = torch.optim.Adam(cloned.parameters(), lr=LR, fused=True)
    own, best, kept = GradientStep(step.fabric), float("inf"), copy.deepcopy(cloned)
    for update in range(MOST):
        for group in optimizer.param_groups:
            group["lr"] = LR * (1 - update / MOST)
        pick = rows[torch.randint(len(rows), (BATCH,), generator=generator).to(rows.device)]
        own(partial(_losses, cloned, histories, pick), optimizer)
        if (update + 1) % CHECK == 0:
            with torch.no_grad():
                own.check()
                now = float(_losses(cloned, histories, held_out)["loss"])
            if now >= best:
                break
            best, kept = now, copy.deepcopy(cloned)
    return kept


def _losses(cloned: HistoryPolicy, histories: Histories, rows: Tensor) -> dict[str, Tensor]:
    loc, log_scale = cloned.moments(cloned.read(histories.before(rows)["inputs"]))
    # before the tanh: its own density does not depend on the weights
    action = torch.atanh(histories.action[rows].clamp(-SATURATED, SATURATED))
    return {"loss": -log_prob(action, loc, log_scale.exp()).mean()}
