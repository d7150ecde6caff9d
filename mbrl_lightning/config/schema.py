"""Every configuration key once: type, default, help text and limits, which for lists hold for every entry.

`free` marks keys that may change when a run is resumed, `architecture` those that decide network shapes, `path` those of
text that may begin with `~`.
"""

import functools
from dataclasses import Field, dataclass, field, fields, is_dataclass
from typing import Any

from mbrl_lightning.config import methods
from mbrl_lightning.config.option import option

NAME = "[a-z0-9_]+"
STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_true")
UNITS = ("relu", "tanh", "silu")


@dataclass
class EnvConfig:
    """Which task family."""

    name: str = option("", "task family", pattern=NAME)
    options: dict[str, Any] = option({}, "arguments of the task family, e.g. env.options.horizon=100")
    file: str | None = option(None, "Python file whose family(**options) returns your own task family", path=True)
    learned_reward: bool = option(False, "models learn the reward, which ends the observation", architecture=True)


@dataclass
class LoopConfig:
    """How real data are collected and how much is fitted to them."""

    iterations: int = option(12, "outer iterations; may grow when a run is resumed", minimum=1)
    tasks_per_iteration: int = option(5, "training tasks collected from in one iteration", minimum=1)
    redraw_every: int = option(1, "iterations after which new training tasks are drawn", minimum=1)
    exploration_steps: int = option(50, "random-policy transitions on each new task", minimum=0)
    episodes_per_task: int = option(2, "policy episodes per task and iteration", minimum=0)
    episode_steps: int | None = option(None, "real steps of each; null: the family's horizon", minimum=1)
    buffer: int = option(200_000, "real transitions kept", minimum=1)
    action_noise: float = option(0.1, "deviation of noise on collected actions, which span [-1, 1]", minimum=0)
    model_steps: int = option(400, "optimizer steps on the dynamics model per iteration", minimum=0)
    first_model_steps: int = option(800, "the same in the first iteration", minimum=0)
    last_model_steps: int = option(0, "extra optimizer steps on the dynamics model after the last iteration", minimum=0)
    evaluate_every: int | None = option(
        None, "iterations between meta-tests; null: a sixth of all; 0: only at the end", minimum=0
    )
    checkpoint_every: int = option(1, "iterations between checkpoints", minimum=1, free=True)
    keep: int = option(2, "checkpoints kept", minimum=1, free=True)
    figures_every: int = option(0, "iterations between figures; 0: only at the end", minimum=0, free=True)


@dataclass
class DynamicsConfig:
    """The dynamics model and its fitting."""

    latent_dim: int = option(8, "latent variables of a task, Z", minimum=1, architecture=True)
    width: int = option(32, "width of the context encoder", minimum=1, architecture=True)
    hidden: int = option(200, "width of the dynamics network", minimum=1, architecture=True)
    layers: int = option(2, "hidden layers of the dynamics network", minimum=0, maximum=100, architecture=True)
    activation: str = option("relu", "nonlinearity of the dynamics network", choices=UNITS, architecture=True)
    members: int = option(1, "ensemble members, E", minimum=1, architecture=True)
    message: str = option("sum", "how context points are pooled", choices=("sum", "mean"), architecture=True)
    kl_weight: float = option(1.0, "weight of the KL divergence in the evidence lower bound", minimum=0)
    scale: float = option(0.1, "deviation of the likelihood, in normalised units", above=0)
    learn_scale: bool = option(False, "learn that deviation", architecture=True)
    lr: float = option(1e-3, "learning rate", above=0)
    weight_decay: float = option(0.0, "weight decay", minimum=0)
    weight_norm: bool = option(False, "weight normalisation (ensembles of deterministic models)", architecture=True)
    persistence: float | None = option(None, "weight of the past in the error that stops a member", minimum=0, below=1)
    dropout: float = option(0.05, "share of the units that a mask drops (m_dpilco)", above=0, below=1)
    refresh_steps: int = option(20, "gradient steps of the network on an unseen task's context (m_dpilco)", minimum=0)
    refresh_lr: float = option(0.05, "their size, on mean squared errors of standardised targets", above=0)
    tasks: int = option(8, "tasks in one batch, M", minimum=1)
    context: int = option(64, "largest number of context transitions drawn, K", minimum=1)
    targets: int = option(64, "target transitions per task, N", minimum=1)
    particles: int = option(1, "latent samples in the loss, P", minimum=1)
    variance_weight: float = option(1.0, "power of its variance that weights an output", minimum=0, maximum=1)
    check_every: int = option(50, "optimizer steps between looks at held-out data (history models)", minimum=1)
    patience: int = option(5, "looks without improvement after which a head stops learning (history models)", minimum=1)


