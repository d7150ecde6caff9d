"""M3PO, model-based meta-reinforcement learning for hidden tasks that change while the agent runs (Hiraoka et al., 2020).

    Algorithm 2, line 3      the meta-model is fitted to D_env until held-out error stops falling        M3PO.fit
    lines 4-6                one real step with pi(a | h), appended to D_env                              M3PO.improve
    lines 7-10               M branched rollouts of k steps from real histories, appended to D_model      M3PO._imagine
    lines 11-12              G steps on the policy, from D_model                                          M3PO._learn
    section A.8 (M3PO-h)     D_hyb = beta D_model + (1 - beta) D_env, beta falling from 1 to 0            M3PO.beta
Variants are values: `history.model=false` is M2PO, `branch.beta=0` recurrent SAC on real data, `branch.full=true` full-model
rollouts, `branch.length` k. Departures: lines 4-12 run over parts of `sac.every` real steps instead of one by one; the
temperature is tuned; D_model is filled anew after every fit of the model, and random actions of the warm-up are held.
"""

from __future__ import annotations

from functools import partial

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from mbrl_lightning.algorithms.base import Algorithm
from mbrl_lightning.beliefs.history import no_history, remember
from mbrl_lightning.config.schema import Config
from mbrl_lightning.data.buffer import TaskBuffer
from mbrl_lightning.data.control import Control
from mbrl_lightning.data.ring import Ring, drawn_share
from mbrl_lightning.data.windows import Histories, transition
from mbrl_lightning.data.world import RealWorld
from mbrl_lightning.envs.family import TaskFamily
from mbrl_lightning.errors import ConfigError
from mbrl_lightning.models.base import MAX_GRAD_NORM
from mbrl_lightning.models.imagination import branched_rollouts, mean_return, trajectories
from mbrl_lightning.models.measures import until_fall
from mbrl_lightning.models.recurrent import HistoryDynamics, history_errors
from mbrl_lightning.models.stopping import EarlyStopping
from mbrl_lightning.networks.step import GradientStep
from mbrl_lightning.policies.cloning import divergence_from_data
from mbrl_lightning.policies.sac import SAC

AT_ONCE = 20_000  # rows imagined in one batch at most, as their activations take far more room than they do


