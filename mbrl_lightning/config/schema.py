"""Every configuration key once: type, default, help text and range. `config.py` fills and checks it.

`option` attaches to a field what the command line needs: `minimum` and `maximum` (inclusive), `above` and
`below` (exclusive), `choices`, `pattern` (what a name may look like); for lists they hold for every entry;
`why` is what the error adds where a limit needs a reason.
`free` marks keys that may change when a run is resumed, `architecture` those that decide network shapes.
"""

import functools
from collections.abc import Iterator
from dataclasses import Field, dataclass, field, fields, is_dataclass
from typing import Any

NAME = "[a-z0-9_]+"
ENVIRONMENTS = (
    "cartpole",
    "acrobot",
    "half_cheetah",
    "slim_humanoid",
    "cartpole_wide",
    "half_cheetah_wide",
    "half_cheetah_flip",
    "point_switch",
    "half_cheetah_fwd_bwd",
    "half_cheetah_pier",
    "ant_fwd_bwd",
    "ant_crippled_leg",
    "walker2d_random_params",
    "humanoid_direc",
)


def option(default: Any, help: str, **limits: Any) -> Any:
    """A dataclass field with help text and limits in its metadata; mutable defaults are copied."""
    metadata = {"help": help, **limits}
    if isinstance(default, (list, dict)):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class EnvConfig:
    """Which task family."""

    name: str = option("", "task family", pattern=NAME)
    options: dict[str, Any] = option({}, "arguments of the task family, e.g. env.options.horizon=100")
    file: str | None = option(None, "Python file whose family(**options) returns your own task family")


@dataclass
class LoopConfig:
    """How real data are collected and how much is fitted to them."""

    iterations: int = option(12, "outer iterations; may grow when a run is resumed", minimum=1)
    tasks_per_iteration: int = option(5, "training tasks collected from in one iteration", minimum=1)
    redraw_every: int = option(1, "iterations after which new training tasks are drawn", minimum=1)
    exploration_steps: int = option(50, "random-policy transitions on each new task", minimum=0)
    episodes_per_task: int = option(2, "policy episodes per task and iteration", minimum=0)
    episode_steps: int | None = option(
        None,
        "real steps of each; an episode that ends earlier begins anew; null: the family's horizon",
        minimum=1,
    )
    buffer: int = option(200_000, "real transitions kept", minimum=1)
    action_noise: float = option(
        0.1, "deviation of the noise added to collected actions (actions span [-1, 1])", minimum=0
    )
    model_steps: int = option(400, "optimizer steps on the dynamics model per iteration", minimum=0)
    first_model_steps: int = option(800, "the same in the first iteration", minimum=0)
    last_model_steps: int = option(0, "extra optimizer steps on the dynamics model after the last iteration", minimum=0)
    evaluate_every: int = option(0, "iterations between meta-tests; 0: only at the end", minimum=0)
    checkpoint_every: int = option(1, "iterations between checkpoints", minimum=1, free=True)
    keep: int = option(2, "checkpoints kept", minimum=1, free=True)
    figures_every: int = option(0, "iterations between figures; 0: only at the end", minimum=0, free=True)


@dataclass
class DynamicsConfig:
    """The dynamics model and its fitting."""

    latent_dim: int = option(8, "latent variables of a task, Z", minimum=1, architecture=True)
    width: int = option(32, "width of the context encoder", minimum=1, architecture=True)
    encoder_layers: int = option(2, "hidden layers of the context encoder", minimum=0, architecture=True)
    hidden: int = option(200, "width of the dynamics network", minimum=1, architecture=True)
    layers: int = option(2, "hidden layers of the dynamics network", minimum=0, architecture=True)
    members: int = option(1, "ensemble members, E", minimum=1, architecture=True)
    message: str = option(
        "sum", "how messages of context points are pooled", choices=("sum", "mean"), architecture=True
    )
    beta: float = option(1.0, "sharpness of the attention between points", above=0)
    learn_beta: bool = option(False, "learn that sharpness", architecture=True)
    kl_weight: float = option(1.0, "weight of the KL divergence in the evidence lower bound", minimum=0)
    scale: float = option(0.1, "deviation of the likelihood, in normalised units", above=0)
    learn_scale: bool = option(False, "learn that deviation", architecture=True)
    lr: float = option(1e-3, "learning rate", above=0)
    max_grad_norm: float = option(10.0, "gradients are clipped to this norm; 0: never", minimum=0)
    weight_decay: float = option(0.0, "weight decay", minimum=0)
    tasks: int = option(8, "tasks in one batch, M", minimum=1)
    context: int = option(64, "largest number of context transitions drawn, K", minimum=1)
    targets: int = option(64, "target transitions per task, N", minimum=1)
    particles: int = option(1, "latent samples in the loss, P", minimum=1)
    variance_weight: float = option(
        1.0,
        "power of its own predicted variance that weights an output's likelihood (history models); 0: the plain likelihood",
        minimum=0,
        maximum=1,
    )
    check_every: int = option(50, "optimizer steps between looks at held-out data (history models)", minimum=1)
    patience: int = option(5, "looks without improvement after which a head stops learning (history models)", minimum=1)


