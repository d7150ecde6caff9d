"""Models that learn to adapt to the last M transitions, so as to predict the next K (L2A; Nagabandi et al., ICLR 2019).

    theta' = theta - alpha grad L(past; theta), min_theta L(future; theta')        GradientDynamics (GrBAL)
    h = GRU(past), min L(future; theta, h)                                        StateDynamics (ReBAL)
L is the mean squared error of the standardised target. A belief is adapted weights or a recurrent state; an empty one is
theta itself or the state of one who has seen nothing, and so is the belief after a past that is masked altogether.
"""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from mbrl_lightning.beliefs.factored import FactoredAdaptation, evaluate_changed, written
from mbrl_lightning.config.methods import L2AConfig
from mbrl_lightning.config.schema import DynamicsConfig
from mbrl_lightning.envs.spec import EnvSpec
from mbrl_lightning.models.base import Dynamics
from mbrl_lightning.networks import StackedGRU


class AdaptiveDynamics(Dynamics):
    """Deterministic next observations under a belief made of the last M transitions; E members, each with its own belief.

    Args:
        spec: features and targets.
        cfg: sizes and optimiser.
        code_dim: width of what `evaluate` joins to the decoder's input.
    """

    idle = False

    def __init__(self, spec: EnvSpec, cfg: DynamicsConfig, code_dim: int = 0) -> None:
        super().__init__(spec, cfg, code_dim)
        self.log_scale.requires_grad_(False)

    def believe(self, inputs: Tensor, target: Tensor, mask: Tensor) -> TensorDict:
        """Belief `[B]` after standardised transitions, the newest last.

        Args:
            inputs: `[B, M, X]`.
            target: `[B, M, Y]`.
            mask: true where there is a transition, `[B, M]`.
        """
        raise NotImplementedError

    def infer(self, context: TensorDictBase) -> TensorDict:
        """Belief `[B]` after consecutive transitions `[B, M]`, the newest last; `mask` `[B, M]` says which there are."""
        mask = context.get("mask", None)
        inputs = self.inputs(context["observation"], context["action"])
        present = torch.ones(inputs.shape[:2], dtype=torch.bool, device=inputs.device) if mask is None else mask
        return self.believe(inputs, self.targets(context), present)

    def settle(self, belief: TensorDict) -> TensorDict:
        """The same belief in the form that is cheapest to ask many times, as a planner does."""
        return belief

    def inner_sizes(self) -> dict[str, float]:
        """Inner step sizes by layer, if there are any; for the log."""
        return {}

    def code(self, x: Tensor, belief: TensorDict, noise: Tensor | None = None) -> Tensor:
        """Nothing, `[M, N, 0]`: the belief changes the network itself, or joins in `evaluate`."""
        return x.new_zeros(*x.shape[:2], 0)

    def errors(self, part: TensorDictBase, belief: TensorDictBase) -> Tensor:
        """Squared errors of standardised targets, mean over outputs, of each member: `[B, E, N]`, 0 where masked.

        Args:
            part: batch `[B]` with `inputs` `[B, N, X]`, `target` `[B, N, Y]` and `mask` `[B, N]`.
            belief: batch `[B]`.
        """
        blocks = part["inputs"].unsqueeze(1).expand(-1, self.decoder.copies, -1, -1)
        out = self.evaluate(blocks, slice(None), belief)
        return (out - part["target"].unsqueeze(1)).square().mean(-1) * part["mask"].unsqueeze(1)

    def training_step(self, batch: TensorDictBase, batch_idx: int = 0) -> dict[str, Tensor]:
        """Error on the future after adapting to the past, summed over members (their parameters are apart).

        Args:
            batch: segments `[B]` (see `Segments.at`).
            batch_idx: unused; Lightning passes it.

        Returns:
            `loss`, and detached `loss_after`, its mean over members.
        """
        past, future = batch["past"], batch["future"]
        belief = self.believe(past["inputs"], past["target"], past["mask"])
        # over all places, masked ones too, so that the mean over ranks is that of one process
        errors = self.errors(future, belief).sum((0, 2)) / future["mask"].numel()
        return {"loss": errors.sum(), "loss_after": errors.detach().mean()}


