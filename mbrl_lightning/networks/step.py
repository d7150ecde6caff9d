"""One gradient step on any number of devices, and the finite guard on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar, cast

import torch
from lightning.fabric import Fabric
from tensordict import TensorDictBase
from torch import Tensor
from torch.optim import Optimizer

from mbrl_lightning.errors import ConfigError, DivergedError

Batch = TypeVar("Batch", Tensor, TensorDictBase)
Losses = Mapping[str, Tensor]


def summed(losses: TensorDictBase) -> dict[str, Tensor]:
    """What a `LossModule` gave, and before it `loss`, the sum of its `loss_*`."""
    parts = dict(losses.items())
    total = [value for name, value in parts.items() if name.startswith("loss_")]
    return {"loss": torch.stack(total).sum(), **parts}


REMEDY = "choose a smaller learning rate of the model (dynamics.lr) or the policy (search.lr, sac.lr)"


class GradientStep:
    """Backward, average over ranks, clip, step: the only place where parameters change.

    Every rank draws the same global batch and works on its share of the tasks (`share`), so gradients averaged over ranks
    are those of one process with the whole batch. One flat all-reduce also serves losses that bypass a module's `forward`
    (TorchRL's, functional ones), which DistributedDataParallel does not.
    """

    def __init__(self, fabric: Fabric) -> None:
        self.fabric, self.count = fabric, 0

    def share(self, batch: Batch) -> Batch:
        """This rank's part of a global batch, cut along its first dimension, on this rank's device."""
        size, rest = divmod(len(batch), self.fabric.world_size)
        if rest:
            raise ConfigError(
                f"a batch of {len(batch)} does not divide among {self.fabric.world_size} devices",
                "make the sizes of batches (dynamics.tasks or targets, search.tasks and minibatch, sac.batch, "
                "pearl.meta_batch, l2a.segments) multiples of the number of devices",
            )
        first = size * self.fabric.global_rank
        return batch[first : first + size].to(self.fabric.device)

    def gather(self, batch: Batch) -> Batch:
        """The global batch of which every rank has its share, on every rank: undoes `share`."""
        world = self.fabric.world_size
        if world == 1:
            return batch

        def whole(part: Tensor) -> Tensor:
            return cast(Tensor, self.fabric.all_gather(part)).flatten(0, 1)

        if isinstance(batch, Tensor):
            return whole(batch)
        return cast(Batch, batch.apply(whole, batch_size=[world * len(batch), *batch.shape[1:]]))

    def mean(self, value: Tensor) -> Tensor:
        """Mean over ranks, so that all of them decide alike."""
        return cast(Tensor, self.fabric.all_reduce(value, reduce_op="mean")) if self.fabric.world_size > 1 else value

    def __call__(
        self, losses: Callable[[], Losses], optimizer: Optimizer, max_grad_norm: float = 0.0, stacked: bool = False
    ) -> dict[str, float]:
        """Take one step on `losses()["loss"]`, computed under this run's precision; returns all that it gave as numbers.

        Args:
            losses: computes a mapping with `loss` and whatever else is to be logged.
            optimizer: of the parameters to move.
            max_grad_norm: clip the norm of the gradient to this; 0 leaves it.
            stacked: the first dimension of every parameter counts copies; clip each copy by its own norm.

        Raises:
            DivergedError: the loss or the gradient is not finite; parameters are as before the step.
        """
        with self.fabric.autocast():
            values = losses()
        optimizer.zero_grad(set_to_none=True)
        self.fabric.backward(values["loss"])
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if self.fabric.world_size > 1:
            self._average(gradients)
        norms = _norms(gradients, stacked)
        if not bool(torch.isfinite(values["loss"] + norms.sum())):
            raise DivergedError(
                f"loss {float(values['loss'].detach())} or gradient norm {norms.tolist()} is not finite at "
                f"gradient step {self.count}",
                REMEDY,
            )
        if max_grad_norm > 0:
            _clip(gradients, norms, max_grad_norm)
        optimizer.step()
        self.count += 1
        return {name: float(value.detach()) for name, value in values.items()}

    def fit(
        self,
        training_step: Callable[[Batch], Losses],
        draw: Callable[[], Batch],
        optimizer: Optimizer,
        steps: int,
        max_grad_norm: float = 0.0,
    ) -> dict[str, float]:
        """`steps` steps, each on this rank's share of the global batch that `draw` gives; returns the means of the losses."""
        total: dict[str, float] = {}
        for _ in range(steps):
            found = self(partial(training_step, self.share(draw())), optimizer, max_grad_norm)
            total = {name: total.get(name, 0.0) + value / steps for name, value in found.items()}
        return total

    def _average(self, gradients: list[Tensor]) -> None:
        flat = self.mean(torch.cat([g.flatten() for g in gradients]))
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))


def require_finite(learned: Mapping[str, Any], where: str) -> None:
    """Raise DivergedError for nested plain containers with a tensor that is not finite: it must not become a good state.

    The first of them is named, `where` in words.
    """

    def tensors(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
        if isinstance(value, Tensor) and value.is_floating_point():
            yield name, value
        elif isinstance(value, Mapping):
            for key, entry in value.items():
                yield from tensors(entry, f"{name}.{key}")

    found = list(tensors(learned, where))
    bad = [name for name, value in found if not bool(value.isfinite().all())]
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise DivergedError(f"{bad[0]}{more} is not finite", REMEDY)


def _norms(gradients: list[Tensor], stacked: bool) -> Tensor:
    if stacked:
        return torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0).sqrt()
    return torch.stack(torch._foreach_norm(gradients)).norm().unsqueeze(0)


def _clip(gradients: list[Tensor], norms: Tensor, limit: float) -> None:
    factors = (limit / norms.clamp_min(1e-12)).clamp_max(1.0)
    if len(factors) == 1:
        torch._foreach_mul_(gradients, float(factors[0]))
        return
    for gradient in gradients:
        gradient.mul_(factors.view(-1, *[1] * (gradient.ndim - 1)))
