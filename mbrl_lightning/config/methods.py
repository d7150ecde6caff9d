"""Configuration keys of single families of methods; `schema` has those that all share, and puts them together."""

from dataclasses import dataclass

from mbrl_lightning.config.option import option

ADAPTATIONS = ("gradient", "recurrent", "none")  # weights after inner steps, a recurrent state, nothing


@dataclass
class HistoryConfig:
    """What is remembered of an episode, and how (M3PO section 4)."""

    length: int = option(10, "pairs of observation and action remembered, L", minimum=1)
    hidden: int = option(5, "width of the recurrent unit that reads them", minimum=1, architecture=True)
    model: bool = option(True, "the dynamics model sees the history; false: M2PO", architecture=True)
    squares: bool = option(False, "it also sees each action's square, of which effort is a sum", architecture=True)


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
    target_entropy: float | None = option(None, "entropy to tune to; null: minus the action width")
    reward_scale: float = option(1.0, "factor on the rewards in the targets of the Q networks", above=0)
    initial_alpha: float = option(0.2, "temperature that tuning starts from", above=0)
    layer_norm: bool = option(False, "normalise the hidden layers of policy and Q networks", architecture=True)
    policy_delay: int = option(1, "updates of the Q networks for each of the policy", minimum=1)
    mirror: bool = option(False, "learn from each transition's mirror image too")


@dataclass
class BranchConfig:
    """Imagined transitions that branch off real ones, and their share in the updates (M3PO Algorithm 2)."""

    length: int = option(1, "imagined steps of a branch, k", minimum=1, why="C_Th2 is for k >= 1: 0 imagines nothing")
    full: bool = option(False, "whole imagined episodes from initial states in place of branches")
    per_step: int = option(100, "branches per real step, M", minimum=0)
    buffer: int = option(20_000, "imagined transitions kept", minimum=1)
    beta: float = option(1.0, "share of imagined transitions in an update; 0: real ones alone", minimum=0, maximum=1)
    beta_from: int | None = option(None, "iteration in which that share begins to fall; null: never", minimum=0)
    beta_to: int | None = option(None, "iteration in which it has reached 0", minimum=1)


@dataclass
class PearlConfig:
    """PEARL and PE-PPO: what is inferred of a task, from what, and how often."""

    latent_dim: int = option(5, "latent variables of a task, Z", minimum=1, architecture=True)
    hidden: list[int] = option([128, 128], "widths of the encoder's hidden layers", minimum=1, architecture=True)
    kl_weight: float = option(0.1, "weight of the KL divergence from the prior", minimum=0)
    pooling: str = option("mean", "how a context is pooled (pe_ppo)", choices=("mean", "product"), architecture=True)
    context: int = option(64, "transitions in a context, K", minimum=1)
    recent: int = option(500, "newest exploratory transitions of a task that contexts are drawn from", minimum=1)
    hold: int = option(50, "steps for which a latent is kept (prior, or tasks that switch)", minimum=1)
    prior_share: float = option(0.5, "share of the real steps taken with a latent of the prior", above=0, maximum=1)
    meta_batch: int = option(4, "tasks in one update, of sac.batch // meta_batch transitions each, M", minimum=1)


@dataclass
class MetaConfig:
    """Gradient adaptation of policies and the outer step, in a trust region or towards them (MB-MPO, ME-TRPO, TRPO, MAML)."""

    inner_lr: float = option(0.1, "inner step size on mean losses; 0: no adaptation", minimum=0)
    inner_steps: int = option(1, "inner steps, each on trajectories of its own; 0: none", minimum=0, maximum=1000)
    updates: int = option(30, "outer steps per iteration", minimum=0)
    rollouts: int = option(20, "trajectories per task (a model, in MB-MPO) and phase", minimum=1)
    outer_lr: float = option(
        1.0, "share of the way to adapted parameters, falling linearly (reptile)", above=0, maximum=1
    )
    delta: float = option(0.01, "largest KL divergence of an outer step", above=0)
    cg_steps: int = option(10, "conjugate gradient iterations", minimum=1)
    damping: float = option(1e-5, "added to the diagonal of the Fisher matrix", minimum=0)
    decay: float = option(0.95, "share of the old in the running Kronecker factors (acktr)", minimum=0, below=1)
    subsample: int = option(10, "every how manieth row is in the Fisher products", minimum=1)
    random_model: bool = option(False, "a model drawn at random for every step (ME-TRPO); false: a model is a task")
    collectors: str = option("adapted", "the policies that collect real data", choices=("adapted", "prior"))
    bias: float = option(0.0, "b_max: models are off by U(0, b_max) deviations of a step's change", minimum=0)
    noise: float = option(0.0, "noise added to every imagined step, in deviations of a step's change", minimum=0)


@dataclass
class WindowConfig:
    """The past that a model adapts to, and the future that it is to predict."""

    past: int = option(16, "transitions that are adapted to, M", minimum=1)
    future: int = option(16, "transitions that are to be predicted then, K", minimum=1)
    segments: int = option(32, "segments of M + K transitions in one batch", minimum=1)


