"""Adaptation by gradient steps (MAML, Finn et al. 2017): theta'_m = theta_m - alpha grad L_m(theta_m), for M tasks at once.

Parameters are a dict by name whose tensors carry the tasks in front, `[M, ...]`, and a loss maps them to one number a task,
`[M]`; a task's loss depends on its own parameters alone, so that one backward pass serves all of them. Networks that are
stacks already (`StackedMLP`) take such a dict by `evaluate`; any other module becomes one by `per_task`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Parameters = dict[str, Tensor]
Losses = Callable[[Parameters], Tensor]
"""Parameters `[M, ...]` -> losses `[M]`."""


def repeat(parameters: Iterable[tuple[str, Tensor]], tasks: int, stacked: bool = False) -> Parameters:
    """The same parameters for each of M = `tasks`, without a copy; gradients sum up over the tasks.

    `stacked` says that the first dimension counts copies already, of which there is one (`StackedLinear`).
    """
    return {name: (p if stacked else p.unsqueeze(0)).expand(tasks, *p.shape[stacked:]) for name, p in parameters}


def per_task(loss: Callable[[Parameters, Any], Tensor], batch: Any) -> Losses:
    """Losses of M tasks out of the loss of one, by `torch.func.vmap`; the first dimension of `batch` counts the tasks.

    The loss takes parameters of one task and its part of the batch, and calls its module by `functional_call`.
    """
    return lambda parameters: torch.func.vmap(loss)(parameters, batch)


class GradientAdaptation(nn.Module):
    """Inner steps with a fixed or learned size for each parameter tensor.

    Args:
        names: of the parameters that adapt, in the order in which `sizes` counts them.
        size: step size alpha; 0 adapts nothing, and so do 0 `steps`.
        steps: how many.
        learned: the sizes are parameters (one for each tensor, for all steps).
        first_order: leave out the derivative of the step (its gradient is taken as constant).
    """

    sizes: Tensor

    def __init__(
        self, names: Sequence[str], size: float, steps: int = 1, learned: bool = False, first_order: bool = False
    ) -> None:
        super().__init__()
        self.names, self.steps, self.first_order = tuple(names), steps, first_order
        sizes = torch.full((len(self.names),), float(size))
        if learned:
            self.sizes = nn.Parameter(sizes)
        else:
            self.register_buffer("sizes", sizes, persistent=False)  # the configuration's, no state
        self.idle = steps == 0 or (size == 0 and not learned)

    def forward(self, losses: Losses | Sequence[Losses], parameters: Parameters) -> Parameters:
        """Adapted parameters `[M, ...]`, differentiable in `parameters` and in the sizes where gradients are enabled.

        A sequence of losses has one for each step (data drawn anew between them); names that do not adapt are handed through.
        """
        outer = torch.is_grad_enabled()
        for loss in self._each(losses):
            with torch.enable_grad():
                held = parameters if outer else _leaves(parameters)
                held = held | _leaves({name: held[name] for name in self.names if not held[name].requires_grad})
                gradients = self._gradients(loss, held, outer and not self.first_order)
            parameters = self._stepped(parameters, gradients)
        return parameters

    @torch.no_grad()
    def linearise(self, losses: Losses | Sequence[Losses], parameters: Parameters) -> Linearised:
        """The steps from `parameters` `[M, ...]`, all of which adapt, with products of their Jacobian; see `Linearised`."""
        if not self.idle and set(parameters) != set(self.names):
            raise ValueError(f"not all of {sorted(parameters)} adapt: the Jacobian's other columns are not kept")
        points: list[tuple[Parameters, Sequence[Tensor]]] = []
        for loss in self._each(losses):
            with torch.enable_grad():
                leaves = _leaves(parameters)
                gradients = self._gradients(loss, leaves, not self.first_order)
            points.append((leaves, gradients))
            parameters = self._stepped(parameters, gradients)
        return Linearised(self, parameters, [] if self.first_order else points)

    def _each(self, losses: Losses | Sequence[Losses]) -> list[Losses]:
        if self.idle:
            return []
        each = list(losses) if isinstance(losses, Sequence) else [losses] * self.steps
        if len(each) != self.steps:
            raise ValueError(f"{len(each)} losses for {self.steps} inner steps")
        return each

    def _gradients(self, loss: Losses, parameters: Parameters, graph: bool) -> Sequence[Tensor]:
        adapting = [parameters[name] for name in self.names]
        return torch.autograd.grad(loss(parameters).sum(), adapting, create_graph=graph, materialize_grads=True)

    def _stepped(self, parameters: Parameters, gradients: Sequence[Tensor]) -> Parameters:
        steps = zip(self.names, self.sizes.unbind(), gradients, strict=True)
        return parameters | {name: parameters[name] - size * gradient for name, size, gradient in steps}


class Linearised:
    """`adapted` parameters `[M, ...]` without a graph, and products with their Jacobian J = prod_i (I - alpha H_i), by task.

    Each H_i is the Hessian of a task's loss where step i was taken, and symmetric, so J v and J^T v are as many Hessian-vector
    products as there were steps, each a derivative of second order: cheaper than differentiating through the step.
    """

    def __init__(
        self, adaptation: GradientAdaptation, adapted: Parameters, points: list[tuple[Parameters, Sequence[Tensor]]]
    ) -> None:
        self.adaptation, self.adapted, self.points = adaptation, adapted, points

    def then(self, following: Linearised) -> Linearised:
        """These steps, and after them those of `following`, which start where these end."""
        return Linearised(self.adaptation, following.adapted, self.points + following.points)

    def push(self, vectors: Parameters) -> Parameters:
        """J v: how the adapted parameters move when the parameters move by `vectors` `[M, ...]`."""
        for point in self.points:
            change = self._scaled(self._hessian(point, vectors))
            vectors = {name: v - change[name] for name, v in vectors.items()}
        return vectors

    def pull(self, vectors: Parameters) -> Parameters:
        """J^T v: the gradient in the parameters of what has the gradient `vectors` `[M, ...]` in the adapted ones."""
        for point in reversed(self.points):
            change = self._hessian(point, self._scaled(vectors))
            vectors = {name: v - change[name] for name, v in vectors.items()}
        return vectors

    def _scaled(self, vectors: Parameters) -> Parameters:
        sizes = self.adaptation.sizes.detach().unbind()
        return {name: size * vectors[name] for size, name in zip(sizes, self.adaptation.names, strict=True)}

    def _hessian(self, point: tuple[Parameters, Sequence[Tensor]], vectors: Parameters) -> Parameters:
        leaves, gradients = point
        names = self.adaptation.names
        traced = [(g, vectors[name]) for name, g in zip(names, gradients, strict=True) if g.requires_grad]
        adapting = [leaves[name] for name in names]
        if not traced:  # a loss linear in the parameters has no Hessian
            return {name: torch.zeros_like(leaf) for name, leaf in zip(names, adapting, strict=True)}
        first, second = zip(*traced, strict=True)
        found = torch.autograd.grad(first, adapting, second, retain_graph=True, materialize_grads=True)
        return dict(zip(names, found, strict=True))


def _leaves(parameters: Parameters) -> Parameters:
    return {name: value.detach().requires_grad_() for name, value in parameters.items()}
