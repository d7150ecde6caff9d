"""A batched TorchRL environment over a Simulator: for TorchRL's collectors, transforms and losses."""

from __future__ import annotations

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Bounded, Categorical, Composite, OneHot, Unbounded
from torchrl.envs import EnvBase

from mbrl_lightning.envs.family import TaskFamily


class TaskEnv(EnvBase):
    """B tasks of one family as an ``EnvBase`` with batch [B].

    Keys: "observation" [B, S] float32, "action" [B, A] float32 (one-hot for discrete families), ("next",
        "reward")
    [B, 1], "terminated", "truncated" and "done" [B, 1] bool. Truncated at the family's horizon;
    ``training_termination`` is not applied. Rows of a partial reset ("_reset") start anew, the others go on.

    Args:
        family: the task family.
        tasks: [B, P].
        seed: seed of the initial states.

    Raises:
        ConfigError: ``tasks`` does not fit the family.
    """

    batch_locked = True

    def __init__(self, family: TaskFamily, tasks: Tensor, seed: int = 0) -> None:
        super().__init__(device="cpu", batch_size=torch.Size([len(tasks)]))
        self._spec, self._simulator = family.spec, family.simulate(tasks)
        self._generator = torch.Generator().manual_seed(seed)
        batch, spec = len(tasks), family.spec
        self.observation_spec = Composite(observation=Unbounded((batch, spec.observation_dim)), shape=(batch,))
        if spec.discrete:
            self.action_spec = OneHot(spec.action_dim, shape=(batch, spec.action_dim), dtype=torch.float32)
        else:
            self.action_spec = Bounded(-1.0, 1.0, shape=(batch, spec.action_dim))
        self.reward_spec = Unbounded((batch, 1))
        flag = Categorical(2, shape=(batch, 1), dtype=torch.bool)
        self.done_spec = Composite(done=flag, terminated=flag.clone(), truncated=flag.clone(), shape=(batch,))
        self._observation = torch.zeros(batch, spec.observation_dim)
        self._steps = torch.zeros(batch, dtype=torch.long)

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: object) -> TensorDictBase:
        mask = None
        if tensordict is not None and "_reset" in tensordict:
            mask = tensordict["_reset"].reshape(self.batch_size)
        self._observation = self._simulator.reset(self._generator, mask)
        self._steps = torch.zeros_like(self._steps) if mask is None else self._steps.masked_fill(mask, 0)
        return self._output(torch.zeros(self.batch_size, dtype=torch.bool), torch.zeros_like(self._steps).bool())

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        action = tensordict["action"].clamp(-1, 1)
        before, self._observation = self._observation, self._simulator.step(action)
        self._steps = self._steps + 1
        output = self._output(self._spec.termination(self._observation), self._steps >= self._spec.horizon)
        output["reward"] = self._spec.reward(before, action, self._observation).unsqueeze(-1)
        return output

    def _output(self, terminated: Tensor, truncated: Tensor) -> TensorDict:
        flags = {"terminated": terminated, "truncated": truncated, "done": terminated | truncated}
        content = {"observation": self._observation} | {key: flag.unsqueeze(-1) for key, flag in flags.items()}
        return TensorDict(content, batch_size=self.batch_size)

    def _set_seed(self, seed: int | None) -> None:
        self._generator.manual_seed(0 if seed is None else seed)

    def close(self, **kwargs: object) -> None:
        """Close the simulator."""
        self._simulator.close()
        super().close(**kwargs)
