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
from mbrl_lightning.models.measures import share_of_variance
from mbrl_lightning.networks import StackedGRU

MOST_CUTS, CUTS_AT_ONCE = 40, 64


class AdaptiveDynamics(Dynamics):
    """Deterministic next observations under a belief made of the last M transitions; E members, each with its own belief.

    The belief changes the network itself, or joins its input, in `evaluate`.
    """

    idle = False

    def __init__(self, spec: EnvSpec, cfg: DynamicsConfig, code_dim: int = 0) -> None:
        super().__init__(spec, cfg, code_dim)
        self.log_scale.requires_grad_(False)

    def believe(self, inputs: Tensor, target: Tensor, mask: Tensor) -> TensorDict:
        """Belief `[B]` after standardised transitions `[B, M, X]`, `[B, M, Y]`, newest last; `mask` `[B, M]`: which there are."""
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

    def columns(self, data: TensorDictBase) -> dict[str, Tensor]:
        """What `Segments` are made of, of transitions `[...]`: standardised `inputs` `[..., X]` and `target` `[..., Y]`."""
        return {"inputs": self.inputs(data["observation"], data["action"]), "target": self.targets(data)}

    def inner_sizes(self) -> dict[str, float]:
        """Inner step sizes by layer, if there are any; for the log."""
        return {}

    def errors(self, part: TensorDictBase, belief: TensorDictBase) -> Tensor:
        """Squared errors of each member, mean over outputs, under the belief `[B]`: `[B, E, N]`, 0 where masked.

        Args:
            part: standardised `inputs` `[B, N, X]`, `target` `[B, N, Y]` and `mask` `[B, N]`.
            belief: batch `[B]`.
        """
        blocks = part["inputs"].unsqueeze(1).expand(-1, self.members, -1, -1)
        out = self.evaluate(blocks, slice(None), belief)
        return (out - part["target"].unsqueeze(1)).square().mean(-1) * part["mask"].unsqueeze(1)

    def training_step(self, batch: TensorDictBase, batch_idx: int = 0) -> dict[str, Tensor]:
        """Error on the future after adapting to the past, in segments `[B]` (see `Segments.at`).

        Returns:
            `loss`, the sum over members (their parameters are apart), and detached `loss_after`, the mean.
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
    """

    def __init__(self, spec: EnvSpec, cfg: DynamicsConfig, l2a: L2AConfig) -> None:
        super().__init__(spec, cfg)
        steps = l2a.inner_steps if l2a.adaptation == "gradient" else 0
        layers, learned = len(self.decoder.affine), l2a.learned and steps > 0
        self.inner = FactoredAdaptation(layers, l2a.inner_lr, steps, learned, l2a.adapts)
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
        if not self.idle and inner.gain_size is not None:
            found["inner_gain"] = inner.gain_size.item()
        if not self.idle and inner.sizes is not None:
            for layer, sizes in enumerate(inner.sizes.tolist()):
                found |= dict(zip((f"inner_weight_{layer}", f"inner_bias_{layer}"), sizes, strict=True))
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
    """ReBAL: the belief is the state of a recurrent unit that has read the past; it joins the decoder's input."""

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
            state = blocks.new_zeros(len(blocks), self.members, self.code_dim)
        state = state[:, members].unsqueeze(2).expand(-1, -1, blocks.shape[2], -1)
        return super().evaluate(torch.cat([blocks, state], -1), members, belief)


def make_adaptive(spec: EnvSpec, cfg: DynamicsConfig, l2a: L2AConfig) -> AdaptiveDynamics:
    """The model that `l2a.adaptation` names."""
    return (StateDynamics if l2a.adaptation == "recurrent" else GradientDynamics)(spec, cfg, l2a)


def adaptation_errors(dynamics: AdaptiveDynamics, episodes: TensorDict, past: int, future: int) -> dict[str, Tensor]:
    """Errors on the next K = `future` transitions before and after adapting to the last M = `past`, along real episodes.

    Of `episodes` `[T, E, H]` of T tasks only cuts with all M steps before and K after them inside the episode count.

    Returns:
        Of `[T]` each, mean over outputs and transitions, NaN where a task has no episode long enough: `nmse_before` and
        `nmse_after`, squared errors of the predicted change over its variance in these episodes, of outputs that vary;
        `loss_before` and `loss_after`, those of the standardised target, over its variance in the data of training: L itself,
        in which an output that moved in training and hardly moves here weighs no more than any other.
    """
    change = dynamics.spec.change(episodes["observation"], episodes["next", "observation"])
    of_change, of_target = output_errors(dynamics, episodes, past, future)
    nmse = share_of_variance(of_change, change[episodes["valid"]].var(0, correction=0))
    loss = of_target.mean(-1)
    return {"nmse_before": nmse[0], "nmse_after": nmse[1], "loss_before": loss[0], "loss_after": loss[1]}


@torch.no_grad()
def output_errors(dynamics: AdaptiveDynamics, episodes: TensorDict, past: int, future: int) -> tuple[Tensor, Tensor]:
    """Squared errors of each output, first before adapting, then after; arguments as for `adaptation_errors`.

    Returns:
        Mean over transitions, NaN where a task has no episode long enough: of the change `[2, T, S]`, in the observation's
        units squared, and of the standardised target `[2, T, Y]`.
    """
    tasks, spec = len(episodes), dynamics.spec
    first = torch.arange(0, max(episodes.shape[-1] - past - future + 1, 0), future)
    first = first[torch.linspace(0, len(first) - 1, min(MOST_CUTS, len(first))).long()]
    rows = episodes.select("observation", "action", ("next", "observation"), "valid").flatten(0, 1)
    owner = torch.arange(tasks, device=rows.device).repeat_interleave(episodes.shape[1])
    count = rows["observation"].new_zeros(tasks)
    of_change = count.new_zeros(2, tasks, spec.observation_dim)
    of_target = count.new_zeros(2, tasks, spec.target_dim)
    for cuts in first.split(max(CUTS_AT_ONCE // len(rows), 1)) if len(first) else ():
        index = cuts.unsqueeze(1) + torch.arange(past + future)
        part, mine = rows[:, index].flatten(0, 1), owner.repeat_interleave(len(cuts))  # [rows x cuts, M + K]
        before, after = part[:, :past], part[:, past:]
        observation, following, whole = after["observation"], after["next", "observation"], after["valid"][:, -1]
        truth, target, used = spec.change(observation, following), dynamics.targets(after), whole.unsqueeze(1)
        count.index_add_(0, mine, whole.to(count))
        beliefs = TensorDict({}, batch_size=before.shape[:1]), dynamics.infer(before)
        for when, belief in enumerate(beliefs):
            predicted = dynamics.predict(observation, after["action"], belief)
            missed = (spec.change(observation, predicted) - truth).square().mean(1)
            guess = dynamics.target_norm(spec.target(observation, predicted))
            of_change[when].index_add_(0, mine, torch.where(used, missed, 0.0))
            of_target[when].index_add_(0, mine, torch.where(used, (guess - target).square().mean(1), 0.0))
    return of_change / count.unsqueeze(1), of_target / count.unsqueeze(1)