@dataclass
class PolicyConfig:
    """The policy network."""

    kind: str = option("mlp", "network", choices=("mlp", "rbf"), architecture=True)
    hidden: list[int] = option([64, 64], "hidden layers; for rbf the centres", minimum=1, architecture=True)
    activation: str = option("tanh", "nonlinearity", choices=UNITS, architecture=True)
    latent_gain: float = option(1.0, "factor on the latent at the policy's input", above=0)
    initial_std: float = option(0.6, "initial deviation of the actions", above=0)
    feedback: list[float] = option(
        [], "gains kp, kd of joint feedback that the policy's choice is added to; []: none", minimum=0
    )
    hold: int = option(1, "real steps for which a choice is kept", minimum=1)


@dataclass
class SearchConfig:
    """How the policy is improved."""

    method: str = option(
        "pathwise",
        "gradients through imagined rollouts, ppo in imagination, or sac on real and imagined steps",
        choices=("pathwise", "ppo", "sac"),
        architecture=True,
    )
    updates: int = option(60, "policy updates per iteration", minimum=0)
    horizon: int | None = option(None, "imagined steps, H; null: the family's horizon", minimum=1)
    tasks: int = option(16, "tasks imagined at once, M", minimum=1)
    rollouts: int = option(2, "rollouts per task, a multiple of dynamics.members", minimum=1)
    restarts: int = option(4, "policies searched at once (pathwise)", minimum=1, architecture=True)
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
    initial_starts: float = option(1.0, "share from initial states, not from the data", minimum=0, maximum=1)
    bounds: float = option(0.1, "imagined states are kept to the range of the data plus this share of it", minimum=0)
    moment_matching: bool = option(False, "particles are drawn anew from their moments at every step (pathwise)")
    noise: float = option(0.0, "factor on the model's own deviation in imagination; 0 predicts the mean", minimum=0)


@dataclass
class EvaluationConfig:
    """The meta-test."""

    episodes: int = option(1, "episodes per task and shot", minimum=1)
    context: int | None = option(None, "context transitions at shot 1; null: the family's", minimum=1)
    shots: list[float] = option([0.0, 0.5, 1.0, 2.0], "budgets, in multiples of the context", minimum=0, maximum=1e6)
    fine_tune_lr: float = option(5e-4, "learning rate of those updates", above=0)
    fine_tune_updates: int = option(30, "policy updates of methods that adapt by gradient", minimum=0)
    sampled: bool = option(True, "also test actions sampled from the policy")
    split: str = option("test", "tasks to test on: unseen ones, or fresh training draws", choices=("test", "train"))
    wrong_belief: bool = option(True, "also test with the belief of another task: tells adapting from ignoring")


