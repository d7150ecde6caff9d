"""MB-MPO, model-based reinforcement learning via meta-policy optimization (Clavera et al., CoRL 2018), and ME-TRPO.

    Algorithm 1, line 3      real trajectories by the adapted policies pi_theta'_1 .. pi_theta'_K         MBMPO.collectors
    line 4                   all models are trained on the data, each on its own split                    MBMPO.fit
    lines 5-9                imagined trajectories T_k, an inner step, trajectories T'_k                  MBMPO._trajectories
    line 10                  theta moves by MAML-TRPO on T'_k (line 10's minus sign is a slip)            TrustRegion
    section 6.4 (Fig. 4)     models that are biased and noisy: `meta.bias`, `meta.noise`    models.worlds
ME-TRPO (Kurutach et al. 2018) is `meta.inner_steps=0 meta.random_model=true`: no inner step, and one task in which every
imagined step of every row asks a model drawn at random. Departures: the inner step has the size that a mean over samples of
standardised advantages needs (0.1; the paper's 0.001 adapts nothing then); the Fisher products are exact, on a tenth of the
rows; imagined states are kept to the range of the data; observations are standardised by the first data's statistics.
"""

from __future__ import annotations

from functools import partial

import torch
from tensordict import TensorDict
from torch import Tensor

from mbrl_lightning.algorithms.adapted_policy import AdaptedPolicyAlgorithm
from mbrl_lightning.beliefs.gradient import Linearised, Parameters
from mbrl_lightning.config.schema import Config
from mbrl_lightning.data.buffer import TaskBuffer
from mbrl_lightning.data.world import RealWorld
from mbrl_lightning.envs.family import TaskFamily
from mbrl_lightning.models.base import MAX_GRAD_NORM
from mbrl_lightning.models.ensemble import EnsembleDynamics, MemberData
from mbrl_lightning.models.imagination import mean_return
from mbrl_lightning.models.stopping import RollingStop
from mbrl_lightning.models.worlds import Worlds
from mbrl_lightning.networks.step import GradientStep
from mbrl_lightning.policies.heads import Policy
from mbrl_lightning.policies.trust_region import inner_loss, sampled_rows, standardised_advantages

STARTS = 500  # initial states drawn for an iteration's imagined trajectories