@dataclass
class PolicyConfig:
    """The policy network."""

    kind: str = option("mlp", "network", choices=("mlp", "rbf"), architecture=True)
    hidden: list[int] = option(
        [64, 64], "widths of the hidden layers; for rbf the number of centres", minimum=1, architecture=True
    )
    activation: str = option("tanh", "nonlinearity", choices=("relu", "tanh", "silu"), architecture=True)
    latent_gain: float = option(
        1.0, "factor on the latent at the policy's input: how fast it learns to use the belief", above=0
    )
    initial_std: float = option(0.6, "initial deviation of the actions", above=0)


@dataclass
class SearchConfig:
    """How the policy is improved."""

    method: str = option("pathwise", "gradients through imagined rollouts, or ppo", choices=("pathwise", "ppo"))
    updates: int = option(60, "policy updates per iteration", minimum=0)
    horizon: int | None = option(None, "imagined steps, H; null: the family's horizon", minimum=1)
    tasks: int = option(16, "tasks imagined at once, M", minimum=1)
    rollouts: int = option(2, "rollouts per task, a multiple of dynamics.members", minimum=1)
    restarts: int = option(
        4, "policies searched at once from different weights (pathwise)", minimum=1, architecture=True
    )
    holdout: int = option(0, "ensemble members kept out of the search, to choose among restarts", minimum=0)
    segments: int = option(10, "updates for which imagined streams run on before they are drawn anew (ppo)", minimum=1)
    lr: float = option(1e-2, "learning rate", above=0)
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm", above=0)
    gamma: float = option(0.99, "discount per step", above=0, maximum=1)
    lam: float = option(0.95, "lambda of the advantage estimate (ppo)", minimum=0, maximum=1)
    epochs: int = option(4, "passes over each batch (ppo)", minimum=1)
    minibatch: int = option(3200, "transitions per step (ppo)", minimum=1)
    clip_epsilon: float = option(0.2, "clip range of the probability ratio (ppo)", above=0, below=1)
    entropy: float = option(0.0, "weight of the entropy bonus (ppo)", minimum=0)
    target_kl: float | None = option(0.03, "stop the epochs beyond this KL divergence (ppo); null: never", above=0)
    initial_starts: float = option(
        1.0, "share of rollouts from initial states; the others start in the data", minimum=0, maximum=1
    )
    bounds: float = option(0.1, "imagined states are kept to the range of the data plus this share of it", minimum=0)
    noise: float = option(0.0, "factor on the model's own deviation in imagination; 0 predicts the mean", minimum=0)


@dataclass
class HistoryConfig:
    """What is remembered of an episode, and how (M3PO section 4)."""

    length: int = option(10, "pairs of observation and action remembered, L", minimum=1)
    hidden: int = option(5, "width of the recurrent unit that reads them", minimum=1, architecture=True)
    model: bool = option(True, "the dynamics model sees the history; false: M2PO", architecture=True)


@dataclass
class SACConfig:
    """Soft actor-critic."""

    lr: float = option(1e-3, "learning rate", above=0)
    gamma: float = option(0.98, "discount per step", minimum=0, maximum=1)
    tau: float = option(0.005, "share of the way that the target networks go in one update", above=0, maximum=1)
    batch: int = option(256, "transitions in one update, N", minimum=1)
    updates_per_step: float = option(1.0, "updates per real step, G", minimum=0)
    every: int = option(25, "real steps between two phases of updates", minimum=1)
    warmup_steps: int = option(500, "real steps of random actions before the first update", minimum=0)
    warmup_hold: int = option(5, "steps for which such an action is held", minimum=1)
    alpha: float | None = option(None, "temperature; null: tuned to the target entropy", above=0)
    initial_alpha: float = option(0.2, "temperature that tuning starts from", above=0)
    target_entropy: float | None = option(
        None, "entropy that the temperature is tuned to; null: minus the action width"
    )
    reward_scale: float = option(1.0, "factor on the rewards in the targets of the Q networks", above=0)


@dataclass
class BranchConfig:
    """Imagined transitions that branch off real ones, and their share in the updates (M3PO Algorithm 2)."""

    length: int = option(1, "imagined steps of a branch, k", minimum=1, why="C_Th2 is for k >= 1: 0 imagines nothing")
    full: bool = option(False, "whole imagined episodes from initial states in place of branches")
    per_step: int = option(100, "branches per real step, M", minimum=0)
    explore: float = option(
        0.0, "share of imagined actions that are uniformly random: SAC learns what it did not do", minimum=0, maximum=1
    )
    buffer: int = option(20_000, "imagined transitions kept", minimum=1)
    beta: float = option(1.0, "share of imagined transitions in an update; 0: real ones alone", minimum=0, maximum=1)
    beta_from: int | None = option(
        None, "iteration in which that share begins to fall (M3PO-h); null: never", minimum=0
    )
    beta_to: int | None = option(None, "iteration in which it has reached 0", minimum=1)