class M3PO(Algorithm):
    """A meta-model and a meta-policy, both conditioned on the last L pairs; meta-testing is acting on.

    Args:
        family: the task family; its tasks may switch inside an episode.
        cfg: `history`, `branch`, `sac`, `dynamics`, `policy`.
    """

    dynamics: HistoryDynamics
    policy: SAC

    def __init__(self, family: TaskFamily, cfg: Config) -> None:
        super().__init__(family, cfg)
        if self.spec.discrete:
            raise ConfigError(
                f"{self.spec.name}: SAC with a tanh-Gaussian policy has no discrete actions",
                "choose a family with continuous actions, or algorithm=gssm_aps",
            )
        self.dynamics = HistoryDynamics(self.spec, cfg.dynamics, cfg.history)
        inputs = self.dynamics.inputs
        self.policy = SAC(
            cfg.policy, cfg.sac, inputs.pair_dim, self.spec.feature_dim, self.spec.action_dim, cfg.history.hidden
        )
        self.optimizers = {
            "dynamics": self.dynamics.configure_optimizers(),
            "sac": torch.optim.Adam(self.policy.trained_parameters(), lr=cfg.sac.lr, fused=True),
        }

    @property
    def model(self) -> HistoryDynamics | None:
        """None for SAC on real data alone, which takes no more than the model's standardisation."""
        return self.dynamics if self.cfg.branch.beta > 0 else None

    @property
    def beta(self) -> float:
        """Share of imagined transitions in what the policy learns from; M3PO-h lets it fall from 1 to 0 (section A.8)."""
        branch, iteration = self.cfg.branch, int(self.iteration)
        if branch.beta_from is None or branch.beta_to is None:
            return branch.beta
        done = (iteration - branch.beta_from) / max(branch.beta_to - branch.beta_from, 1)
        return branch.beta * min(max(1 - done, 0.0), 1.0)

    # -- belief

    def begin(self, tasks: int) -> TensorDict:
        """The empty history: there is no adaptation phase, and no memory across episodes."""
        belief = no_history(tasks, self.cfg.history.length, self.dynamics.inputs.pair_dim, self.device)
        return belief.set("latent", torch.zeros(tasks, 0, device=self.device))

    def adapt(self, belief: TensorDict, transitions: TensorDictBase) -> TensorDict:
        """The history after the steps just made, `[M]` or `[M, K]`."""
        steps = [transitions] if transitions.ndim == 1 else transitions.unbind(1)
        for step in steps:
            names = ("observation", "action", ("next", "observation"))
            pair = self.dynamics.inputs.pair(*(step[name].to(self.device) for name in names))
            belief = belief.clone(False).update(remember(belief, pair))
        return belief

    def act(
        self, belief: TensorDict, observation: Tensor, noise: torch.Generator | None = None
    ) -> tuple[Tensor, TensorDict]:
        """pi(a | h)."""
        current = self.dynamics.inputs.current(observation.to(self.device))
        return self._sample(noise, belief.clone(False).set("current", current)).cpu(), belief

    def _sample(self, generator: torch.Generator | None, inputs: TensorDictBase) -> Tensor:
        if generator is None:
            return self.policy.act(inputs)
        noise = torch.randn(len(inputs), self.spec.action_dim, generator=generator)
        return self.policy.act(inputs, noise.to(inputs["current"].device))

    def imagine(self, belief: TensorDict, observation: Tensor, action: Tensor) -> Tensor:
        """See Algorithm.imagine; what is imagined is remembered, as in the branches that the policy learns from."""
        return trajectories(self.dynamics, belief, observation, action, self.adapt)

    def measures(
        self, episodes: TensorDict, real: TaskBuffer, step: GradientStep, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """The model on the policy's own episodes, with their histories and with others'; the policy against the data."""
        if self.model is None:
            return {}
        length, seen = self.cfg.history.length, until_fall(episodes.flatten(0, 1), self.spec).to(self.device)
        errors = history_errors(self.dynamics, seen, length, generator)
        found = {f"model/{name}": value for name, value in errors.items()}
        if len(real):  # shipped weights come without data
            histories = Histories.of(real, self.dynamics.inputs, length, self.device)
            found["policy/kl_cloned"] = divergence_from_data(self.policy, histories, self.cfg, step, generator)
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in found.items()}

    def model_errors(self, *_: object) -> dict[str, Tensor]:
        """Nothing further: a history model without a history is not what was trained; see `measures`."""
        return {}

    # -- model

    def fit(self, real: TaskBuffer, step: GradientStep, steps: int, generator: torch.Generator) -> dict[str, float]:
        """Fit the heads to their bootstrap samples until their held-out error stops falling, or for `steps` steps."""
        cfg, first = self.cfg.dynamics, int(self.iteration) == 0
        self.dynamics.see(real, self.cfg.search.bounds, fit=first)
        if self.beta == 0 or not steps:
            return {}
        histories = Histories.of(real, self.dynamics.inputs, self.cfg.history.length, step.fabric.device)
        order = torch.randperm(len(histories), generator=generator)
        held_out, rows = order.split([len(order) // 5, len(order) - len(order) // 5])
        # a head's bootstrap sample, as the number of times each row is in it
        drawn = torch.randint(len(rows), (len(rows), cfg.members), generator=generator)
        counts = torch.zeros(len(rows), cfg.members).scatter_add_(0, drawn, torch.ones_like(drawn, dtype=torch.float))
        stopping = EarlyStopping(self.dynamics, cfg.patience)
        check = self._batch(histories, held_out[:2000])
        metrics: dict[str, Tensor] = {}
        for now in range(steps):
            pick = torch.randint(len(rows), (cfg.targets,), generator=generator)
            batch = self._batch(histories, rows[pick]).set("weight", counts[pick])
            batch = step.share(batch)
            metrics = step.on(
                self.dynamics.training_step, batch, self.optimizers["dynamics"], MAX_GRAD_NORM, stacked=True
            )
            if (now + 1) % cfg.check_every == 0 and stopping.check(self.dynamics.held_out_error(check)):
                break
        found = step.numbers(metrics)
        stopping.check(self.dynamics.held_out_error(check))
        stopping.restore()
        nll, error = self.dynamics.nll(check)
        held = {"nll": float(nll.detach().mean()), "error": float(error.mean()), "steps": float(now + 1)}
        return {f"train/model_{name}": value for name, value in (found | held).items()}

    def _batch(self, histories: Histories, rows: Tensor) -> TensorDict:
        rows = rows.to(histories.back.device)
        batch = histories.before(rows).set("action", histories.action[rows])
        target = self.dynamics.targets(histories.observation[rows], histories.next_observation[rows])
        return batch.set("target", target)

    # -- policy

    def collect(self, world: RealWorld) -> dict[str, float]:
        """Random actions first; `improve` collects the rest."""
        held = Control(self.spec, hold=min(self.cfg.sac.warmup_hold, self.spec.horizon))
        return self.warm_up(world, self.cfg.sac.warmup_steps, held)

    def improve(self, world: RealWorld, step: GradientStep) -> dict[str, float]:
        """Algorithm 2, lines 4-12, over one stretch of real steps."""
        cfg, real, stretch = self.cfg, world.real, self.cfg.loop.episode_steps or self.spec.horizon
        tasks = self.family.sample(cfg.loop.tasks_per_iteration, self.generator)
        imagined, parts, metrics = Ring(cfg.branch.buffer), [], dict[str, Tensor]()
        histories = Histories.of(real, self.dynamics.inputs, cfg.history.length, step.fabric.device)
        if self.beta > 0:  # the model is new, and so is all that it imagines
            for left in range(cfg.branch.buffer, 0, -AT_ONCE):
                imagined.append(self._imagine(histories, real, step, min(left, AT_ONCE)))
        for part in world.interact(tasks, self, self.begin(len(tasks)), stretch, self.generator, cfg.sac.every):
            parts.append(part)
            histories.read()
            if self.beta > 0:
                imagined.append(self._imagine(histories, real, step, cfg.branch.per_step * part.numel()))
            for _ in range(round(cfg.sac.updates_per_step * part.numel())):
                metrics = self._learn(histories, imagined, step)
        out = {f"train/{name}": value for name, value in step.numbers(metrics).items()} | {"train/beta": self.beta}
        if len(imagined):
            # as often as branches end, so do episodes
            ends = {"reward": imagined.columns["reward"], "done": imagined.columns["terminated"]}
            whole = TensorDict({"next": ends}, batch_size=len(ends["done"]))[: len(imagined)]
            out["imagined/return"] = float(mean_return(whole, self.spec))
        return out | {"real/return": float(mean_return(torch.cat(parts, 1), self.spec))}

    def _imagine(self, histories: Histories, real: TaskBuffer, step: GradientStep, count: int) -> TensorDict:
        """Lines 7-10: `count` imagined transitions, in branches of k steps or in whole episodes."""
        branch, device = self.cfg.branch, step.fabric.device
        length = self.spec.horizon if branch.full else branch.length
        rollouts = max(count // length, 1)
        if branch.full:
            observation = real.start_states(rollouts, self.generator)
            inputs = no_history(rollouts, self.cfg.history.length, self.dynamics.inputs.pair_dim)
            inputs["current"] = self.dynamics.inputs.current(observation.to(device)).cpu()
            start = TensorDict({"inputs": inputs, "observation": observation}, batch_size=[rollouts])
        else:
            start = histories.before(histories.draw(rollouts, self.generator))
        act = partial(self._sample, self.generator)
        return branched_rollouts(self.dynamics, act, start.to(device), length, self.generator)

    def _learn(self, histories: Histories, imagined: Ring, step: GradientStep) -> dict[str, Tensor]:
        """Line 12: one SAC step on rows of which each is imagined with probability beta."""
        size, generator, pieces = self.cfg.sac.batch, self.generator, list[TensorDict]()
        count = drawn_share(size, self.beta, generator) if len(imagined) else 0
        if count:
            pieces.append(imagined.draw(count, generator))
        if count < size:
            pieces.append(histories.columns(histories.draw(size - count, generator)))
        batch: TensorDict = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
        batch["noise"] = self.policy.noise(size, generator)  # drawn for the whole batch, so that ranks share it out too
        batch = step.share(batch)
        return self.policy.update(transition(batch).set("noise", batch["noise"]), step, self.optimizers["sac"])