@dataclass
class Config:
    """A whole run."""

    conf: str = option("", "name of a file in conf/ (without .yaml)", pattern=NAME)
    algorithm: str = option("gssm_aps", "name of a file in conf/algorithm/", pattern=NAME, architecture=True)
    algorithm_file: str | None = option(
        None, "Python file with a method of your own in place of algorithm, and its YAML beside it", path=True
    )
    preset: str | None = option(None, "settings on top: a file in conf/preset/, e.g. paper", pattern=NAME)
    seed: int = option(0, "root seed", minimum=0, maximum=2**32 - 1)
    seeds: str | None = option(None, "several seeds in one command: 0..4 or [0,3]", free=True)
    jobs: int = option(1, "seeds trained at the same time", minimum=1, maximum=1000, free=True)
    out: str = option("runs", "parent of the run folders", free=True, path=True)
    resume: str | None = option(None, "run folder to continue exactly where it stopped", free=True, path=True)
    init_from: str | None = option(None, "run folder to take weights from for a new run", path=True)
    data: list[str] = option([], "Minari datasets whose transitions are there before the first iteration")
    overwrite: bool = option(False, "replace the run that is in the folder", free=True)
    accelerator: str = option("cpu", "device kind", choices=("cpu", "cuda", "gpu", "mps", "auto"), free=True)
    devices: int = option(1, "devices per node", minimum=1, maximum=10000, free=True)
    num_nodes: int = option(1, "nodes", minimum=1, maximum=10000, free=True)
    strategy: str = option("auto", "Lightning strategy", choices=STRATEGIES, free=True)
    precision: str = option("32-true", "number format", choices=("32-true", "bf16-mixed"))
    compile: str = option(
        "false", "compile the losses; auto: on a GPU alone", choices=("auto", "true", "false"), free=True
    )
    threads: int = option(1, "CPU threads of PyTorch per process", minimum=1, maximum=1024, free=True)
    logger: list[str] = option(
        ["csv"],
        "where the numbers go beside results.csv, e.g. csv,wandb",
        choices=("csv", "tensorboard", "wandb", "mlflow"),
        free=True,
    )
    video: bool = option(False, "record the policy at the end", free=True)
    allow_overlap: bool = option(False, "allow test tasks that are also training tasks")
    env: EnvConfig = field(default_factory=EnvConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    dynamics: DynamicsConfig = field(default_factory=DynamicsConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    history: methods.HistoryConfig = field(default_factory=methods.HistoryConfig)
    sac: methods.SACConfig = field(default_factory=methods.SACConfig)
    branch: methods.BranchConfig = field(default_factory=methods.BranchConfig)
    pearl: methods.PearlConfig = field(default_factory=methods.PearlConfig)
    planner: methods.PlannerConfig = field(default_factory=methods.PlannerConfig)
    meta: methods.MetaConfig = field(default_factory=methods.MetaConfig)
    l2a: methods.L2AConfig = field(default_factory=methods.L2AConfig)
    variational: methods.VariationalConfig = field(default_factory=methods.VariationalConfig)
    famle: methods.FAMLEConfig = field(default_factory=methods.FAMLEConfig)
    cadm: methods.CaDMConfig = field(default_factory=methods.CaDMConfig)
    admrl: methods.AdMRLConfig = field(default_factory=methods.AdMRLConfig)
    mier: methods.MIERConfig = field(default_factory=methods.MIERConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


FIELDS: dict[str, Field[Any]] = {}
for _entry in fields(Config):
    _own = fields(_entry.type) if isinstance(_entry.type, type) and is_dataclass(_entry.type) else ()
    FIELDS |= {f"{_entry.name}.{each.name}": each for each in _own} or {_entry.name: _entry}
SECTIONS = {key.rpartition(".")[0] for key in FIELDS} - {""}
OPEN = "env.options"  # the one mapping whose keys belong to the task family, not to the schema
_RUN = "iterations buffer evaluate_every checkpoint_every keep figures_every"
EVERY = {  # what every run reads, whatever the algorithm
    *(key for key in FIELDS if "." not in key or key.startswith("env.")),
    *(f"loop.{name}" for name in _RUN.split()),
    *("evaluation.episodes", "evaluation.sampled", "evaluation.split"),
}


def get(config: Config, key: str) -> Any:
    """Value of a dotted key."""
    return functools.reduce(getattr, key.split("."), config)


def short(value: Any) -> str:
    """A value as text for a message, of a length that can be read."""
    text = str(value)
    return text if len(text) <= 100 else f"{text[:80]}... ({len(text)} characters)"
