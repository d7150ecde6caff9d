"""What methods share that act given a latent drawn from q(z | context), PEARL and PE-PPO: prior, posterior, drawing anew."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from mbrl_lightning.algorithms.base import Algorithm
from mbrl_lightning.beliefs.history import TransitionInputs
from mbrl_lightning.config.schema import Config
from mbrl_lightning.data.collect import Agent
from mbrl_lightning.envs.family import TaskFamily
from mbrl_lightning.networks import any_row


class InferredLatentAlgorithm(Algorithm):
    """The belief is `loc` and `scale` of a Gaussian, and the `latent` drawn from it, which is held for `hold` steps.

    Args:
        family: the task family.
        cfg: the run's configuration.
        make: width of a transition -> the encoder, of transitions `[M, K, D]` into a belief `[M]`.
    """

    def __init__(self, family: TaskFamily, cfg: Config, make: Callable[[int], nn.Module]) -> None:
        super().__init__(family, cfg)
        self.inputs = TransitionInputs(self.spec)
        self.encoder = make(self.inputs.pair_dim)

    def begin(self, tasks: int) -> TensorDict:
        """The prior, and no latent yet: it is drawn when an episode begins."""
        return self.prior(tasks, self.spec.horizon)

    def prior(self, tasks: int, hold: int) -> TensorDict:
        """N(0, I), of which a latent is drawn every `hold` steps."""
        nothing = torch.zeros(tasks, self.cfg.pearl.latent_dim, device=self.device)
        age = torch.zeros(tasks, dtype=torch.long, device=self.device)
        belief = {"loc": nothing, "scale": torch.ones_like(nothing), "latent": nothing.clone()}
        return TensorDict(belief | {"age": age, "hold": torch.full_like(age, hold)}, batch_size=[tasks])

    def explorer(self, tasks: int) -> tuple[Agent, TensorDict]:
        """The policy given z ~ N(0, I), drawn anew every `pearl.hold` steps: what the encoder's training contexts come from."""
        return self, self.prior(tasks, self.cfg.pearl.hold)

    def adapt(self, belief: TensorDict, transitions: TensorDictBase) -> TensorDict:
        """Belief q(z | context) `[M]`, with `latent` its mean; a single step only makes the latent older."""
        belief = belief.clone(False)
        if transitions.ndim == 1:
            return belief.set("age", belief["age"] + 1)
        with torch.no_grad():
            return belief.update(self.encoder(self.pairs(transitions))) if transitions.shape[1] else belief

    def shots(self, full: bool) -> list[int]:
        """See Algorithm.contexts."""
        return self.contexts(full)

    def pairs(self, transitions: TensorDictBase) -> Tensor:
        """Transitions `[...]` as the encoder reads them, `[..., D]`."""
        names = ("observation", "action", ("next", "observation"))
        return self.inputs.pair(*(transitions[name].to(self.device) for name in names))

    def posterior(self, belief: TensorDict) -> TensorDict:
        """`loc` and `scale` `[M, Z]` that a latent which is due is drawn from."""
        return belief

    def held(self, belief: TensorDict, noise: torch.Generator | None) -> TensorDict:
        """The belief with a latent that is due drawn anew; the mean without a generator."""
        due = belief["age"] % belief["hold"] == 0
        if not any_row(due):
            return belief
        known = self.posterior(belief)
        latent = known["loc"]
        if noise is not None:
            latent = latent + known["scale"] * self.noise(noise, *latent.shape)
        return belief.clone(False).set("latent", torch.where(due.unsqueeze(1), latent, belief["latent"]))

    def noise(self, generator: torch.Generator, *shape: int) -> Tensor:
        """Standard normal draws."""
        return torch.randn(*shape, generator=generator).to(self.device)
