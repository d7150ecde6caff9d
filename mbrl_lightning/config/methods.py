"""Configuration keys of single families of methods; `schema` has those that all share, and puts them together."""

from dataclasses import dataclass

from mbrl_lightning.config.option import option


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
