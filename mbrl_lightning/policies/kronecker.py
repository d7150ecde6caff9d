"""Natural gradients by Kronecker factors (K-FAC, Martens & Grosse 2015), in steps of a trust region (ACKTR, Wu et al. 2017).

F = E[g g^T] of a layer with inputs a (and a 1) and slopes s is taken as A x S, A = E[a a^T], S = E[s s^T], so that
F^-1 dL/dW = (A + pi sqrt(damping))^-1 dL/dW (S + sqrt(damping) / pi)^-1. A step is as long as its divergence, 1/2 d^T F d,
allows, and at most a share `lr` of the natural gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from mbrl_lightning.networks import StackedMLP


class KroneckerFactored(Optimizer):
    """Moves a network, and the log deviations of a Gaussian beside it, along the natural gradient.

    Args:
        net: of one copy.
        lr: largest share of the natural gradient.
        delta: largest divergence of a step, in nats.
        damping: added to the Fisher matrix.
        decay: of the running means of the factors.
        log_std: `[1, 1, A]`, whose Fisher matrix is twice the identity.
    """

    def __init__(
        self, net: StackedMLP, lr: float, delta: float, damping: float, decay: float, log_std: Tensor | None = None
    ) -> None:
        super().__init__([*net.parameters(), *([] if log_std is None else [log_std])], {"lr": lr})
        self.net, self.log_std = net, log_std
        self.delta, self.damping, self.decay = delta, damping, decay
        self._step_supports_amp_scaling = True  # it heeds `found_inf`

    @torch.no_grad()
    def observe(self, x: Tensor, score: Tensor, mean: Callable[[Tensor], Tensor]) -> None:
        """Take inputs `[N, I]` into the factors, with slopes `[N, O]` of log p(y) of outputs y drawn from the network's own p.

        `mean` is that over ranks.
        """
        inputs, outputs = list[Tensor](), list[Tensor]()
        with torch.enable_grad():
            for layer in self.net.affine:
                inputs.append(x if not outputs else self.net.activation(outputs[-1][0]))
                outputs.append(layer(inputs[-1].unsqueeze(0)))
            slopes = torch.autograd.grad((outputs[-1][0] * score).sum(), outputs)
        for layer, seen, slope in zip(self.net.affine, inputs, slopes, strict=True):
            whole = torch.cat([seen, torch.ones_like(seen[:, :1])], 1)
            state = self.state[layer.weight]
            for name, rows in (("inputs", whole), ("slopes", slope[0])):
                new = mean(rows.mT @ rows / len(rows))
                state[name] = new if name not in state else torch.lerp(new, state[name], self.decay)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Go down the natural gradient of the gradients there are."""
        (group,) = self.param_groups
        slopes: dict[Tensor, Tensor] = {parameter: parameter.grad for parameter in group["params"]}
        natural: dict[Tensor, Tensor] = {}
        for layer in self.net.affine:
            whole = torch.cat([slopes[layer.weight][0], slopes[layer.bias][0]])
            found = solve(self.state[layer.weight], whole, self.damping)
            natural |= {layer.weight: found[None, :-1], layer.bias: found[None, -1:]}
        if self.log_std is not None:
            natural[self.log_std] = slopes[self.log_std] / (2 + self.damping)
        # with d = F^-1 g the damped d^T F d is d^T g
        curvature = torch.stack([(found * slopes[parameter]).sum() for parameter, found in natural.items()]).sum()
        size = (2 * self.delta / curvature.clamp_min(1e-12)).sqrt().clamp_max(group["lr"])
        faulty = getattr(self, "found_inf", torch.zeros_like(size)) > 0
        for parameter, found in natural.items():
            parameter -= torch.where(faulty, 0.0, size * found)


def solve(factors: dict[str, Tensor], gradient: Tensor, damping: float) -> Tensor:
    """The natural gradient `[I + 1, O]` of a layer; `damping` is shared out by the factors' mean eigenvalues."""
    a, s = factors["inputs"].double(), factors["slopes"].double()
    pi = ((a.trace() / len(a)) / (s.trace() / len(s)).clamp_min(1e-12)).sqrt()
    root = damping**0.5 + 1e-8
    a = a + pi * root * torch.eye(len(a), dtype=a.dtype, device=a.device)
    s = s + root / pi.clamp_min(1e-12) * torch.eye(len(s), dtype=s.dtype, device=s.device)
    half = torch.linalg.solve(a, gradient.double())
    return torch.linalg.solve(s, half.mT).mT.to(gradient)