@dataclass
class L2AConfig(WindowConfig):
    """Online adaptation of a model to what just happened (L2A: GrBAL, ReBAL)."""

    adaptation: str = option("gradient", "what a belief is", choices=ADAPTATIONS, architecture=True)
    inner_lr: float = option(1.0, "inner step size, on mean squared errors of standardised targets", minimum=0)
    size_lr: float = option(0.02, "learning rate of the step sizes, where they are learned", above=0)
    inner_steps: int = option(1, "inner steps; 0: no adaptation", minimum=0, maximum=1000)
    learned: bool = option(True, "learn the step size of each layer, from that one on", architecture=True)
    adapts: str = option("all", "what inner steps change", choices=("all", "weights", "gains"), architecture=True)
    hidden: int = option(64, "width of the recurrent state", minimum=1, architecture=True)


@dataclass
class VariationalConfig:
    """A free Gaussian for each task, and its inference at test time (variational, ghp_mdp)."""

    latent_lr: float = option(0.01, "learning rate of the training tasks' Gaussians", above=0)
    memory: int = option(40, "last transitions that a test task's Gaussian is inferred from", minimum=1)
    context_steps: int = option(60, "gradient steps on it after a context; 0: none", minimum=0, maximum=100_000)
    steps: int = option(2, "the same inside an episode, each time", minimum=0, maximum=100_000)
    every: int = option(1, "control steps between two such times", minimum=1)
    test_lr: float = option(0.1, "learning rate of those steps", above=0)


@dataclass
class FAMLEConfig(WindowConfig):
    """Situations with an embedding each, and what is adapted online (FAMLE)."""

    embedding: int = option(5, "width of an embedding, Z", minimum=1, architecture=True)
    situations: int = option(16, "situations drawn where a family has no list of them", minimum=1)
    inner_lr: float = option(0.3, "inner step size on mean squared errors of standardised targets", above=0)
    inner_steps: int = option(10, "inner steps of meta-training, each on rows of its own", minimum=1, maximum=1000)
    meta_lr: float = option(1.0, "share of the way to the adapted weights; falls to 0 in one fit", above=0, maximum=1)
    embedding_lr: float = option(1.0, "the same of the embeddings", above=0, maximum=1)
    online_lr: float = option(0.1, "step size online, on the last M transitions", above=0)
    online_steps: int = option(5, "such steps at every control step; 0: the embedding alone", minimum=0, maximum=1000)


@dataclass
class AdMRLConfig:
    """Tasks that are moved to where the policy is worst (AdMRL)."""

    share: float = option(0.5, "share of moved tasks in the search; 0: draws alone", minimum=0, maximum=1)
    step: float = option(0.5, "how far a task is moved in an iteration, in deviations of the family's draws", above=0)


@dataclass
class MIERConfig:
    """Identification of a task's context vector, and relabelling (MIER)."""

    inner_lr: float = option(1.0, "inner step size, learned from there; 0: the prior for every task", minimum=0)
    inner_steps: int = option(3, "inner steps on the vector", minimum=1, maximum=1000)
    model_steps: int = option(50, "steps of the whole model on an unseen task's context, before it relabels", minimum=0)


@dataclass
class CaDMConfig(WindowConfig):
    """A context that is read off the last transitions (CaDM)."""

    past: int = option(10, "transitions that the context is read off, M", minimum=1, architecture=True)
    future: int = option(10, "transitions that are predicted with it, K", minimum=1)
    context_dim: int = option(10, "width of the context, Z; 0: none (PETS)", minimum=0, architecture=True)
    hidden: list[int] = option([256, 128, 64], "widths of the encoder's layers", minimum=1, architecture=True)
    backward: float = option(0.5, "weight of the backward prediction's error", minimum=0)


@dataclass
class PlannerConfig:
    """Action choice by search in the model."""

    kind: str = option("cem", "kind of search", choices=("random", "cem", "icem", "mppi"))
    horizon: int = option(15, "steps looked ahead, H", minimum=1)
    candidates: int = option(500, "action sequences tried at once, N", minimum=1)
    iterations: int = option(4, "times they are drawn anew (random: once)", minimum=1)
    elites: int = option(50, "best sequences that the next ones are drawn around (cem, icem)", minimum=1)
    gamma: float = option(0.99, "discount per step", above=0, maximum=1)
    initial_std: float = option(0.5, "deviation of the first candidates (not random)", above=0)
    min_std: float = option(0.05, "smallest deviation later on; discrete: share of chance", above=0, maximum=1)
    momentum: float = option(0.1, "share of the plan that stays in one iteration (cem, icem)", minimum=0, below=1)
    temperature: float = option(0.5, "returns this far apart are weighted e to 1 (mppi)", above=0)
    warm_start: bool = option(True, "search on from the plan of the last step")
    chunk: int = option(8192, "rows x members imagined at once: what a CPU's cache holds; more for a GPU", minimum=1)