class MBMPO(AdaptedPolicyAlgorithm):
    """A policy from which one gradient step leads to a good policy for each of K learned models.

    The family's hidden tasks, if it has any, are part of what the models are uncertain of.
    """

    dynamics: EnsembleDynamics
    fitted: Tensor

    def __init__(self, family: TaskFamily, cfg: Config) -> None:
        super().__init__(family, cfg, partial(EnsembleDynamics, cfg=cfg.dynamics))
        self.tasks = 1 if cfg.meta.random_model else cfg.dynamics.members
        self.adapted = Policy(self.spec, cfg.policy, 0, copies=self.tasks).requires_grad_(False)
        self.optimizers = {"dynamics": self.dynamics.configure_optimizers()}
        self.register_buffer("fitted", torch.zeros((), dtype=torch.long))

    # -- line 4

    def fit(self, real: TaskBuffer, step: GradientStep, steps: int, generator: torch.Generator) -> dict[str, float]:
        """Train all models by at most `steps` steps, each member until its held-out error rises."""
        cfg, device = self.cfg.dynamics, step.fabric.device
        transitions = real.transitions().to(device)
        found = self._surprise(transitions, real.num_steps)
        self.dynamics.see(real, self.cfg.search.bounds)
        data = MemberData(self.dynamics, transitions, generator)
        held_out = data.at(data.held_out[:2000])
        stop = None if cfg.persistence is None else RollingStop(self.dynamics, cfg.persistence)
        epoch = -(-len(data.learned) // cfg.targets)
        for now, batch in enumerate(data.batches(steps, cfg.targets)):
            batch, optimizer = step.share(batch), self.optimizers["dynamics"]
            last = step.on(self.dynamics.training_step, batch, optimizer, MAX_GRAD_NORM, stacked=True, sizes_vary=True)
            if stop and (now + 1) % epoch == 0 and stop.check(self._held_out_error(held_out)):
                break
        if stop:
            stop.restore()
        if steps:
            found |= step.numbers(last)
            found |= {"held_out": float(self._held_out_error(held_out).mean()), "steps": now + 1.0}
        return {f"train/model_{name}": value for name, value in found.items()}

    @torch.no_grad()
    def _held_out_error(self, batch: TensorDict) -> Tensor:
        return self.dynamics.errors(batch).mean((1, 2)) if len(batch) else torch.zeros(self.dynamics.members)

    @torch.no_grad()
    def _surprise(self, transitions: TensorDict, count: int) -> dict[str, float]:
        """Standardised error on the data that came since the last fit, which the policies of that fit collected."""
        before = int(self.fitted)
        self.fitted.fill_(count)
        if not 0 < before < count == len(transitions):  # nothing fitted, nothing new, or old rows were dropped
            return {}
        new = transitions[before:]
        x, y = self.dynamics.inputs(new["observation"], new["action"]), self.dynamics.targets(new)
        out = self.dynamics.decoder(x.expand(self.dynamics.members, -1, -1))
        return {"surprise": float((out - y).square().mean())}

    # -- lines 5-10

    def improve(self, world: RealWorld, step: GradientStep) -> dict[str, float]:
        """`meta.updates` outer steps in the models as they are."""
        real = world.real
        if not int(self.iteration):
            self.policy.norm.fit(self.spec.features(real.transitions()["observation"]).to(step.fabric.device))
            self.adapted.norm.load_state_dict(self.policy.norm.state_dict())
        worlds, metrics, rejected = self._worlds(real, step, self.generator), dict[str, float](), 0.0
        for _ in range(self.cfg.meta.updates):
            batch, imagined, linear = self._trajectories(worlds)
            found = self.outer(batch, step, linear)  # line 10
            rejected += 1 - found["accepted"]
            metrics = imagined | {f"train/{name}": value for name, value in found.items()}
        if not self.spec.discrete:
            metrics["train/std"] = float(self.policy.log_std.detach().exp().mean())
        self._keep_adapted(worlds, step)
        return metrics | {"train/rejected": rejected}

    def _worlds(self, real: TaskBuffer, step: GradientStep, generator: torch.Generator) -> Worlds:
        """The models of this iteration, and this rank's share of what is imagined in them."""
        seed = int(torch.randint(2**62, (), generator=generator))
        own = torch.Generator().manual_seed(seed + step.fabric.global_rank)
        simulator = self.family.simulate(self.family.sample(20, generator))
        try:
            initial = torch.cat([simulator.reset(generator) for _ in range(STARTS // 20)])
        finally:
            simulator.close()
        rows = -(-self.cfg.meta.rollouts // step.fabric.world_size) * self.dynamics.members
        bias = self.cfg.meta.bias * torch.rand(self.dynamics.members, generator=generator)
        return Worlds(self.dynamics, self.cfg, rows, bias, initial, real, own)

    def _trajectories(self, worlds: Worlds) -> tuple[TensorDict, dict[str, float], Linearised]:
        """Lines 5-9: a batch for `TrustRegion`, imagined returns before and after, and the inner steps."""
        returns: list[float] = []

        def sample(parameters: Parameters) -> TensorDict:
            rows, found = self._imagine(worlds, parameters)  # lines 6 and 8
            returns.append(found)
            return rows

        batch, linear = self.trajectories(sample, self.tasks)
        adapted = {"imagined/adapted": returns[-1]} if self.inner_steps else {}
        return batch, {"imagined/return": returns[0]} | adapted, linear

    @torch.no_grad()
    def _imagine(self, worlds: Worlds, parameters: Parameters) -> tuple[TensorDict, float]:
        """Trajectories of each policy `[K, ...]` in its model, as rows `[K, N]` with advantages, and their mean return."""
        scale = self.policy.scale(parameters)
        rows = worlds.rows // self.tasks
        noises = iter(self.policy.noise((worlds.steps, self.tasks, rows), worlds.generator).to(scale.device))

        def act(observation: Tensor) -> dict[str, Tensor]:
            inputs = self.policy.norm(worlds.spec.features(observation))
            loc, _ = self.policy.distribution(inputs.view(self.tasks, rows, -1), parameters)
            taken = {"action": self.policy.choose(loc, next(noises), scale), "loc": loc}
            return {"inputs": inputs} | {name: value.flatten(0, 1).unsqueeze(0) for name, value in taken.items()}

        data = worlds.rollout(act)[0].unflatten(0, (self.tasks, rows))
        data["advantage"] = standardised_advantages(self.policy, data, self.cfg.search)
        return sampled_rows(self.policy, data, scale), float(mean_return(data, self.spec))

    def _keep_adapted(self, worlds: Worlds, step: GradientStep) -> None:
        """Adapt to each model once more, from where the outer steps ended: the collectors of the next iteration."""
        parameters = self._trajectories(worlds)[2].adapted
        with torch.no_grad():
            for name, value in self.adapted.adaptable().items():
                value.copy_(step.mean(parameters[name]))

    # -- line 3, and the meta-test

    def collectors(self, belief: TensorDict) -> TensorDict:
        """Each row is driven by one of the K adapted policies, in turn."""
        if not self.inner_steps or self.cfg.meta.collectors == "prior":
            return belief
        chosen = torch.arange(len(belief)) % self.tasks
        own = {name: value.detach()[chosen] for name, value in self.adapted.adaptable().items()}
        return belief.clone(False).set("policy", TensorDict(own, batch_size=[len(belief)]))

    def shots(self, full: bool) -> list[int]:
        """None first: what learns, and what curves show, is the policy before it adapts."""
        return [0, *sorted({*self.contexts(full)} - {0})] if full and self.inner_steps else [0]

    def fine_tune(
        self, belief: TensorDict, real: TaskBuffer, step: GradientStep, generator: torch.Generator
    ) -> TensorDict | None:
        """Inner steps on trajectories imagined in all models: one policy for the lot of them."""
        if not self.inner_steps:
            return None
        rows, _ = self._imagine(self._worlds(real, step, generator), self.outer.theta(self.tasks))
        return self.stepped(belief, inner_loss(self.policy, rows.reshape(1, -1)), 1)
