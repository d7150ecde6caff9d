"""PEARL, off-policy meta-RL with a latent inferred from a context (Rakelly et al., ICML 2019); the model-free rival of M3PO.

    section 4.1, q(z | c) as a product of Gaussians     ProductEncoder in beliefs.encoders
    Algorithm 1, first half: collect with a sampled z    PEARL.improve, PEARL.act
    second half: SAC given z; the encoder learns from    PEARL._learn, PEARL.losses, policies.sac
        the Q loss and a KL divergence
    Algorithm 2, meta-testing                            PEARL.adapt, PEARL.act
Departures: two Q functions and a tuned temperature in place of a V network and a fixed one; tasks are drawn anew in each
iteration (those of a finite family come back); inputs are standardised. Where the hidden task switches inside an episode,
training data are sorted by their true task, as PEARL takes for granted, while the acting policy is told nothing: it infers
the latent anew, from its last K transitions, every `pearl.hold` steps.
"""

from __future__ import annotations

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from mbrl_lightning.algorithms.inferred_latent import InferredLatentAlgorithm
from mbrl_lightning.beliefs.encoders import ProductEncoder
from mbrl_lightning.beliefs.history import no_history, remember
from mbrl_lightning.config.schema import Config
from mbrl_lightning.data.buffer import TaskBuffer
from mbrl_lightning.data.windows import STEP, Histories
from mbrl_lightning.data.world import RealWorld
from mbrl_lightning.envs.family import TaskFamily
from mbrl_lightning.errors import ConfigError
from mbrl_lightning.models.imagination import mean_return
from mbrl_lightning.networks.gaussians import kl_divergence
from mbrl_lightning.networks.step import GradientStep, summed
from mbrl_lightning.policies.sac import SAC


