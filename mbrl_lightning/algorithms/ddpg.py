"""DDPG (Lillicrap et al., ICLR 2016) on the real families: a model-free rival of MB-MPO (Clavera et al. 2018, Fig. 1).

TorchRL's `DDPGLoss` with target networks for both, Gaussian exploration noise of a fixed size, random actions first. A policy
for randomly drawn tasks; nothing adapts. Settings that all off-policy methods share are under `sac`.
"""

from __future__ import annotations

from functools import partial

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.objectives import DDPGLoss, SoftUpdate, ValueEstimators

from mbrl_lightning.algorithms.base import Algorithm
from mbrl_lightning.config.schema import Config
from mbrl_lightning.data.buffer import COLUMNS
from mbrl_lightning.data.control import Control
from mbrl_lightning.data.windows import in_blocks
from mbrl_lightning.data.world import RealWorld
from mbrl_lightning.envs.family import TaskFamily
from mbrl_lightning.errors import ConfigError
from mbrl_lightning.models.imagination import mean_return
from mbrl_lightning.networks import StackedMLP
from mbrl_lightning.networks.step import GradientStep
from mbrl_lightning.policies.heads import Policy


class Critic(nn.Module):
    """Q(s, a), of width F + A = `inputs`."""

    def __init__(self, inputs: int, hidden: list[int], activation: str) -> None:
        super().__init__()
        self.net = StackedMLP(1, [inputs, *hidden, 1], activation)

    def forward(self, inputs: Tensor, action: Tensor) -> Tensor:
        """Values `[N, 1]` for standardised features `[N, F]` and actions `[N, A]`."""
        return self.net(torch.cat([inputs, action], -1).unsqueeze(0)).squeeze(0)


class Actor(nn.Module):
    """The policy's mean action, as TorchRL's loss asks for it."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.net = policy.net

    def forward(self, inputs: Tensor) -> Tensor:
        """Actions `[N, A]` in [-1, 1] for standardised features `[N, F]`."""
        return torch.tanh(self.net(inputs.unsqueeze(0))).squeeze(0)


class DDPG(Algorithm):
    """A deterministic policy and its Q function, off-policy; `policy.initial_std` is the exploration noise."""

    policy: Policy

    def __init__(self, family: TaskFamily, cfg: Config) -> None:
        super().__init__(family, cfg)
        if self.spec.discrete:
            raise ConfigError(
                f"{self.spec.name}: a deterministic policy gradient has no discrete actions",
                "choose a family with continuous actions, or algorithm=dr_ppo",
            )
        self.policy = Policy(self.spec, cfg.policy, 0, squash=True)
        self.policy.log_std.requires_grad_(False)
        critic = Critic(self.spec.feature_dim + self.spec.action_dim, cfg.policy.hidden, cfg.policy.activation)
        self.loss = DDPGLoss(
            TensorDictModule(Actor(self.policy), in_keys=["inputs"], out_keys=["action"]),
            TensorDictModule(critic, in_keys=["inputs", "action"], out_keys=["state_action_value"]),
            loss_function="l2",
            delay_actor=True,
            delay_value=True,
        )
        self.loss.make_value_estimator(ValueEstimators.TD0, gamma=cfg.sac.gamma)
        self.targets = SoftUpdate(self.loss, tau=cfg.sac.tau)
        trained = [p for p in self.loss.parameters() if p.requires_grad]
        self.optimizers = {"ddpg": torch.optim.Adam(trained, lr=cfg.sac.lr, fused=True)}

    def collect(self, world: RealWorld) -> dict[str, float]:
        """Random actions first; `improve` collects the rest."""
        held = Control(self.spec, hold=min(self.cfg.sac.warmup_hold, self.spec.horizon))
        return self.warm_up(world, self.cfg.sac.warmup_steps, held)

    def improve(self, world: RealWorld, step: GradientStep) -> dict[str, float]:
        """Real steps with noisy actions, and `sac.updates_per_step` updates for each of them."""
        cfg, device, parts, metrics = self.cfg, self.device, [], dict[str, Tensor]()
        tasks = self.family.sample(cfg.loop.tasks_per_iteration, self.generator)
        if not int(self.iteration):
            self.policy.norm.fit(self.spec.features(world.real.transitions()["observation"]).to(device))
        steps = cfg.loop.episode_steps or self.spec.horizon
        for part in world.interact(tasks, self, self.begin(len(tasks)), steps, self.generator, cfg.sac.every):
            parts.append(part)
            rows = world.real.transitions().select(*COLUMNS)
            for some in in_blocks(round(cfg.sac.updates_per_step * part.numel())):
                pick = torch.randint(len(rows), (some, cfg.sac.batch), generator=self.generator)
                for batch in self._columns(rows[pick]).unbind(0):
                    losses = partial(self._losses, step.share(batch))
                    metrics = step(losses, self.optimizers["ddpg"], cfg.search.max_grad_norm)
                    self.targets.step()
        out = {f"train/{name}": value for name, value in step.numbers(metrics).items()}
        return out | {"real/return": float(mean_return(torch.cat(parts, 1), self.spec))}

    @torch.no_grad()
    def _columns(self, data: TensorDict) -> TensorDict:
        """Real transitions `[...]` as the loss takes them."""
        device = self.device

        def inputs(observation: Tensor) -> Tensor:
            return self.policy.norm(self.spec.features(observation.to(device)))

        ended = data["next", "terminated"].to(device)
        after = {
            "inputs": inputs(data["next", "observation"]),
            "reward": self.cfg.sac.reward_scale * data["next", "reward"].to(device).float(),
            "terminated": ended,
            "done": ended,
        }
        before = {"inputs": inputs(data["observation"]), "action": data["action"].to(device)}
        return TensorDict(before | {"next": TensorDict(after, batch_size=data.shape)}, batch_size=data.shape)

    def _losses(self, batch: TensorDict) -> dict[str, Tensor]:
        out = self.loss(batch)
        parts = {name: out[name] for name in ("loss_actor", "loss_value")}
        return {"loss": parts["loss_actor"] + parts["loss_value"], **parts}
