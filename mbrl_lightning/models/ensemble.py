"""K deterministic models, each with a split of the data of its own (MB-MPO section 4.1, ME-TRPO; Kurutach et al. 2018)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mbrl_lightning.config.schema import DynamicsConfig
from mbrl_lightning.data.windows import in_blocks, steps_at
from mbrl_lightning.envs.spec import EnvSpec
from mbrl_lightning.models.base import Dynamics

HELD_OUT = 0.2  # share of the transitions that each member is checked on


class StackedWeightNorm(nn.Module):
    """Weights `[C, inputs, outputs]` as a direction and a length for each output (Salimans & Kingma 2016)."""

    def forward(self, length: Tensor, direction: Tensor) -> Tensor:
        """`[C, 1, outputs]`, `[C, inputs, outputs] -> [C, inputs, outputs]`."""
        return direction * (length / direction.norm(dim=1, keepdim=True).clamp_min(1e-12))

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """What `forward` makes `weight` of."""
        return weight.norm(dim=1, keepdim=True), weight


class EnsembleDynamics(Dynamics):
    """K = `cfg.members` context-free networks that predict the standardised target, fitted by mean squared error."""

    def __init__(self, spec: EnvSpec, cfg: DynamicsConfig) -> None:
        super().__init__(spec, cfg)
        self.log_scale.requires_grad_(False)  # the models are deterministic
        if cfg.weight_norm:
            for layer in self.decoder.affine:
                parametrize.register_parametrization(layer, "weight", StackedWeightNorm())

    def evaluate(self, blocks: Tensor, members: slice, belief: TensorDictBase | None) -> Tensor:
        """As in `Dynamics`; a single task needs no copies around the product."""
        if len(blocks) > 1:
            return super().evaluate(blocks, members, belief)
        return self.decoder(blocks[0], members).unsqueeze(0)

    def errors(self, batch: TensorDictBase) -> Tensor:
        """Squared errors `[K, N, Y]` of each member on its own rows: standardised `inputs` `[N, K, X]`, `target` `[N, K, Y]`."""
        return (self.decoder(batch["inputs"].transpose(0, 1)) - batch["target"].transpose(0, 1)).square()

    def training_step(self, batch: TensorDictBase, batch_idx: int = 0) -> dict[str, Tensor]:
        """Mean squared error, summed over members (their parameters are apart): `loss`, and detached `loss_error`, the mean."""
        errors = self.errors(batch).mean((1, 2))
        return {"loss": errors.sum(), "loss_error": errors.detach().mean()}

    @torch.no_grad()
    def frozen(self) -> EnsembleDynamics:
        """A copy to imagine with: no gradients, and normalised weights worked out once."""
        with torch.random.fork_rng(devices=[]):  # a new network draws weights, which nobody is to notice
            twin = EnsembleDynamics(self.spec, replace(self.cfg, weight_norm=False)).requires_grad_(False)
        twin.to(self.low.device)
        values = self.state_dict()
        values |= {f"decoder.{2 * index}.weight": layer.weight for index, layer in enumerate(self.decoder.affine)}
        twin.load_state_dict({name: values[name] for name in twin.state_dict()})
        return twin


class MemberData:
    """Standardised transitions `[N]`, and a random split into rows to learn from and rows to check on for each of K members."""

    def __init__(self, dynamics: EnsembleDynamics, transitions: TensorDictBase, generator: torch.Generator) -> None:
        self.dynamics, self.transitions, self.generator = dynamics, transitions, generator
        members, rows = dynamics.members, len(transitions)
        order = torch.stack([torch.randperm(rows, generator=generator) for _ in range(members)], 1)
        checked = min(max(round(HELD_OUT * len(order)), 1), len(order) - 1) if len(order) > 1 else 0
        self.held_out, self.learned = order[:checked], order[checked:]  # [V, K], [N - V, K]

    def batches(self, steps: int, count: int) -> Iterator[TensorDict]:
        """`steps` batches `[count]` for `EnsembleDynamics.errors`: rows drawn with replacement for each member out of its own."""
        for some in in_blocks(steps):
            pick = torch.randint(len(self.learned), (some * count, self.learned.shape[1]), generator=self.generator)
            yield from self.at(self.learned.gather(0, pick)).split(count)

    def at(self, rows: Tensor) -> TensorDict:
        """Batch `[N]` of the given rows `[N, K]`."""
        part, dynamics = steps_at(self.transitions, rows), self.dynamics
        inputs = dynamics.inputs(part["observation"], part["action"])
        return TensorDict({"inputs": inputs, "target": dynamics.targets(part)}, batch_size=[len(rows)])
