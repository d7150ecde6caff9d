"""What a planner searches in: a model of the next observation and the family's known reward, with TorchRL's face."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Bounded, Categorical, Composite, OneHot, Unbounded
from torchrl.envs import EnvBase

from mbrl_lightning.envs.spec import EnvSpec
from mbrl_lightning.errors import EnvError
from mbrl_lightning.models.base import Dynamics

Advance = Callable[[Tensor, Tensor], Tensor]
"""Observations `[B, R, S]`, actions `[B, R, A]` -> next observations `[B, R, S]`: R rows in each of B environments.

An ensemble of E members takes the R rows in E equal blocks, one a member, as `Dynamics.forward` does.
"""


class ModelEnv(EnvBase):
    """A learned or true model as a stateless TorchRL environment of any batch size.

    Args:
        spec: rewards, terminations, actions.
        advance: the model. It may be exchanged between calls, as where a belief changes with every step.
        members: E, ensemble members that share out the rows.
        device: where the model is.
        tasks: B, how many environments `advance` knows of; None: as many as the first batch dimension says.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> ModelEnv:
        """Of any batch size, which TorchRL wants to know before anything else."""
        return super().__new__(cls, *args, _batch_locked=False, **kwargs)

    def __init__(
        self,
        spec: EnvSpec,
        advance: Advance,
        members: int = 1,
        device: torch.device | None = None,
        tasks: int | None = None,
    ) -> None:
        super().__init__(device=device or torch.device("cpu"), batch_size=torch.Size([]))
        self.family_spec, self.advance, self.members, self.tasks = spec, advance, members, tasks
        self.observation_spec = Composite(observation=Unbounded((spec.observation_dim,), device=self.device))
        self.action_spec = (
            OneHot(spec.action_dim, dtype=torch.float32, device=self.device)
            if spec.discrete
            else Bounded(-1.0, 1.0, shape=(spec.action_dim,), device=self.device)
        )
        self.reward_spec = Unbounded((1,), device=self.device)
        flag = Categorical(2, shape=(1,), dtype=torch.bool, device=self.device)
        self.done_spec = Composite(done=flag, terminated=flag.clone(), truncated=flag.clone())

    @classmethod
    def of(cls, dynamics: Dynamics, belief: TensorDict) -> ModelEnv:
        """The environment that `dynamics` imagines under `belief` `[B]`; all members vote on each candidate."""
        device = next(dynamics.parameters()).device
        belief = belief.to(device)
        return cls(dynamics.spec, lambda o, a: dynamics(o, a, belief), dynamics.decoder.copies, device, len(belief))

    def transit(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One step of R rows in each of B environments.

        Args:
            observation: `[B, R, S]`.
            action: `[B, R, A]` within bounds.

        Returns:
            Next observations `[B, R, S]`, rewards `[B, R]`, and whether the episode ends there, bool `[B, R]`.

        Raises:
            EnvError: the family's reward raised, or has another shape.
        """
        spec, following = self.family_spec, self.advance(observation, action)
        try:
            reward = spec.reward(observation, action, following)
        except Exception as error:
            raise EnvError(
                f"{spec.name}: the reward function raised {type(error).__name__}: {error}",
                f"mend it; it is given observations {tuple(observation.shape)} and actions {tuple(action.shape)}",
            ) from error
        if not isinstance(reward, Tensor) or reward.shape != observation.shape[:-1]:
            shape = tuple(reward.shape) if isinstance(reward, Tensor) else type(reward).__name__
            raise EnvError(
                f"{spec.name}: the reward function gave {shape} for observations {tuple(observation.shape)}",
                f"let it return one number a row, {tuple(observation.shape[:-1])}",
            )
        ended = spec.termination(following)
        if spec.training_termination is not None:
            ended = ended | spec.training_termination(following)
        return following, reward, ended

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: object) -> TensorDictBase:
        if tensordict is None or tensordict.get("observation", None) is None:
            raise EnvError("a model has no initial states of its own", "reset it with a TensorDict of observations")
        still = torch.zeros(*tensordict.batch_size, 1, dtype=torch.bool, device=self.device)
        content = {"observation": tensordict["observation"], "done": still, "terminated": still.clone()}
        return TensorDict(content | {"truncated": still.clone()}, batch_size=tensordict.batch_size)

    @torch.no_grad()
    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        batch = tensordict.batch_size
        first = self.tasks or (batch[0] if batch else 1)
        rows = [tensordict[key].reshape(first, -1, tensordict[key].shape[-1]) for key in ("observation", "action")]
        tiled = (part.repeat(1, self.members, 1) for part in rows)
        outputs = [part.float().unflatten(1, (self.members, -1)).mean(1) for part in self.transit(*tiled)]
        following, reward, ended = (
            outputs[0].view(*batch, -1),
            outputs[1].view(*batch, 1),
            outputs[2].view(*batch, 1) > 0.5,
        )
        content = {"observation": following, "reward": reward, "terminated": ended, "done": ended.clone()}
        return TensorDict(content | {"truncated": torch.zeros_like(ended)}, batch_size=batch)

    def _set_seed(self, seed: int | None) -> None:
        """Nothing is drawn here."""
