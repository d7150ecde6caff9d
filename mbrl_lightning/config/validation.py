"""Ranges, choices and what must fit together in a configuration whose types are already right."""

import math
import os

from mbrl_lightning.config.option import limits_broken
from mbrl_lightning.config.schema import ENVIRONMENTS, FIELDS, Config, get
from mbrl_lightning.config.sources import option_problems
from mbrl_lightning.config.words import number_list
from mbrl_lightning.errors import did_you_mean


def range_problems(config: Config) -> list[str]:
    """Everything that is out of range or does not fit together."""
    problems = []
    for key, entry in FIELDS.items():
        value = get(config, key)
        for item in value if isinstance(value, list) else [value]:
            broken = limits_broken(item, entry.metadata) if item not in (None, "") else ""
            if broken:
                problems.append(f"{key}={value}: {broken}")
    problems += option_problems(config.env.name, config.env.file, config.env.options)
    return problems + _cross_problems(config)


def _cross_problems(config: Config) -> list[str]:
    ranks = config.devices * config.num_nodes
    pearl = config.algorithm == "pearl"
    own = ["pearl.meta_batch"] * pearl + ["l2a.segments"] * (config.algorithm in ("grbal", "rebal", "mb_mpc"))
    shared = {key: get(config, key) for key in ("dynamics.tasks", "search.tasks", *own)}
    name = config.env.name
    model_based = config.algorithm.startswith("gssm")  # its imagined streams are shared out among the members
    searched = config.dynamics.members - config.search.holdout  # members that imagined rollouts are shared among
    checks = [
        (ranks > 0 and value % ranks != 0, f"{key}={value}: not divisible by devices x num_nodes = {ranks}")
        for key, value in shared.items()
    ]
    checks += [
        (
            model_based and searched < 1,
            f"search.holdout={config.search.holdout}: leaves none of dynamics.members={config.dynamics.members}",
        ),
        (
            model_based and searched > 0 and config.search.rollouts % searched != 0,
            f"search.rollouts={config.search.rollouts}: not a multiple of "
            f"dynamics.members - search.holdout = {searched}",
        ),
        (
            config.algorithm == "dr_ppo" and config.search.method != "ppo",
            f"search.method={config.search.method}: dr_ppo has no model to differentiate; it needs ppo",
        ),
        (not config.evaluation.shots, "evaluation.shots=[]: at least one is needed"),
        (
            config.policy.kind == "rbf" and len(config.policy.hidden) != 1,
            "policy.hidden: rbf takes one number of centres",
        ),
        (
            config.loop.exploration_steps == 0 and config.loop.episodes_per_task == 0,
            "loop.exploration_steps=0 and loop.episodes_per_task=0: no data would be collected",
        ),
        (
            config.env.file is None and name not in (*ENVIRONMENTS, ""),
            f"env.name={name}: unknown task family{did_you_mean(name, ENVIRONMENTS)}; known: {', '.join(ENVIRONMENTS)}",
        ),
        (
            config.env.file is not None and not os.path.isfile(config.env.file),
            f"env.file={config.env.file}: no such file",
        ),
    ]
    problems = [text for broken, text in checks + _replay_checks(config) if broken]
    try:
        number_list(config.seeds or "0")
    except ValueError as error:
        problems.append(f"seeds={error}")
    return problems


def _replay_checks(config: Config) -> list[tuple[bool, str]]:
    """What must fit together where a policy learns from stored transitions: whether it is broken, and the text."""
    branch = config.branch
    return [
        (
            (branch.beta_from is None) != (branch.beta_to is None),
            "branch.beta_from and branch.beta_to: give both or neither",
        ),
        (
            (branch.beta_from or 0) >= (branch.beta_to or math.inf),
            f"branch.beta_to={branch.beta_to}: must be after branch.beta_from={branch.beta_from}",
        ),
        (
            config.algorithm == "pearl" and config.sac.batch < config.pearl.meta_batch,
            f"sac.batch={config.sac.batch}: leaves no transition for each of pearl.meta_batch={config.pearl.meta_batch} tasks",
        ),
    ]
