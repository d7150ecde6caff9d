"""Belief-conditioned policies pi(a | s, z) and values V(s, z) (GSSM Table 8, section 4.3)."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from mbrl_lightning.config.schema import PolicyConfig
from mbrl_lightning.envs.spec import EnvSpec
from mbrl_lightning.networks import Normalizer, StackedMLP, StackedRBF


class Policy(nn.Module):
    """C policies of equal size, one for each restart of a search or for each fine-tuned task.

    Args:
        spec: features and actions.
        cfg: `mlp` or `rbf`, sizes, initial deviation.
        latent_dim: Z; 0 is the unconditioned policy.
        copies: C.
        squash: tanh on the mean action (back-propagation through rollouts needs a smooth bound; PPO clips instead).
    """

    def __init__(
        self, spec: EnvSpec, cfg: PolicyConfig, latent_dim: int, copies: int = 1, squash: bool = False
    ) -> None:
        super().__init__()
        self.spec, self.latent_dim, self.copies, self.gain = spec, latent_dim, copies, cfg.latent_gain
        self.squash = squash and not spec.discrete
        self.norm = Normalizer(spec.feature_dim)
        inputs = spec.feature_dim + latent_dim
        self.net: StackedMLP | StackedRBF
        if cfg.kind == "rbf":
            self.net = StackedRBF(copies, inputs, cfg.hidden[0], spec.action_dim)
        else:
            self.net = StackedMLP(copies, [inputs, *cfg.hidden, spec.action_dim], cfg.activation)
            if not squash:
                self.net.scale_output(0.1)
        self.log_std = nn.Parameter(torch.full((copies, 1, spec.action_dim), float(cfg.initial_std)).log())

    def repeated(self, copies: int) -> Policy:
        """C = `copies` policies that are all like the first."""
        twin = copy.deepcopy(self)
        twin.copies = copies
        for module in (twin, *twin.net.modules()):
            for name, value in list(module.named_parameters(recurse=False)):
                repeated = value.detach()[:1].expand(copies, *value.shape[1:]).clone()
                setattr(module, name, nn.Parameter(repeated, requires_grad=value.requires_grad))
        return twin

    @property
    def first(self) -> slice:
        """The copy that is deployed, as a slice (of everything, which is cheapest, where there is but one)."""
        return slice(None) if self.copies == 1 else slice(0, 1)

    def inputs(self, observation: Tensor, latent: Tensor) -> Tensor:
        """Standardised features and the latent, `[..., F + Z]`; the latent is cut off for an unconditioned policy."""
        return torch.cat([self.norm(self.spec.features(observation)), self.gain * latent[..., : self.latent_dim]], -1)

    def head(self, inputs: Tensor, copies: slice = slice(None)) -> Tensor:
        """Mean actions (or logits) `[C, N, A]` for inputs `[C, N, F + Z]`."""
        out = self.net(inputs, copies)
        return torch.tanh(out) if self.squash else out

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation `[..., A]` of the first copy, for inputs `[..., F + Z]` (what TorchRL's losses call)."""
        loc = self.head(inputs.reshape(1, -1, inputs.shape[-1]), self.first).view(*inputs.shape[:-1], -1)
        return loc, self.scale()[0, 0].expand_as(loc)

    def scale(self, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
        """Deviations of the actions `[C, 1, A]`: of policies with parameters of their own, or of the first copy."""
        return (parameters or {}).get("log_std", self.log_std[:1]).clamp(-5.0, 1.0).exp()

    def adaptable(self) -> dict[str, Tensor]:
        """What a task's own policy may differ in, by the names it has under `policy` of a belief; C copies in front."""
        own: dict[str, Tensor] = dict(self.net.named_parameters())
        return own if self.spec.discrete else own | {"log_std": self.log_std}

    def distribution(self, inputs: Tensor, parameters: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Means (or logits) and deviations of M policies with parameters of their own.

        Args:
            inputs: `[M, N, F + Z]`.
            parameters: as `adaptable` names them, `[M, ...]`; those that are left out are the first copy's.

        Returns:
            `[M, N, A]`, and `[M, 1, A]` or `[1, 1, A]`.
        """
        net = {name: value for name, value in parameters.items() if name != "log_std"}
        loc = self.net.evaluate(inputs, net)
        return (torch.tanh(loc) if self.squash else loc), self.scale(parameters)

    def choose(self, loc: Tensor, noise: Tensor | None = None, scale: Tensor | None = None) -> Tensor:
        """Actions from means (or logits) `[..., A]`: the best one, or sampled with `noise` `[..., A]`.

        Args:
            loc: means, or logits of a discrete action.
            noise: standard normal (continuous) or uniform in (0, 1) (discrete, by the Gumbel trick); None is greedy.
            scale: deviations, broadcastable to `loc`; None takes the first copy's.
        """
        if self.spec.discrete:
            scores = loc if noise is None else loc - torch.log(-torch.log(noise.clamp(1e-9, 1 - 1e-7)))
            return nn.functional.one_hot(scores.argmax(-1), self.spec.action_dim).float()
        if noise is None:
            return loc
        return loc + (self.scale()[0, 0] if scale is None else scale) * noise

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Noise for `choose`, `[*shape, A]`."""
        draw = torch.rand if self.spec.discrete else torch.randn
        return draw(*shape, self.spec.action_dim, generator=generator, device=generator.device)

    def act(self, observation: Tensor, belief: TensorDict, noise: Tensor | None = None) -> Tensor:
        """Actions `[M, A]` in M tasks, one row each: the belief's own policy where it carries one, else the first copy.

        Args:
            observation: `[M, S]`.
            belief: batch `[M]` with `latent` `[M, Z]`; `policy` (parameters `[M, ...]`, see `adaptable`) if fine-tuned.
            noise: see `choose`.
        """
        loc, scale = self.outputs(self.inputs(observation, belief["latent"]), belief)
        return self.choose(loc, noise, scale)

    def outputs(self, inputs: Tensor, belief: TensorDict) -> tuple[Tensor, Tensor]:
        """Means (or logits) `[M, A]` and deviations of the same policies for inputs `[M, F + Z]`, one row a task."""
        if "policy" not in belief.keys():  # noqa: SIM118 - a TensorDict has no `in`
            return self(inputs)
        loc, scale = self.distribution(inputs.unsqueeze(1), dict(belief["policy"].items()))
        return loc.squeeze(1), scale.squeeze(1)

    @torch.no_grad()
    def sample(self, observation: Tensor, belief: TensorDict, generator: torch.Generator) -> dict[str, Tensor]:
        """A sampled `action` `[M, A]`, not clipped, and what a trust region has to know of it: `inputs`, `loc`."""
        inputs = self.inputs(observation, belief["latent"])
        loc, scale = self.outputs(inputs, belief)
        action = self.choose(loc, self.noise((len(inputs),), generator).to(loc.device), scale)
        return {"inputs": inputs, "loc": loc, "action": action}


class Value(nn.Module):
    """State value V(s, z, t) on the same inputs as the policy; predicts in units of the return's spread.

    Args:
        inputs: width F + Z.
        cfg: sizes.
    """

    def __init__(self, inputs: int, cfg: PolicyConfig) -> None:
        super().__init__()
        self.net = StackedMLP(1, [inputs + 1, *cfg.hidden, 1], cfg.activation)

    def forward(self, inputs: Tensor, time: Tensor) -> Tensor:
        """Values `[..., 1]` for inputs `[..., F + Z]` and the share of the horizon that is over, `[..., 1]`."""
        seen = torch.cat([inputs, time], -1)
        return self.net(seen.reshape(1, -1, seen.shape[-1])).view(*seen.shape[:-1], 1)
