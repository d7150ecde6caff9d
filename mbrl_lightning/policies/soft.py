"""Policy search by soft actor-critic, on real decisions and on imagined ones that branch off real states.

A decision may be kept for several steps (`data.control`); its reward is their sum, the discount is per decision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from mbrl_lightning.config.schema import Config
from mbrl_lightning.data.control import Control
from mbrl_lightning.data.decisions import Decisions
from mbrl_lightning.data.ring import Ring, drawn_share
from mbrl_lightning.data.world import RealWorld
from mbrl_lightning.envs.spec import EnvSpec
from mbrl_lightning.errors import ConfigError
from mbrl_lightning.models.imagination import ImaginedStreams, mean_return, require_imaginable
from mbrl_lightning.networks import Normalizer
from mbrl_lightning.networks.step import GradientStep
from mbrl_lightning.policies.sac import SAC
from mbrl_lightning.policies.search import Learner, searched

Branches = Callable[[int], TensorDict]
"""Count n -> about n imagined decisions, as `SoftSearch.branches` gives them."""


class SoftPolicy(nn.Module):
    """A tanh-Gaussian pi(a | s, z) with its Q functions; the statistics of its inputs are set once.

    Args:
        spec: features and actions.
        cfg: `policy`, `sac`, `branch`.
        latent_dim: Z.

    Raises:
        ConfigError: actions are discrete, or mirrored data are asked for where no symmetry is declared.
    """

    def __init__(self, spec: EnvSpec, cfg: Config, latent_dim: int) -> None:
        super().__init__()
        if spec.discrete:
            raise ConfigError(
                f"{spec.name}: soft actor-critic is for continuous actions, and these are discrete",
                "choose algorithm=dr_ppo, or algorithm=gssm_aps search.method=ppo",
            )
        if cfg.sac.mirror and spec.mirror is None:
            raise ConfigError(
                f"{spec.name}: sac.mirror=true, but the family declares no symmetry that all of its tasks share",
                "set sac.mirror=false, or give the spec's `mirror`",
            )
        self.spec, self.cfg = spec, cfg
        self.norm = Normalizer(spec.feature_dim)
        self.sac = SAC(cfg.policy, cfg.sac, 1, spec.feature_dim + latent_dim, spec.action_dim, recurrent=0)

    def inputs(self, observation: Tensor, latent: Tensor) -> TensorDict:
        """What the networks see, batch `[N]`, of observations `[N, S]` and latents `[N, Z]`."""
        seen = torch.cat([self.norm(self.spec.features(observation)), self.cfg.policy.latent_gain * latent], -1)
        return TensorDict({"current": seen}, batch_size=seen.shape[:1])

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Standard normal noise for `act`, `[*shape, A]`."""
        return torch.randn(*shape, self.spec.action_dim, generator=generator, device=generator.device)

    def act(self, observation: Tensor, belief: TensorDictBase, noise: Tensor | None = None) -> Tensor:
        """Choices `[M, A]` in M tasks, by the belief's own `policy` where it carries one; without noise the tanh of the mean."""
        own = dict(belief["policy"].items()) if "policy" in belief.keys() else None  # noqa: SIM118 - no `in`
        return self.sac.act(self.inputs(observation, belief["latent"]), noise, own)

    def value(self, observation: Tensor, latent: Tensor) -> Tensor:
        """The smaller of both Q functions `[N]` of what `act` would do without noise."""
        seen = self.inputs(observation, latent)
        action = self.sac.act(seen)
        return torch.minimum(*self.sac.q.decide(seen["current"].expand(2, -1, -1), action)).squeeze(-1)

    def learn(
        self,
        parts: Iterable[TensorDict],
        decisions: Decisions,
        latents: Tensor,
        step: GradientStep,
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator,
        imagine: Branches | None = None,
    ) -> dict[str, float]:
        """After each part of the real steps, the updates that are due for it.

        Args:
            parts: real transitions `[B, every]`, as they are made.
            decisions: all that have been made.
            latents: of every task in the buffer, `[tasks, Z]`.
            step: takes the gradient steps.
            optimizer: of policy, Q functions and temperature.
            generator: draws batches and noise.
            imagine: gives imagined decisions, of which a share `branch.beta` of each batch is; None: none.

        Returns:
            Metrics of the last updates, and `real/return`.
        """
        sac, branch, seen, metrics = self.cfg.sac, self.cfg.branch, list[TensorDict](), dict[str, Tensor]()
        share, imagined = 0.0, Ring()
        if imagine is not None:
            share, imagined = branch.beta, Ring(branch.buffer)
            imagined.append(imagine(branch.buffer))
        for part in parts:
            seen.append(part)
            decisions.read()
            if imagine is not None:
                imagined.append(imagine(branch.per_step * part.numel()))
            for _ in range(round(sac.updates_per_step * part.numel())):
                count = drawn_share(sac.batch, share, generator) if share else 0
                batch = decisions.draw(sac.batch - count, latents, generator)
                if count:
                    batch = torch.cat([batch, imagined.draw(count, generator)])
                metrics |= self.update(batch, step, optimizer, generator)
        out = {f"train/{name}": value for name, value in step.numbers(metrics).items()}
        return out | {"real/return": float(mean_return(torch.cat(seen, 1), self.spec))}

    def replay(
        self,
        decisions: Decisions,
        fresh: int,
        latents: Tensor,
        step: GradientStep,
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator,
    ) -> None:
        """The updates that are due for `fresh` real steps which another agent made; arguments as for `learn`."""
        for _ in range(round(self.cfg.sac.updates_per_step * fresh)):
            self.update(decisions.draw(self.cfg.sac.batch, latents, generator), step, optimizer, generator)

    def update(
        self, decisions: TensorDict, step: GradientStep, optimizer: torch.optim.Optimizer, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """One update of SAC on decisions `[N]`, of which half are mirrored where that is asked for."""
        batch = decisions.set("noise", self.sac.noise(len(decisions), generator))
        if self.cfg.sac.mirror:
            batch["mirrored"] = torch.rand(len(batch), 1, generator=generator) < 0.5
        return self.sac.update(self._batch(step.share(batch)), step, optimizer)

    def _batch(self, rows: TensorDictBase) -> TensorDict:
        observation, command, following = rows["observation"], rows["command"], rows["following"]
        if self.spec.mirror is not None and self.cfg.sac.mirror:
            (image, turned), mirrored = self.spec.mirror, rows["mirrored"]
            observation = torch.where(mirrored, image(observation), observation)
            following = torch.where(mirrored, image(following), following)
            command = torch.where(mirrored, turned(command), command)
        both = self.inputs(torch.cat([observation, following]), rows["latent"].repeat(2, 1))
        before, after = both.split(len(rows))
        outcome = {"inputs": after, "reward": rows["reward"], "terminated": rows["terminated"]}
        batch = {"inputs": before, "action": command, "noise": rows["noise"], "next": outcome}
        return TensorDict(batch, batch_size=rows.batch_size)


class SoftSearch(nn.Module):
    """Soft actor-critic on the method's real decisions, and on imagined ones that branch off real states.

    Args:
        spec: features and actions.
        cfg: `policy`, `sac`, `branch`, `search`, `loop`.
        latent_dim: width of what the policy is told of the task.
    """

    def __init__(self, spec: EnvSpec, cfg: Config, latent_dim: int) -> None:
        super().__init__()
        self.policy = SoftPolicy(spec, cfg, latent_dim)
        self.optimizer = torch.optim.Adam(self.policy.sac.trained_parameters(), lr=cfg.sac.lr, fused=True)

    def collectors(self, belief: TensorDict) -> TensorDict:
        """What is deployed collects."""
        return belief

    def improve(self, learner: Learner, world: RealWorld, step: GradientStep) -> dict[str, float]:
        """`loop.episodes_per_task` episodes in each of this iteration's tasks, and the updates that are due."""
        cfg, real = learner.cfg, world.real
        if not int(learner.iteration):
            self.policy.norm.fit(learner.spec.features(real.transitions()["observation"]).to(step.fabric.device))
        index = world.index.repeat_interleave(cfg.loop.episodes_per_task)
        belief = learner.believed(real, torch.arange(len(real.tasks)))
        members = len(range(*searched(cfg).indices(cfg.dynamics.members)))

        def imagine(count: int) -> TensorDict:
            rows = -(-count // (cfg.search.tasks * cfg.branch.length * members)) * members
            batch = learner.imagined_tasks(real, step, cfg.search.tasks, rows)
            streams = ImaginedStreams(
                learner.dynamics,
                batch["belief"],
                batch["observation"],
                learner.spec.horizon,
                batch["noise"],
                searched(cfg),
                noise=cfg.search.noise,
                generator=learner.generator,
            )
            latent = batch["belief", "latent"]
            return self.branches(streams, learner.control, latent, cfg.branch.length, learner.generator)

        steps = cfg.loop.episode_steps or learner.spec.horizon
        parts = world.interact(
            real.tasks[index], learner, belief[index], steps, learner.generator, cfg.sac.every, index=index
        )
        return self.policy.learn(
            parts,
            Decisions(real, learner.control.hold),
            belief["latent"].cpu(),
            step,
            self.optimizer,
            learner.generator,
            imagine if cfg.branch.beta > 0 else None,
        )

    @torch.no_grad()
    def branches(
        self, streams: ImaginedStreams, control: Control, latent: Tensor, length: int, generator: torch.Generator
    ) -> TensorDict:
        """Imagined decisions `[at most M B k]`: what `Decisions.draw` gives of real ones.

        Args:
            streams: M x B, just begun, each of one episode.
            control: what becomes of choices.
            latent: what the policy is told of each task, `[M, Z]`.
            length: k, decisions of a branch.
            generator: draws the choices.
        """
        told, held = latent.unsqueeze(1).expand(-1, streams.start.shape[1], -1), [latent]

        def act(observation: Tensor) -> dict[str, Tensor]:
            if streams.now % control.hold == 0:
                rows = TensorDict({"latent": told.flatten(0, 1)})
                noise = self.policy.noise((len(rows["latent"]),), generator).to(observation.device)
                held[0] = self.policy.act(observation.flatten(0, 1), rows, noise).view(*observation.shape[:2], -1)
            return {"action": control.action(observation, held[0]), "command": held[0]}

        data = streams.rollout(act, length * control.hold)
        data = data.reshape(*data.shape[:2], length, control.hold)
        first, after = data[..., 0], data["next"]
        require_imaginable(after["reward"])
        rows = {
            "observation": first["observation"],
            "command": first["command"],
            "following": after["observation"][..., -1, :],
            "reward": after["reward"].sum(-2),
            "terminated": after["terminated"].any(-2).float(),
            "latent": told.unsqueeze(2).expand(-1, -1, length, -1),
        }
        return TensorDict(rows, batch_size=first.batch_size)[first["valid"]]
