"""Inner gradient steps on all weights of a stack of networks, and on gains of its inputs, without writing adapted weights down.

The gradient of a layer's weights [I, O] is a sum over the M rows of a batch, X^T D with inputs X [M, I] and slopes D [M, O] of
the loss at the layer's outputs. So an adapted layer gives x W' = x W - alpha (x X^T) D: for M far below I and O that costs
next to nothing beside x W, which stays one product for all tasks. `GradientAdaptation`, with one weight matrix a task, gives
the same numbers several times slower.

A gain is a factor on one input, 1 before the first step. An input that has stopped to matter is then one number to change, the
same one whichever input it is, where the weights alone would have to learn for each input how it goes out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from mbrl_lightning.networks import StackedLinear, StackedMLP


class FactoredAdaptation(nn.Module):
    """Inner steps on the mean squared error of a `StackedMLP`, for B tasks at once, with a size for each parameter tensor.

    Args:
        layers: number of affine layers.
        size: step size alpha; 0 adapts nothing.
        steps: number of steps on the same rows; 0 adapts nothing.
        learned: the sizes are parameters.
        adapts: `weights` (and biases), `gains` of the inputs, or `all` of them.
    """

    sizes: Tensor | None
    gain_size: Tensor | None

    def __init__(
        self, layers: int, size: float, steps: int = 1, learned: bool = False, adapts: str = "weights"
    ) -> None:
        super().__init__()
        self.layers, self.steps = layers, steps
        of_weights_and_biases = torch.full((layers, 2), float(size)) if adapts != "gains" else None
        of_gains = torch.tensor(float(size)) if adapts != "weights" else None
        for name, value in (("sizes", of_weights_and_biases), ("gain_size", of_gains)):
            if learned or value is None:
                self.register_parameter(name, None if value is None else nn.Parameter(value))
            else:
                self.register_buffer(name, value)
        self.idle = steps == 0 or (size == 0 and not learned)

    def forward(self, net: StackedMLP, inputs: Tensor, target: Tensor, weight: Tensor) -> TensorDict:
        """What the steps on `inputs` `[B, M, X]` and `target` `[B, M, Y]` change, differentiable where gradients are enabled.

        `weight` `[B, M]` is the factor on each row's squared error (the mean over outputs).

        Returns:
            Batch `[B]`; by layer `inputs` `[B, E, R, I]`, `slopes` `[B, E, R, O]` (R = steps x M) and `bias` `[B, E, 1, O]`;
            and `gain` `[B, E, 1, X]`.
        """
        outer, change = torch.is_grad_enabled(), TensorDict({}, batch_size=inputs.shape[:1])
        blocks = inputs.unsqueeze(1).expand(-1, net.copies, -1, -1)
        for step in range(0 if self.idle else self.steps):
            with torch.enable_grad():
                asked: list[Tensor] = []
                if self.gain_size is not None:
                    gain = torch.ones_like(blocks[:, :, :1]) if step == 0 else change["gain"]
                    asked = [gain if gain.requires_grad else gain.requires_grad_()]
                    change["gain"] = gain
                seen, outputs = _layers(net, blocks, change)
                error = (outputs[-1].transpose(0, 1) - target.unsqueeze(1)).square().mean(-1)
                loss = (error * weight.unsqueeze(1)).sum()
                asked = (outputs if self.sizes is not None else []) + asked
                slopes = torch.autograd.grad(loss, asked, create_graph=outer)
            if self.gain_size is not None:
                change["gain"] = change["gain"] - self.gain_size * slopes[-1]
            if self.sizes is not None:
                seen = seen if outer else [x.detach() for x in seen]
                news = _step(self.sizes, seen, slopes[: len(outputs)])
                change.update(news if step == 0 else _joined(change, news))
        return change


def _step(sizes: Tensor, seen: list[Tensor], slopes: Sequence[Tensor]) -> TensorDict:
    step = {}
    for layer, (x, slope) in enumerate(zip(seen, slopes, strict=True)):
        own, slope = x.transpose(0, 1), slope.transpose(0, 1)
        for_weight, for_bias = sizes[layer].unbind()
        parts = {"inputs": own, "slopes": -for_weight * slope, "bias": -for_bias * slope.sum(2, keepdim=True)}
        step[str(layer)] = TensorDict(parts, batch_size=own.shape[:1])
    return TensorDict(step, batch_size=own.shape[:1])


def evaluate_changed(net: StackedMLP, blocks: Tensor, change: TensorDictBase, members: slice = slice(None)) -> Tensor:
    """The networks after their inner steps: `[B, E, N, X] -> [B, E, N, Y]`; `members` says which of them the blocks are for."""
    return _layers(net, blocks, change, members)[1][-1].transpose(0, 1)


def written(net: StackedMLP, change: TensorDict) -> TensorDict:
    """The same change with adapted weights and biases written down: cheaper for whoever asks the same networks many times.

    Returns:
        Batch `[B]`; by layer `weight` `[B, E, I, O]` and `bias` `[B, E, 1, O]`; `gain` as it was.
    """
    layers = {}
    for number, layer in enumerate(net.affine if "0" in change.keys() else []):  # noqa: SIM118 - a TensorDict has no `in`
        past, slopes, bias = (change[str(number), key].transpose(0, 1) for key in ("inputs", "slopes", "bias"))
        parts = {"weight": layer.weight.unsqueeze(1) + past.mT @ slopes, "bias": layer.bias.unsqueeze(1) + bias}
        parts = {key: value.transpose(0, 1) for key, value in parts.items()}  # in memory members come first
        layers[str(number)] = TensorDict(parts, batch_size=change.batch_size)
    kept = {key: value for key, value in change.items() if isinstance(value, Tensor)}
    return TensorDict(kept | layers, batch_size=change.batch_size)


def _joined(change: TensorDict, news: TensorDict) -> TensorDict:
    rows = {}
    for layer, new in news.items():
        old = change[layer]
        parts = {key: torch.cat([old[key], new[key]], 2) for key in ("inputs", "slopes")}
        rows[layer] = TensorDict(parts | {"bias": old["bias"] + new["bias"]}, batch_size=news.batch_size)
    return TensorDict(rows, batch_size=news.batch_size)


def _layers(
    net: StackedMLP, blocks: Tensor, change: TensorDictBase, members: slice = slice(None)
) -> tuple[list[Tensor], list[Tensor]]:
    """What goes into every affine layer and comes out of it, `[E, B, N, I]` and `[E, B, N, O]`."""
    gain = change.get("gain", None)
    x = (blocks if gain is None else blocks * gain[:, members]).transpose(0, 1)
    seen: list[Tensor] = []
    outputs: list[Tensor] = []
    for number, layer in enumerate(net.affine):
        seen.append(net.activation(outputs[-1]) if number else x)
        outputs.append(_layer(layer, seen[-1], change.get(str(number), None), members))
    return seen, outputs


def _layer(layer: StackedLinear, x: Tensor, change: TensorDictBase | None, members: slice) -> Tensor:
    copies, tasks, rows, width = x.shape
    if change is None:
        return layer(x.reshape(copies, tasks * rows, width), members).view(copies, tasks, rows, -1)
    if "weight" in change.keys():  # noqa: SIM118 - a TensorDict has no `in`
        weight, bias = (change[key][:, members].transpose(0, 1).flatten(0, 1) for key in ("weight", "bias"))
        return torch.baddbmm(bias, x.reshape(copies * tasks, rows, width), weight).view(copies, tasks, rows, -1)
    past, slopes, bias = (change[key][:, members].transpose(0, 1).flatten(0, 1) for key in ("inputs", "slopes", "bias"))
    out = layer(x.reshape(copies, tasks * rows, width), members).view(copies * tasks, rows, -1)
    likeness = torch.bmm(x.reshape(copies * tasks, rows, width), past.mT)
    return torch.baddbmm(out + bias, likeness, slopes).view(copies, tasks, rows, -1)
