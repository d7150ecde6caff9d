"""One gradient step on any number of devices, and the finite guard on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from tensordict import TensorDictBase
from torch import Tensor
from torch.optim import Optimizer

from mbrl_lightning.errors import ConfigError, DivergedError
from mbrl_lightning.networks.compiled import Compiler

Batch = TypeVar("Batch", Tensor, TensorDictBase)
Losses = Mapping[str, Tensor]


def summed(losses: TensorDictBase) -> dict[str, Tensor]:
    """What a `LossModule` gave, and before it `loss`, the sum of its `loss_*`."""
    parts = dict(losses.items())
    total = [value for name, value in parts.items() if name.startswith("loss_")]
    return {"loss": torch.stack(total).sum(), **parts}


REMEDY = (
    "choose a smaller learning rate of the model (dynamics.lr) or the policy (search.lr, sac.lr); "
    "where imagined states grow without bound, more loop.model_steps or smaller search.bounds"
)
BLOCK = 64
"""Updates between two looks at whether all of them were finite: a look makes the device wait for the host."""


class GradientStep:
    """Backward, average over ranks, clip, step: the only place where parameters change.

    Every rank draws the same global batch and works on its share of the tasks (`share`), so gradients averaged over ranks
    are those of one process with the whole batch. One flat all-reduce also serves losses that bypass a module's `forward`
    (TorchRL's, functional ones), which DistributedDataParallel does not.

    A step on what is not finite is not taken, nor is any after it: the optimizer is told on the device, as a gradient scaler
    tells it (`found_inf`). The host looks every `BLOCK` steps, and whenever it is given `numbers`.

    Args:
        fabric: whose devices, ranks and precision.
        compiled: whether losses that `on` is given are compiled.
    """

    def __init__(self, fabric: Fabric, compiled: bool = False) -> None:
        self.fabric, self.count, self.compiler = fabric, 0, Compiler(compiled)
        self._sum, self._faulty = torch.zeros(2, device=fabric.device).unbind()
        self._seen: list[tuple[int, Tensor, Tensor]] = []

    def share(self, batch: Batch) -> Batch:
        """This rank's part of a global batch, cut along its first dimension, on this rank's device."""
        if self.fabric.world_size == 1:
            return batch.to(self.fabric.device)
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
            parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(world)]
            dist.all_gather(parts, part.contiguous())
            return torch.cat(parts)

        if isinstance(batch, Tensor):
            return whole(batch)
        return cast(Batch, batch.apply(whole, batch_size=[world * len(batch), *batch.shape[1:]]))

    def mean(self, value: Tensor) -> Tensor:
        """Mean over ranks, in place, so that all of them decide alike."""
        if self.fabric.world_size > 1:  # Fabric's own waits for all ranks once more before it adds
            dist.all_reduce(value)
            value.div_(self.fabric.world_size)
        return value

    def __call__(
        self, losses: Callable[[], Losses], optimizer: Optimizer, max_grad_norm: float = 0.0, stacked: bool = False
    ) -> dict[str, Tensor]:
        """Take one step on `losses()["loss"]`, computed under this run's precision; returns all that it gave, detached.

        Args:
            losses: computes a mapping with `loss` and whatever else is to be logged.
            optimizer: of the parameters to move; one that does not heed `found_inf` makes every step a look.
            max_grad_norm: clip the norm of the gradient to this; 0 leaves it.
            stacked: the first dimension of every parameter counts copies; clip each copy by its own norm.

        Raises:
            DivergedError: see `check`.
        """
        with self.fabric.autocast():
            values = losses()
        optimizer.zero_grad(set_to_none=True)
        self.fabric.backward(values["loss"])
        moved = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        gradients = [p.grad for p in moved]
        if self.fabric.world_size > 1:
            gradients = self._averaged(moved, gradients, stacked)
        norms = _norms(gradients, stacked)
        self._guard(values["loss"].detach(), norms, optimizer)
        if max_grad_norm > 0:
            _clip(gradients, norms, max_grad_norm)
        optimizer.step()
        self.count += 1
        if len(self._seen) >= BLOCK:
            self.check()
        return {name: value.detach() for name, value in values.items()}

    def on(
        self,
        loss: Callable[[Batch], Losses],
        batch: Batch,
        optimizer: Optimizer,
        max_grad_norm: float = 0.0,
        stacked: bool = False,
        sizes_vary: bool = False,
    ) -> dict[str, Tensor]:
        """A step on `loss(batch)`, compiled where that is wanted: see `Compiler`, and `__call__` for the rest."""
        with self.fabric.autocast():
            loss = self.compiler(loss, batch, sizes_vary)
        return self(partial(loss, batch), optimizer, max_grad_norm, stacked)

    def _guard(self, loss: Tensor, norms: Tensor, optimizer: Optimizer) -> None:
        self._seen.append((self.count, loss, norms))
        total = loss + norms.sum()
        self._sum.add_(total - total)  # 0, and from the first fault on not a number
        torch.ne(self._sum, self._sum, out=self._faulty)
        if getattr(optimizer, "_step_supports_amp_scaling", False):  # what a fused one, or another that heeds it, has
            optimizer.found_inf = self._faulty  # type: ignore[attr-defined]
        else:
            self.check()

    def check(self) -> None:
        """Look whether all steps since the last look were finite.

        Raises:
            DivergedError: a loss or a gradient was not; parameters are as before that step.
        """
        seen, self._seen = self._seen, []
        if not seen or not float(self.mean(self._faulty)):
            return
        self._sum.zero_()
        faulty = (step for step in seen if not bool(torch.isfinite(step[1] + step[2].sum())))
        count, loss, norms = next(faulty, seen[-1])  # where it was another rank's, no step here was faulty
        raise DivergedError(
            f"loss {float(loss)} or gradient norm {norms.tolist()} is not finite at gradient step {count}", REMEDY
        )

    def numbers(self, found: Mapping[str, Tensor]) -> dict[str, float]:
        """What a step gave, as numbers; see `check`."""
        return self.means([found])

    def means(self, found: Sequence[Mapping[str, Tensor]]) -> dict[str, float]:
        """Means over what steps gave, as numbers: one transfer for all of them, after `check`, which raises DivergedError."""
        self.check()
        if not found or not found[0]:
            return {}
        rows = torch.stack([torch.stack([value.double() for value in row.values()]) for row in found]).tolist()
        return {name: sum(row[column] for row in rows) / len(rows) for column, name in enumerate(found[0])}

    def fit(
        self,
        training_step: Callable[[Batch], Losses],
        draw: Callable[[], Batch],
        optimizer: Optimizer,
        steps: int,
        max_grad_norm: float = 0.0,
    ) -> dict[str, float]:
        """`steps` steps, each on this rank's share of the global batch that `draw` gives; returns the means of the losses."""
        batches = (self.share(draw()) for _ in range(steps))
        found = [self.on(training_step, batch, optimizer, max_grad_norm, sizes_vary=True) for batch in batches]
        return self.means(found)

    def _averaged(self, moved: list[Tensor], gradients: list[Tensor], stacked: bool) -> list[Tensor]:
        """Gradients averaged over ranks, as parts of one vector; the vector itself where it is clipped as a whole."""
        flat = self.mean(torch.cat([gradient.flatten() for gradient in gradients]))
        for parameter, part in zip(moved, flat.split([p.numel() for p in moved]), strict=True):
            parameter.grad = part.view_as(parameter)
        return [p.grad for p in moved if p.grad is not None] if stacked else [flat]


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
        torch._foreach_mul_(gradients, factors[0])
        return
    for gradient in gradients:
        gradient.mul_(factors.view(-1, *[1] * (gradient.ndim - 1)))