class PEARL(InferredLatentAlgorithm):
    """A policy given a latent, which is drawn from what is believed of the task and held for a while.

    Where the family's spec has an `outcome`, the task is hidden and may switch inside an episode.
    """

    policy: SAC

    def __init__(self, family: TaskFamily, cfg: Config) -> None:
        pearl = cfg.pearl
        super().__init__(family, cfg, lambda inputs: ProductEncoder(inputs, pearl.latent_dim, pearl.hidden))
        if self.spec.discrete:
            raise ConfigError(
                f"{self.spec.name}: actions are discrete, and soft actor-critic is for continuous ones",
                "choose another algorithm or another family",
            )
        self.switching = self.spec.outcome is not None  # a hidden task may be another one before a context is of use
        current = self.spec.feature_dim + pearl.latent_dim
        self.policy = SAC(cfg.policy, cfg.sac, self.inputs.pair_dim, current, self.spec.action_dim, recurrent=0)
        trained = [*self.policy.trained_parameters(), *self.encoder.parameters()]
        self.optimizers = {"sac": torch.optim.Adam(trained, lr=cfg.sac.lr, fused=True)}

    # -- belief

    def begin(self, tasks: int) -> TensorDict:
        """The prior, and no latent yet: it is drawn when an episode begins and held for `pearl.hold` steps.

        Where tasks switch the belief has a window of this episode's transitions, `pairs` and `mask`, and a latent is drawn
        from the posterior of these; elsewhere from `loc` and `scale`, once an episode.
        """
        if not self.switching:
            return super().begin(tasks)
        belief = self.prior(tasks, self.cfg.pearl.hold)
        return belief.update(no_history(tasks, self.cfg.pearl.context, self.inputs.pair_dim, self.device))

    def adapt(self, belief: TensorDict, transitions: TensorDictBase) -> TensorDict:
        """Belief q(z | context) `[M]`, with `latent` its mean; where tasks switch, the window after the step just made."""
        if self.switching and transitions.ndim > 1:
            return belief
        belief = super().adapt(belief, transitions)
        if transitions.ndim == 1 and "pairs" in belief.keys():  # noqa: SIM118 - a TensorDict has no `in`
            belief.update(remember(belief, self.pairs(transitions)))
        return belief

    def posterior(self, belief: TensorDict) -> TensorDict:
        """What the window says, where there is one."""
        return self.encoder(belief["pairs"], belief["mask"]) if "pairs" in belief.keys() else belief  # noqa: SIM118

    def shots(self, full: bool) -> list[int]:
        """See Algorithm.contexts; none where tasks switch."""
        return [0] if self.switching else super().shots(full)

    @torch.no_grad()
    def act(
        self, belief: TensorDict, observation: Tensor, noise: torch.Generator | None = None
    ) -> tuple[Tensor, TensorDict]:
        """The policy given the latent that is held; one that is due is drawn first. Without a generator both are means."""
        belief = self.held(belief, noise)
        inputs = self.see(self.inputs.current(observation.to(self.device)), belief["latent"])
        drawn = None if noise is None else self.noise(noise, len(inputs), self.policy.action_dim)
        return self.policy.act(inputs, drawn).cpu(), belief

    def see(self, current: Tensor, latent: Tensor) -> TensorDict:
        """What policy and Q functions see, batch `[N]`: features `[N, F]` with latents `[N, Z]`, and no history."""
        inputs = no_history(len(current), 0, 1, current.device)
        return inputs.set("current", torch.cat([current, self.cfg.policy.latent_gain * latent], -1))

    # -- training

    def improve(self, world: RealWorld, step: GradientStep) -> dict[str, float]:
        """One iteration of Algorithm 1: real steps with z of the prior, then of the posterior, then gradient steps."""
        cfg, real, first = self.cfg, world.real, int(self.iteration) == 0
        steps = cfg.loop.episode_steps or self.spec.horizon
        before = steps if first else min(max(round(cfg.pearl.prior_share * steps), 1), steps)
        tasks = self.family.sample(cfg.loop.tasks_per_iteration, self.generator)
        (data,) = world.interact(tasks, *self.explorer(len(tasks)), before, self.generator, exploratory=True)
        if first:
            self.inputs.fit(real.transitions())
        if steps > before:
            belief = self.begin(len(tasks))
            if not self.switching:
                rows, mask = self._contexts(real, real.index_of(tasks))
                with torch.no_grad():
                    belief.update(self.encoder(self.pairs(real.transitions()[rows]), mask.to(self.device)))
            # where it infers as it acts, that is what the contexts of a meta-test look like
            after = world.interact(tasks, self, belief, steps - before, self.generator, exploratory=self.switching)
            (data,) = after
        seen, metrics = Histories.of(real, self.inputs, 0, step.fabric.device), dict[str, Tensor]()
        for _ in range(round(cfg.sac.updates_per_step * steps * len(tasks))):
            metrics = self._learn(self._batch(real, seen), step)
        found = {f"train/{name}": value for name, value in step.numbers(metrics).items()}
        return found | {"real/return": float(mean_return(data, self.spec))}

    def _contexts(self, real: TaskBuffer, tasks: Tensor) -> tuple[Tensor, Tensor]:
        return real.recent_rows(tasks, self.cfg.pearl.context, self.cfg.pearl.recent, self.generator)

    def _batch(self, real: TaskBuffer, seen: Histories) -> TensorDict:
        """Contexts and transitions of M tasks, batch `[M]`, with all the noise that the losses need."""
        cfg, generator, device = self.cfg, self.generator, seen.pairs.device
        tasks = real.draw_tasks(cfg.pearl.meta_batch, generator)
        context, mask = self._contexts(real, tasks)
        rows = real.target_rows(tasks, cfg.sac.batch // cfg.pearl.meta_batch, generator).to(device)
        drawn = {
            "pairs": seen.pairs[context.to(device)],
            "mask": mask.to(device),
            "sample": torch.randn(len(tasks), cfg.pearl.latent_dim, generator=generator).to(device),
            "noise": self.policy.noise(rows.numel(), generator).unflatten(0, rows.shape),
        }
        taken = {name: getattr(seen, name)[rows] for name in STEP}
        return TensorDict(drawn | taken, batch_size=[len(tasks)])

    def _learn(self, batch: TensorDict, step: GradientStep) -> dict[str, Tensor]:
        metrics = step.on(self.losses, step.share(batch), self.optimizers["sac"])
        self.policy.follow()
        return metrics

    def losses(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """Losses of `SAC` given z ~ q(z | c), `loss_kl`, the divergence of q from N(0, I) summed over tasks; their sum `loss`.

        The batch `[M]` (or a rank's share) has `pairs` `[M, K, D]` and `mask` `[M, K]` of the contexts, `sample` `[M, Z]`, and of
        each task n transitions, `STEP` `[M, n, ...]`, with `noise` `[M, n, 2, A]`.
        """
        belief = self.encoder(batch["pairs"], batch["mask"])
        loc, scale = belief["loc"], belief["scale"]
        latent = (loc + scale * batch["sample"]).repeat_interleave(batch["action"].shape[1], 0)
        flat = {key: batch[key].flatten(0, 1) for key in (*STEP, "noise")}
        after = {"inputs": self.see(flat.pop("following"), latent)}
        after |= {key: flat.pop(key) for key in ("reward", "terminated")}
        rows = flat | {"inputs": self.see(flat.pop("current"), latent), "next": after}
        out = self.policy(TensorDict(rows, batch_size=[len(latent)]))
        divergence = kl_divergence(loc, scale, torch.zeros_like(loc), torch.ones_like(scale))
        # a mean times the number of tasks: ranks average their gradients
        loss_kl = self.cfg.pearl.kl_weight * self.cfg.pearl.meta_batch * divergence.mean()
        return summed(out.set("loss_kl", loss_kl).set("latent_scale", scale.detach().mean()))
