"""GSSM with amortized policy search (Wang & van Hoof, ICML 2022), and GSSM with a policy fine-tuned at meta-test.

    Algorithm 1  collect -> fit {phi, theta} on Eq. 7 -> improve the policy in imagined tasks   MetaLoop, GSSMAPS.improve
    Algorithm 2  memory by pi_e -> z_c -> act; or fine-tune in imagination, then act        GSSMAPS.adapt, GSSM.fine_tune
    Eq. 9-10     J by back-propagation through imagined rollouts                            policies.pathwise
    Eq. 11, 16   J by PPO on [s, z_c]                                                       policies.ppo
Departures: several policy restarts are searched at once and chosen by their imagined return under ensemble members that no
policy was trained on; imagined data never enters the model's buffer (Algorithm 1 says so, section E does not).
"""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from mbrl_lightning.algorithms.base import Algorithm
from mbrl_lightning.config.schema import Config
from mbrl_lightning.data.batches import context_target
from mbrl_lightning.data.buffer import TaskBuffer
from mbrl_lightning.data.seeds import of_rank
from mbrl_lightning.data.world import RealWorld
from mbrl_lightning.envs.family import TaskFamily
from mbrl_lightning.errors import ConfigError
from mbrl_lightning.models.base import MAX_GRAD_NORM
from mbrl_lightning.models.graph import GraphDynamics
from mbrl_lightning.models.imagination import ImaginedStreams, mean_return
from mbrl_lightning.networks.step import GradientStep
from mbrl_lightning.policies.heads import Policy
from mbrl_lightning.policies.pathwise import PathwiseLoss
from mbrl_lightning.policies.ppo import PPO


