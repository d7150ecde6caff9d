"""`python -m benchmarks peers`: the same work by libraries of others, as they come, in turn on one thread.

Sizes, batches and activations are the same on both sides; initial weights and draws are not, as each side has its own.
mbrl-lib asks for a gymnasium of 2022, hence without its dependencies; what it needs of them is in the extra.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from functools import partial
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import torch
from lightning.fabric import Fabric
from tensordict import TensorDict
from torch import Tensor

from benchmarks.branching import Branching
from benchmarks.measure import Ratio, compare, ratio
from mbrl_lightning.beliefs.history import no_history
from mbrl_lightning.config import compose
from mbrl_lightning.config.methods import SACConfig
from mbrl_lightning.config.schema import PolicyConfig, SearchConfig
from mbrl_lightning.data.ring import Ring
from mbrl_lightning.envs import make_family
from mbrl_lightning.models.base import MAX_GRAD_NORM
from mbrl_lightning.models.recurrent import HistoryDynamics
from mbrl_lightning.networks.step import GradientStep
from mbrl_lightning.policies.heads import Policy
from mbrl_lightning.policies.ppo import PPO
from mbrl_lightning.policies.sac import SAC

NEEDS = "pip install 'mbrl-lightning[peers]' && pip install --no-deps mbrl hydra-core"
OURS, LIB, SB3 = "ours", "mbrl-lib", "stable-baselines3"
PACKAGES = {"mbrl": LIB, "stable-baselines3": SB3}
FAMILY, OBSERVATION, ACTION = "half_cheetah_fwd_bwd", 18, 6
NUMBERS = np.random.default_rng(0)


class Box(gymnasium.Env):
    """Spaces of half-cheetah's sizes around random numbers, for those who take an environment."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (OBSERVATION,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (ACTION,), np.float32)

    def reset(self, **_: Any) -> tuple[np.ndarray, dict]:
        """Anywhere."""
        return NUMBERS.standard_normal(OBSERVATION, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Anywhere else."""
        return self.reset()[0], float(NUMBERS.standard_normal()), False, False, {}


def stepper() -> GradientStep:
    """On one CPU."""
    return GradientStep(Fabric(accelerator="cpu", devices=1))


def gaussian_mlp(inputs: int, outputs: int, members: int, layers: int, hidden: int) -> Any:
    """mbrl-lib's ensemble, as MBPO builds it."""
    models = importlib.import_module("mbrl.models")
    shape = {"num_layers": layers, "ensemble_size": members, "hid_size": hidden}
    silu = {"_target_": "torch.nn.SiLU"}
    return models.GaussianMLP(
        inputs, outputs, "cpu", **shape, propagation_method="random_model", activation_fn_cfg=silu
    )


def wrapped(model: Any) -> Any:
    """It with standardised inputs and changes as targets; the reward is the environment's."""
    models = importlib.import_module("mbrl.models")
    return models.OneDTransitionRewardModel(model, target_is_delta=True, normalize=True, learned_rewards=False)


def ensemble(repeats: int, members: int, layers: int, hidden: int, rows: int = 256) -> list[Ratio]:
    """Update and forward pass of Gaussian heads on rows that all see, and imagination in which each row asks one."""
    sizes = {"members": members, "layers": layers, "hidden": hidden}
    cfg, spec, draw = compose({"conf": FAMILY, "algorithm": "m2po", "dynamics": sizes}), make_family(FAMILY).spec, rng()
    ours = HistoryDynamics(spec, cfg.dynamics, cfg.history)
    theirs = gaussian_mlp(spec.feature_dim + spec.action_dim, spec.target_dim, **sizes)
    seen, action = (
        torch.randn(rows, spec.feature_dim, generator=draw),
        torch.rand(rows, spec.action_dim, generator=draw),
    )
    target = torch.randn(rows, spec.target_dim, generator=draw)
    x, y = torch.cat([seen, action], -1).expand(members, -1, -1), target.expand(members, -1, -1)
    learned = {"inputs": {"current": seen}, "action": action, "target": target, "weight": torch.ones(rows, members)}
    batch, step, mine = TensorDict(learned, batch_size=[rows]), stepper(), ours.configure_optimizers()
    adam, name = torch.optim.Adam(theirs.parameters(), lr=1e-3), f"{members} heads of {layers} x {hidden}"
    update = {
        OURS: lambda: step(partial(ours.training_step, batch), mine, MAX_GRAD_NORM, stacked=True),
        LIB: lambda: theirs.update(x, adam, y),
    }
    found = [ratio("peers", f"update, {name}, {rows} rows", compare(update, repeats, 10), LIB, OURS, floor=1.0)]
    forward = {
        OURS: torch.no_grad()(lambda: ours(batch["inputs"], action)),
        LIB: torch.no_grad()(lambda: theirs.forward(x, use_propagation=False)),
    }
    found.append(ratio("peers", f"forward, {name}, {rows} rows", compare(forward, repeats, 20), LIB, OURS, floor=1.0))
    count = 250 * 3 * members
    state, act = torch.randn(count, spec.observation_dim, generator=draw), torch.rand(count, ACTION, generator=draw)
    belief = no_history(count, cfg.history.length, ours.inputs.pair_dim)
    lib = wrapped(gaussian_mlp(x.shape[-1], spec.feature_dim, **sizes))

    def imagine() -> Tensor:
        head = torch.randint(members, (count, 1), generator=draw)
        noise = torch.randn(count, 1, spec.target_dim, generator=draw)
        return ours.imagine(state.unsqueeze(1), act.unsqueeze(1), belief, head, noise)

    features = torch.randn(count, spec.feature_dim, generator=draw)
    begun = lib.reset(features, rng=draw)
    asked = torch.no_grad()(lambda: lib.sample(act, begun, deterministic=False, rng=draw))
    seconds = compare({OURS: imagine, LIB: asked}, repeats, 5)
    return [*found, ratio("peers", f"imagination, {name}, {count:,} rows", seconds, LIB, OURS, floor=1.3)]


def actor_critic(repeats: int, hidden: list[int], rows: int = 256) -> list[Ratio]:
    """An update of SAC with its draw from a buffer."""
    sb3, draw, held = importlib.import_module("stable_baselines3"), rng(), 20_000
    theirs = sb3.SAC("MlpPolicy", Box(), buffer_size=held, policy_kwargs={"net_arch": hidden}, device="cpu")
    theirs.set_logger(importlib.import_module("stable_baselines3.common.logger").Logger(None, []))
    buffer = theirs.replay_buffer
    for column in (buffer.observations, buffer.next_observations, buffer.actions, buffer.rewards):
        column[:] = NUMBERS.uniform(-1, 1, column.shape)
    buffer.full = True
    ours = SAC(PolicyConfig(hidden=hidden, activation="relu"), SACConfig(), 1, OBSERVATION, ACTION, recurrent=0)
    step, adam, ring = stepper(), torch.optim.Adam(ours.trained_parameters(), lr=3e-4, fused=True), Ring(held)
    widths = {"before": OBSERVATION, "after": OBSERVATION, "action": ACTION, "reward": 1, "terminated": 1}
    columns = {name: torch.rand(held, width, generator=draw) for name, width in widths.items()}
    ring.append(TensorDict(columns, batch_size=[held]))

    def update() -> None:
        row = ring.draw(rows, draw)
        after = {"inputs": {"current": row["after"]}, "reward": row["reward"], "terminated": row["terminated"]}
        batch = {"inputs": {"current": row["before"]}, "action": row["action"], "next": after}
        ours.update(TensorDict(batch | {"noise": ours.noise(rows, draw)}, batch_size=[rows]), step, adam)

    sides = {OURS: update, SB3: lambda: theirs.train(gradient_steps=1, batch_size=rows)}
    case = f"SAC, one update of {rows} rows, hidden {hidden}"
    return [ratio("peers", case, compare(sides, repeats, 10), SB3, OURS, floor=1.0)]


def proximal(repeats: int, epochs: int, minibatch: int, rows: int = 2048) -> list[Ratio]:
    """Epochs of PPO on one rollout."""
    sb3, draw, spec = importlib.import_module("stable_baselines3"), rng(), make_family(FAMILY).spec
    shape = {"n_steps": rows, "batch_size": minibatch, "n_epochs": epochs}
    theirs = sb3.PPO("MlpPolicy", Box(), **shape, device="cpu")
    _, callback = theirs._setup_learn(rows)
    theirs.set_logger(importlib.import_module("stable_baselines3.common.logger").Logger(None, []))
    theirs.collect_rollouts(theirs.env, callback, theirs.rollout_buffer, rows)
    cfg = SearchConfig(epochs=epochs, minibatch=minibatch, target_kl=None, max_grad_norm=0.5, clip_epsilon=0.2)
    sizes = PolicyConfig(hidden=[64, 64], activation="tanh")
    policy = Policy(spec, sizes, 0)
    ppo, step = PPO(policy, cfg, sizes), stepper()
    adam = torch.optim.Adam([*policy.parameters(), *ppo.value.parameters()], lr=3e-4, fused=True)
    inputs = torch.randn(rows, spec.feature_dim, generator=draw)
    with torch.no_grad():
        data = ppo.sample(policy, torch.randn(rows, spec.observation_dim, generator=draw), inputs[:, :0], draw)
    data |= {"seen": data["inputs"], "time": torch.rand(rows, 1, generator=draw)}
    data |= {name: torch.randn(rows, 1, generator=draw) for name in ("advantage", "value_target")}
    batch = TensorDict(data, batch_size=[rows])
    sides = {OURS: lambda: ppo.learn(policy, batch, step, adam, draw), SB3: theirs.train}
    case = f"PPO, {epochs} epochs of {minibatch} on {rows:,} rows, hidden [64, 64]"
    return [ratio("peers", case, compare(sides, max(repeats // 3, 3), 1), SB3, OURS, floor=1.2 if epochs > 1 else 1.0)]


def real_step(repeats: int, recurrent: bool) -> list[Ratio]:
    """What M2PO and MBPO compute for 25 real steps: branches of one step, and 25 updates; no fit and no simulator.

    MBPO's policy and Q functions have no recurrent unit, M2PO's have (M3PO section A.9): the same networks are those without.
    """
    work, draw = Branching("m2po", recurrent), rng()
    cfg, algorithm, step = work.algorithm.cfg, work.algorithm, stepper()
    rows, size = cfg.branch.per_step * cfg.sac.every, cfg.policy.hidden[0]
    imagined = Ring(cfg.branch.buffer)
    imagined.append(algorithm._imagine(work.histories, work.real, step, cfg.branch.buffer))

    def ours() -> None:
        imagined.append(algorithm._imagine(work.histories, work.real, step, rows))
        for _ in range(cfg.sac.every):
            algorithm._learn(work.histories, imagined, step)

    models, util = importlib.import_module("mbrl.models"), importlib.import_module("mbrl.util.replay_buffer")
    mbpo = importlib.import_module("mbrl.algorithms.mbpo")
    shape = {"gamma": 0.99, "tau": 0.005, "alpha": 0.2, "lr": 3e-4, "hidden_size": size, "device": "cpu"}
    more = {"policy": "Gaussian", "target_update_interval": 1, "automatic_entropy_tuning": True, "target_entropy": -6.0}
    sac = mbpo.pytorch_sac_pranz24.SAC(OBSERVATION, Box.action_space, SimpleNamespace(**shape, **more))
    agent, dims = mbpo.SACAgent(sac), ((OBSERVATION,), (ACTION,))
    sizes = cfg.dynamics.members, cfg.dynamics.layers, cfg.dynamics.hidden
    model = wrapped(gaussian_mlp(OBSERVATION + ACTION, OBSERVATION, *sizes))

    def ends(action: Tensor, following: Tensor) -> Tensor:
        return torch.zeros(len(following), 1, dtype=torch.bool)

    env = models.ModelEnv(Box(), model, ends, lambda action, following: following[:, :1], generator=draw)
    real, held = (util.ReplayBuffer(cfg.branch.buffer, *dims, rng=np.random.default_rng(0)) for _ in range(2))
    noise = NUMBERS.standard_normal((cfg.branch.buffer, OBSERVATION), np.float32)
    flat = np.zeros(len(noise))
    for buffer in (real, held):
        buffer.add_batch(noise, noise[:, :ACTION], noise, flat, flat.astype(bool), flat.astype(bool))

    def theirs() -> None:
        mbpo.rollout_model_and_populate_sac_buffer(env, real, agent, held, True, 1, rows)
        for _ in range(cfg.sac.every):
            sac.update_parameters(held, cfg.sac.batch, 0, None, reverse_mask=True)

    case = f"{cfg.sac.every} real steps: {rows} branches, {cfg.sac.every} updates of {cfg.sac.batch}; MBPO"
    case += " and M2PO, whose policy and Q functions read windows" if recurrent else ", the same networks"
    seconds = compare({OURS: ours, LIB: theirs}, max(repeats // 3, 3), 1)
    return [ratio("peers", case, seconds, LIB, OURS, floor=None if recurrent else 1.3)]


def rng() -> torch.Generator:
    """The same each time."""
    return torch.Generator().manual_seed(0)


def versions() -> dict[str, str]:
    """Of the peers that are installed, by the names that the table has."""
    found = {}
    for package, name in PACKAGES.items():
        try:
            found[name] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            print(f"{name} is not installed and left out; {NEEDS}")
    return found


def run(repeats: int) -> list[Ratio]:
    """All that the installed peers have a counterpart of."""
    there, found = versions(), list[Ratio]()
    if LIB in there:
        for sizes in ((3, 2, 128), (7, 4, 200)):
            found += ensemble(repeats, *sizes)
        found += [*real_step(repeats, recurrent=False), *real_step(repeats, recurrent=True)]
    if SB3 in there:
        for hidden in ([128, 128], [256, 256]):
            found += actor_critic(repeats, hidden)
        for epochs, minibatch in ((1, 64), (10, 64), (10, 256)):
            found += proximal(repeats, epochs, minibatch)
    return found