class GradientDynamics(AdaptiveDynamics):
    """GrBAL: the belief is what inner steps on the past add to all weights of the decoder, or make of gains of its inputs.

    The inner loss is a sum over the transitions there are, divided by M: with fewer of them the step is shorter, with none
    there is no step.

    Args:
        spec: features and targets.
        cfg: sizes and optimiser.
        l2a: inner step.
    """

    def __init__(self, spec: EnvSpec, cfg: DynamicsConfig, l2a: L2AConfig) -> None:
        super().__init__(spec, cfg)
        steps = l2a.inner_steps if l2a.adaptation == "gradient" else 0
        layers = len(self.decoder.sizes) - 1
        learned = l2a.learned and steps > 0
        self.inner = FactoredAdaptation(layers, l2a.inner_lr, steps, learned, adapts=l2a.adapts)
        self.idle, self.size_lr = self.inner.idle, l2a.size_lr

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam; step sizes, whose scale is another, learn at a rate of their own."""
        sizes = list(self.inner.parameters())
        if not sizes:
            return super().configure_optimizers()
        rest = [p for name, p in self.named_parameters() if p.requires_grad and not name.startswith("inner.")]
        groups: list[dict[str, Any]] = [{"params": rest}, {"params": sizes, "lr": self.size_lr, "weight_decay": 0.0}]
        return torch.optim.Adam(groups, lr=self.cfg.lr, weight_decay=self.cfg.weight_decay, fused=True)

    def inner_sizes(self) -> dict[str, float]:
        """Step sizes of weights, biases and gains."""
        inner, found = self.inner, dict[str, float]()
        if self.idle:
            return found
        if inner.gain_size is not None:
            found["inner_gain"] = inner.gain_size.item()
        if inner.sizes is not None:
            names = [f"inner_{kind}_{layer}" for layer in range(inner.layers) for kind in ("weight", "bias")]
            found |= dict(zip(names, inner.sizes.detach().flatten().tolist(), strict=True))
        return found

    def believe(self, inputs: Tensor, target: Tensor, mask: Tensor) -> TensorDict:
        """See AdaptiveDynamics.believe: `change`, see FactoredAdaptation; empty if nothing adapts."""
        batch = inputs.shape[:1]
        if self.idle or not inputs.shape[1]:
            return TensorDict({}, batch_size=batch)
        change = self.inner(self.decoder, inputs, target, mask / inputs.shape[1])
        return TensorDict({"change": change}, batch_size=batch)

    def settle(self, belief: TensorDict) -> TensorDict:
        """See AdaptiveDynamics.settle: adapted weights are written down."""
        change = {name: written(self.decoder, change) for name, change in belief.items()}
        return TensorDict(change, batch_size=belief.batch_size)

    def evaluate(self, blocks: Tensor, members: slice, belief: TensorDictBase | None) -> Tensor:
        """See Dynamics.evaluate; with a belief each task has weights of its own."""
        change = None if belief is None else belief.get("change", None)
        if change is None:
            return super().evaluate(blocks, members, belief)
        return evaluate_changed(self.decoder, blocks, change, members)


class StateDynamics(AdaptiveDynamics):
    """ReBAL: the belief is the state of a recurrent unit that has read the past; it joins the decoder's input.

    Args:
        spec: features and targets.
        cfg: sizes and optimiser.
        l2a: width of the state.
    """

    def __init__(self, spec: EnvSpec, cfg: DynamicsConfig, l2a: L2AConfig) -> None:
        super().__init__(spec, cfg, code_dim=l2a.hidden)
        pair = spec.feature_dim + spec.action_feature_dim + spec.target_dim
        self.gru = StackedGRU(cfg.members, pair, l2a.hidden)

    def believe(self, inputs: Tensor, target: Tensor, mask: Tensor) -> TensorDict:
        """See AdaptiveDynamics.believe: `state` `[B, E, H]`."""
        pairs = torch.cat([inputs, target], -1).unsqueeze(0)
        return TensorDict({"state": self.gru(pairs, mask).transpose(0, 1)}, batch_size=inputs.shape[:1])

    def evaluate(self, blocks: Tensor, members: slice, belief: TensorDictBase | None) -> Tensor:
        """See Dynamics.evaluate; the state is the same for all rows of a block."""
        state = None if belief is None else belief.get("state", None)
        if state is None:
            state = blocks.new_zeros(len(blocks), self.decoder.copies, self.code_dim)
        state = state[:, members].unsqueeze(2).expand(-1, -1, blocks.shape[2], -1)
        return super().evaluate(torch.cat([blocks, state], -1), members, belief)


def make_adaptive(spec: EnvSpec, cfg: DynamicsConfig, l2a: L2AConfig) -> AdaptiveDynamics:
    """The model that `l2a.adaptation` names."""
    return (StateDynamics if l2a.adaptation == "recurrent" else GradientDynamics)(spec, cfg, l2a)