class GSSMAPS(Algorithm):
    """One policy pi(a | s, z_c) for all tasks, improved in imagined tasks.

    Args:
        family: the task family.
        cfg: the run's configuration.
        conditioned: the policy sees z_c (APS).
    """

    dynamics: GraphDynamics
    ranking: Tensor

    def __init__(self, family: TaskFamily, cfg: Config, conditioned: bool = True) -> None:
        super().__init__(family, cfg)
        self.dynamics = GraphDynamics(self.spec, cfg.dynamics)
        search, latent = cfg.search, cfg.dynamics.latent_dim if conditioned else 0
        self.pathwise = search.method == "pathwise"
        if self.pathwise and self.spec.discrete:
            raise ConfigError(
                f"{self.spec.name}: no gradient passes through discrete actions, so search.method=pathwise "
                "cannot improve a policy",
                "set search.method=ppo",
            )
        # a pathwise policy learns no deviation of its own: it explores with a fixed one
        sizes = replace(cfg.policy, initial_std=max(cfg.loop.action_noise, 0.01)) if self.pathwise else cfg.policy
        self.policy = Policy(self.spec, sizes, latent, squash=self.pathwise)
        self.members = slice(0, cfg.dynamics.members - search.holdout)
        if self.pathwise:
            self.restarts = Policy(self.spec, sizes, latent, search.restarts, squash=True)
            searched = list(self.restarts.net.parameters())
        else:
            self.ppo = PPO(self.policy, search, cfg.policy)
            searched = [*self.policy.parameters(), *self.ppo.parameters()]
        self.optimizers = {
            "dynamics": self.dynamics.configure_optimizers(),
            "policy": torch.optim.Adam(searched, lr=search.lr, fused=True),
        }
        self.register_buffer("ranking", torch.arange(search.restarts))

    # -- belief

    def begin(self, tasks: int) -> TensorDict:
        """The learned prior, which is q(z_c) of an empty context."""
        widths = self.dynamics.input_norm.mean.numel(), self.spec.target_dim
        return self._believe(*(torch.zeros(tasks, 0, width, device=self.device) for width in widths))

    def adapt(self, belief: TensorDict, transitions: TensorDictBase) -> TensorDict:
        """Belief q(z_c | context) `[M]`; its `latent` is the mean. No gradient step (Algorithm 2).

        The context is what the belief was made of and `transitions` `[M, K]`; the one step just made is not taken into it.
        """
        if transitions.ndim == 1:
            return belief
        news = self._standardised(transitions)
        return self._believe(*(torch.cat([belief[key], new], 1) for key, new in zip(("x", "y"), news, strict=True)))

    def _standardised(self, context: TensorDictBase) -> tuple[Tensor, Tensor]:
        return self.dynamics.inputs(context["observation"], context["action"]), self.dynamics.targets(context)

    @torch.no_grad()
    def _believe(self, x: Tensor, y: Tensor) -> TensorDict:
        belief = self.dynamics.encoder.context(x, y)
        return belief.update({"latent": belief["loc"], "x": x, "y": y})

    def shots(self, full: bool) -> list[int]:
        """See Algorithm.contexts."""
        return self.contexts(full)

    def collectors(self, belief: TensorDict) -> TensorDict:
        """Each row is driven by one of the better half of the restarts, in turn."""
        if not self.pathwise:
            return belief
        best = self.ranking[: max(len(self.ranking) // 2, 1)]
        chosen = best[torch.arange(len(belief)) % len(best)]
        own = {name: value.detach()[chosen] for name, value in self.restarts.net.named_parameters()}
        return belief.clone(False).set("policy", TensorDict(own, batch_size=[len(belief)]))

    # -- model

    def fit(self, real: TaskBuffer, step: GradientStep, steps: int, generator: torch.Generator) -> dict[str, float]:
        """Fit the model by `steps` optimizer steps on Eq. 7; returns the mean of its losses."""
        self.dynamics.observe(real.transitions().to(self.device), self.cfg.search.bounds)
        draw = partial(context_target, real, self.cfg.dynamics, generator, self.family.scale)
        found = step.fit(self.dynamics.training_step, draw, self.optimizers["dynamics"], steps, MAX_GRAD_NORM)
        return {f"train/model_{name}": value for name, value in found.items()}

    # -- improvement

    def improve(self, world: RealWorld, step: GradientStep) -> dict[str, float]:
        """Policy part of Algorithm 1, with the learning rate falling linearly over the run."""
        real = world.real
        self.policy.norm.fit(self.spec.features(real.transitions()["observation"]).to(step.fabric.device))
        if self.pathwise:
            self.restarts.norm.load_state_dict(self.policy.norm.state_dict())
        done = float(self.iteration) / max(self.cfg.loop.iterations, 1)
        for group in self.optimizers["policy"].param_groups:
            group["lr"] = self.cfg.search.lr * max(1 - done, 0.1)
        with self.dynamics.constant():
            return self._improve_pathwise(real, step) if self.pathwise else self._improve_ppo(real, step)

    def _batch(self, real: TaskBuffer, step: GradientStep, tasks: int, rows: int) -> TensorDict:
        """Beliefs, start states and noise of imagined tasks; z_c is drawn once for each task and call."""
        drawn = real.draw_tasks(tasks, self.generator)
        # a quarter of the batches has a shorter context, or none, so that the policy knows those beliefs too
        draws = torch.rand(2, generator=self.generator).tolist()
        most = round((draws[1] if draws[0] < 0.25 else 1.0) * min(self.cfg.dynamics.context, self.family.context_steps))
        context = real.draw_context(drawn, most, self.generator)
        latent = self.cfg.dynamics.latent_dim
        share = self.cfg.search.initial_starts
        starts = torch.stack([real.start_states(rows, self.generator, share) for _ in range(tasks)])
        noise = torch.randn(tasks, rows, latent, generator=self.generator)
        sample = torch.randn(tasks, latent, generator=self.generator)
        batch = step.share(
            TensorDict(
                {"context": context, "observation": starts, "noise": noise, "sample": sample}, batch_size=[tasks]
            )
        )
        belief = self._believe(*self._standardised(batch["context"]))
        belief["latent"] = belief["loc"] + belief["scale"] * batch["sample"]
        return batch.set("belief", belief)

    def _improve_pathwise(self, real: TaskBuffer, step: GradientStep) -> dict[str, float]:
        search = self.cfg.search
        horizon = search.horizon or self.spec.horizon
        loss = PathwiseLoss(self.restarts, self.dynamics, horizon, search.gamma, self.members).to(step.fabric.device)

        for _ in range(search.updates):
            batch = self._batch(real, step, search.tasks, search.rollouts)
            step(partial(_policy_loss, loss, batch), self.optimizers["policy"], search.max_grad_norm, stacked=True)
        return self._select(real, step, horizon)

    @torch.no_grad()
    def _select(self, real: TaskBuffer, step: GradientStep, horizon: int) -> dict[str, float]:
        """Rank the restarts by imagined return under the held-out members and deploy the best."""
        members = self.members
        if self.cfg.search.holdout:
            members = slice(self.members.stop, None)
        loss = PathwiseLoss(self.restarts, self.dynamics, horizon, 1.0, members).to(step.fabric.device)
        batch = self._batch(real, step, 4 * self.cfg.search.tasks, self.cfg.search.rollouts)
        returns: Tensor = step.mean(loss(batch)["imagined_return"])
        self.ranking.copy_(returns.argsort(descending=True))
        best = int(self.ranking[0])
        for name, value in self.restarts.net.named_parameters():
            self.policy.net.get_parameter(name).copy_(value[best : best + 1])
        returns = returns if self.spec.unit == "step" else returns * self.spec.horizon
        return {"imagined/return": float(returns[best]), "imagined/spread": float(returns.std(unbiased=False))}

    def _improve_ppo(self, real: TaskBuffer, step: GradientStep) -> dict[str, float]:
        search = self.cfg.search
        metrics: dict[str, float] = {}
        returns: list[Tensor] = []
        own = of_rank(self.generator, step.fabric)
        for first in range(0, search.updates, search.segments):
            batch = self._batch(real, step, search.tasks, search.rollouts)
            streams = self._streams(batch, real, own)
            latent = batch["belief", "latent"][:, None]
            for _ in range(min(search.segments, search.updates - first)):
                data = self._imagine(streams, latent, own)
                returns.append(mean_return(data, self.spec))
                whole, told = step.gather(data), step.gather(latent).unsqueeze(1)
                metrics = self.ppo.update(self.policy, whole, told, step, self.optimizers["policy"], self.generator)
        out = {f"train/{name}": value for name, value in metrics.items()}
        if returns:
            out["imagined/return"] = float(step.mean(torch.stack(returns[-search.segments :]).mean()))
        return out

    def _imagine(self, streams: ImaginedStreams, latent: Tensor, generator: torch.Generator) -> TensorDict:
        """`search.horizon` further steps with latents `[M, 1, Z]`."""

        def act(observation: Tensor) -> dict[str, Tensor]:
            return self.ppo.sample(self.policy, observation, latent.expand(*observation.shape[:2], -1), generator)

        return streams.rollout(act, self.cfg.search.horizon or self.spec.horizon)

    def _streams(self, batch: TensorDict, real: TaskBuffer, generator: torch.Generator) -> ImaginedStreams:
        def restart(count: int) -> Tensor:
            starts = real.start_states(count, generator, self.cfg.search.initial_starts)
            return starts[torch.randperm(count, generator=generator)]

        return ImaginedStreams(
            self.dynamics,
            batch["belief"],
            batch["observation"],
            self.spec.horizon,
            batch["noise"],
            self.members,
            restart,
            self.cfg.search.noise,
            generator,
        )


def _policy_loss(loss: PathwiseLoss, batch: TensorDict) -> dict[str, Tensor]:
    return {"loss": loss(batch)["loss_policy"]}


class GSSM(GSSMAPS):
    """GSSM without APS: pi(a | s) trained across the imagined tasks, fine-tuned in each test task's own (Algorithm 2)."""

    def __init__(self, family: TaskFamily, cfg: Config) -> None:
        super().__init__(family, cfg, conditioned=False)

    def fine_tune(
        self, belief: TensorDict, real: TaskBuffer, step: GradientStep, generator: torch.Generator
    ) -> TensorDict:
        """K policy-gradient updates in each task's imagined world; belief `[M]` with `policy` parameters `[M, ...]`."""
        tune = self._tune_pathwise if self.pathwise else self._tune_ppo
        with self.dynamics.constant():
            own = tune(belief, real, step, generator)
        return belief.clone(False).set("policy", TensorDict(own, batch_size=[len(belief)]))

    def _tune_pathwise(
        self, belief: TensorDict, real: TaskBuffer, step: GradientStep, generator: torch.Generator
    ) -> dict[str, Tensor]:
        tasks, search = len(belief), self.cfg.search
        device, policies = step.fabric.device, self.policy.repeated(tasks)
        rows = 4 * len(range(*self.members.indices(self.cfg.dynamics.members)))
        loss = PathwiseLoss(
            policies, self.dynamics, search.horizon or self.spec.horizon, search.gamma, self.members, paired=True
        ).to(step.fabric.device)
        optimizer = torch.optim.Adam(policies.net.parameters(), lr=self.cfg.evaluation.fine_tune_lr, fused=True)
        for _ in range(self.cfg.evaluation.fine_tune_updates):
            batch = TensorDict(
                {
                    "observation": real.start_states(tasks * rows, generator).view(tasks, rows, -1),
                    "belief": belief,
                    "noise": torch.randn(tasks, rows, self.cfg.dynamics.latent_dim, generator=generator),
                },
                batch_size=[tasks],
            ).to(device)
            step(partial(_policy_loss, loss, batch), optimizer, search.max_grad_norm, stacked=True)
        return {name: value.detach() for name, value in policies.net.named_parameters()}

    def _tune_ppo(
        self, belief: TensorDict, real: TaskBuffer, step: GradientStep, generator: torch.Generator
    ) -> dict[str, Tensor]:
        search, stacks = self.cfg.search, list[dict[str, Tensor]]()
        before = copy.deepcopy((self.policy.state_dict(), self.ppo.state_dict()))
        for task in range(len(belief)):
            start = real.start_states(search.rollouts, generator, search.initial_starts).unsqueeze(0)
            noise = torch.randn(1, search.rollouts, self.cfg.dynamics.latent_dim, generator=generator)
            one = TensorDict(
                {"belief": belief[task : task + 1], "observation": start, "noise": noise}, batch_size=[1]
            ).to(step.fabric.device)
            streams = self._streams(one, real, generator)
            trained = [*self.policy.parameters(), *self.ppo.parameters()]
            optimizer = torch.optim.Adam(trained, lr=self.cfg.evaluation.fine_tune_lr, fused=True)
            latent = one["belief", "latent"][:, None]
            for _ in range(self.cfg.evaluation.fine_tune_updates):
                data = self._imagine(streams, latent, generator)
                self.ppo.update(self.policy, data, latent.unsqueeze(1), step, optimizer, generator)
            stacks.append({name: value.detach()[0].clone() for name, value in self.policy.net.named_parameters()})
            self.policy.load_state_dict(before[0])
            self.ppo.load_state_dict(before[1])
        return {name: torch.stack([own[name] for own in stacks]) for name in stacks[0]}