@dataclass
class PearlConfig:
    """PEARL: what is inferred of a task, from what, and how often."""

    latent_dim: int = option(5, "latent variables of a task, Z", minimum=1, architecture=True)
    hidden: list[int] = option([128, 128], "widths of the encoder's hidden layers", minimum=1, architecture=True)
    next_observation: bool = option(True, "the encoder sees next observations too", architecture=True)
    kl_weight: float = option(0.1, "weight of the KL divergence from the prior", minimum=0)
    context: int = option(64, "transitions in a context, K", minimum=1)
    recent: int = option(500, "newest exploratory transitions of a task that contexts are drawn from", minimum=1)
    hold: int = option(
        50, "steps for which a latent of the prior is kept, and of any where tasks switch inside episodes", minimum=1
    )
    prior_share: float = option(0.5, "share of the real steps taken with a latent of the prior", above=0, maximum=1)
    meta_batch: int = option(4, "tasks in one update, of sac.batch // meta_batch transitions each, M", minimum=1)


@dataclass
class EvaluationConfig:
    """The meta-test."""

    episodes: int = option(1, "episodes per task and shot", minimum=1)
    context: int | None = option(None, "context transitions at shot 1; null: the family's", minimum=1)
    shots: list[float] = option([0.0, 0.5, 1.0, 2.0], "adaptation budgets, in multiples of the context", minimum=0)
    fine_tune_lr: float = option(5e-4, "learning rate of those updates", above=0)
    fine_tune_updates: int = option(30, "policy updates of methods that adapt by gradient", minimum=0)
    sampled: bool = option(True, "also test actions sampled from the policy")
    split: str = option(
        "test",
        "tasks to test on: unseen ones, or fresh draws of the training range (for tuning)",
        choices=("test", "train"),
    )
    wrong_belief: bool = option(True, "also test with the belief of another task: tells adapting from ignoring")


@dataclass
class Config:
    """A whole run."""

    conf: str = option("", "name of a file in conf/ (without .yaml)", pattern=NAME)
    algorithm: str = option(
        "gssm_aps", "name of a file in conf/algorithm/ (without .yaml)", pattern=NAME, architecture=True
    )
    seed: int = option(0, "root seed", minimum=0, maximum=2**32 - 1)
    seeds: str | None = option(None, "several seeds in one command: 0..4 or [0,3]", free=True)
    jobs: int = option(1, "seeds trained at the same time", minimum=1, free=True)
    out: str = option("runs", "parent of the run folders", free=True)
    resume: str | None = option(None, "run folder to continue exactly where it stopped", free=True)
    init_from: str | None = option(None, "run folder to take weights from for a new run")
    overwrite: bool = option(False, "replace the run that is in the folder", free=True)
    accelerator: str = option("cpu", "device kind", choices=("cpu", "cuda", "gpu", "mps", "auto"), free=True)
    devices: int = option(1, "devices per node", minimum=1, free=True)
    num_nodes: int = option(1, "nodes", minimum=1, free=True)
    strategy: str = option(
        "auto", "Lightning strategy", choices=("auto", "ddp", "ddp_find_unused_parameters_true"), free=True
    )
    precision: str = option(
        "32-true",
        "number format",
        choices=("32-true", "bf16-mixed"),
    )
    threads: int = option(1, "CPU threads of PyTorch per process", minimum=1, free=True)
    tensorboard: bool = option(False, "also write TensorBoard events", free=True)
    video: bool = option(False, "record the policy at the end", free=True)
    allow_overlap: bool = option(False, "allow test tasks that are also training tasks")
    env: EnvConfig = field(default_factory=EnvConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    dynamics: DynamicsConfig = field(default_factory=DynamicsConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    history: HistoryConfig = field(default_factory=HistoryConfig)
    sac: SACConfig = field(default_factory=SACConfig)
    branch: BranchConfig = field(default_factory=BranchConfig)
    pearl: PearlConfig = field(default_factory=PearlConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


def _leaves(section: type, prefix: str = "") -> Iterator[tuple[str, Field[Any]]]:
    for entry in fields(section):
        if isinstance(entry.type, type) and is_dataclass(entry.type):
            yield from _leaves(entry.type, f"{prefix}{entry.name}.")
        else:
            yield prefix + entry.name, entry


FIELDS: dict[str, Field[Any]] = dict(_leaves(Config))
SECTIONS = {key.rpartition(".")[0] for key in FIELDS} - {""}
OPEN = "env.options"  # the one mapping whose keys belong to the task family, not to the schema


def get(config: Config, key: str) -> Any:
    """Value of a dotted key."""
    return functools.reduce(getattr, key.split("."), config)
