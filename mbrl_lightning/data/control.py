"""From what is chosen to what the motors are given: a command is kept for a while, and joint feedback makes actions of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from tensordict import TensorDict
from torch import Tensor

from mbrl_lightning.envs.spec import EnvSpec
from mbrl_lightning.errors import ConfigError
from mbrl_lightning.networks import any_row

Choose = Callable[[TensorDict], tuple[Tensor, TensorDict]]
"""The belief `[B]` -> what is chosen `[B, A]`, and the belief after the choice."""


class Control:
    """A choice u is a command, kept for `hold` steps; the action is clip(u - kp q - kd q', -1, 1), anew at every step.

    q and q' are angle and velocity of the joint that each actuator turns, as the observation has them. With no gains and a
    hold of 1, choices are actions and a belief is left as it is; otherwise it carries the command as `held` and its `age`, and
    with feedback as `command` too, which is kept beside the action that was made of it (see `collect_parts`).

    Args:
        spec: joints and horizon.
        feedback: (kp, kd), in units of the largest action a radian and a radian a second; empty: none.
        hold: steps for which a command is kept.

    Raises:
        ConfigError: the spec names no joints, or a command would outlast the episode.
    """

    def __init__(self, spec: EnvSpec, feedback: Sequence[float] = (), hold: int = 1) -> None:
        if feedback and not spec.joints:
            raise ConfigError(
                f"{spec.name}: policy.feedback={list(feedback)}, but the family names no joint of its actuators",
                "set policy.feedback=[], or give the spec's `joints`",
            )
        if hold > spec.horizon:
            raise ConfigError(
                f"{spec.name}: policy.hold={hold} is longer than the episode of {spec.horizon} steps",
                f"choose policy.hold of at most {spec.horizon}",
            )
        self.spec, self.feedback, self.hold = spec, tuple(feedback), hold
        self.angles, self.velocities = ([joint[i] for joint in spec.joints] for i in (0, 1))
        self.direct = hold == 1 and not feedback

    def begin(self, belief: TensorDict) -> TensorDict:
        """The belief `[M]` of an episode to come: no command yet."""
        if self.direct:
            return belief
        held = torch.zeros(len(belief), self.spec.action_dim, device=belief.device)
        return belief.update({"held": held, "age": torch.zeros_like(held[:, 0], dtype=torch.long)})

    def act(self, choose: Choose, belief: TensorDict, observation: Tensor) -> tuple[Tensor, TensorDict]:
        """Actions `[B, A]` for observations `[B, S]`, and the belief after them; asks only where a command is due."""
        if self.direct:
            return choose(belief)
        due, command = belief["age"] % self.hold == 0, belief["held"]
        if any_row(due):
            chosen, belief = choose(belief)
            command = torch.where(due.unsqueeze(1), chosen.to(command.device), command)
        belief = belief.clone(False).update({"held": command, "age": belief["age"] + 1})
        if self.feedback:
            belief["command"] = command
        return self.action(observation, command.to(observation.device)), belief

    def action(self, observation: Tensor, command: Tensor) -> Tensor:
        """Actions `[..., A]` of commands `[..., A]` in observations `[..., S]`."""
        if not self.feedback:
            return command
        (kp, kd), q, v = self.feedback, observation[..., self.angles], observation[..., self.velocities]
        return (command - kp * q - kd * v).clamp(-1, 1)
