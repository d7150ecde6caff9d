"""Ranges, choices and what must fit together in a configuration whose types are already right.

A rule belongs to keys, not to algorithms: it holds wherever all the keys that it speaks of are read.
"""

import math
import os
from collections.abc import Callable, Collection

from mbrl_lightning.config.option import limits_broken
from mbrl_lightning.config.schema import FIELDS, Config, get, short
from mbrl_lightning.config.sources import families, option_problems
from mbrl_lightning.config.words import number_list
from mbrl_lightning.errors import did_you_mean

SHARED = ("dynamics.tasks", "search.tasks", "pearl.meta_batch", "l2a.segments")  # devices share these out
# what is held in memory at once, as a product of keys, with the least number of bytes for each
HELD = [
    (int(size), tuple(keys.split()))
    for size, keys in (
        line.strip().split(maxsplit=1)
        for line in """100 loop.buffer
            40 branch.buffer history.length
            40 branch.per_step history.length
            16 dynamics.members dynamics.layers dynamics.hidden dynamics.hidden
            16 dynamics.width dynamics.width
            8 dynamics.tasks dynamics.targets dynamics.hidden
            8 dynamics.tasks dynamics.context dynamics.width
            4 dynamics.tasks dynamics.targets dynamics.particles dynamics.latent_dim
            8 dynamics.members dynamics.targets dynamics.hidden
            16 policy.hidden policy.hidden
            16 search.restarts policy.hidden policy.hidden
            100 search.tasks search.rollouts search.horizon
            100 search.tasks search.horizon
            100 meta.rollouts dynamics.members search.horizon
            48 history.hidden history.hidden
            8 sac.batch policy.hidden
            4 l2a.segments l2a.past dynamics.members dynamics.hidden
            4 l2a.segments l2a.future dynamics.members dynamics.hidden
            48 l2a.hidden l2a.hidden
            4 planner.candidates planner.horizon
            16 pearl.hidden pearl.hidden
            16 pearl.latent_dim pearl.hidden
            40 pearl.context pearl.meta_batch
            16 dynamics.latent_dim dynamics.hidden dynamics.members
            1000 loop.tasks_per_iteration
            100 loop.tasks_per_iteration loop.exploration_steps
            100 loop.tasks_per_iteration loop.episodes_per_task loop.episode_steps
            100 evaluation.context evaluation.shots
            100 evaluation.episodes""".splitlines()
    )
]


def problems_of(config: Config, reads: Collection[str]) -> list[str]:
    """Everything that is out of range or does not fit together among the keys that are read."""
    problems = []
    for key, entry in FIELDS.items():
        value = get(config, key)
        items = [item for item in (value if isinstance(value, list) else [value]) if item not in (None, "")]
        broken = filter(None, (limits_broken(item, entry.metadata) for item in items))
        problems += [f"{key}={short(value)}: {text}" for text in broken]
        if isinstance(value, list) and len(value) > 1000:
            problems.append(f"{key}={short(value)}: must have at most 1000 entries")
    if problems:  # what follows counts with values that are in range
        return problems
    rules = [*RULES, *(((key,), _divides(key)) for key in SHARED)]
    found = [check(config) for keys, check in rules if all(key in reads for key in keys)]
    return [text for text in (*found, _too_much(config, reads)) if text]


def _too_much(config: Config, reads: Collection[str]) -> str:
    """Whether what is held at once exceeds this machine's memory; from below, as a family's widths count as few."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    sizes: dict[tuple[str, ...], int] = {}
    for size, keys in (row for row in HELD if all(key in reads for key in row[1])):
        values = [get(config, key) for key in keys]
        sizes[keys] = size * math.prod(max(v, default=1) if isinstance(v, list) else v or 1 for v in values)
    if (total := sum(sizes.values())) <= machine:
        return ""
    largest = dict.fromkeys(max(sizes.items(), key=lambda row: row[1])[0])
    most = ", ".join(f"{key}={short(get(config, key))}" for key in largest)
    asked, there = (f"{size / 2**30:,.0f} GiB" for size in (total, machine))
    return f"{most}: this asks for {asked} of memory or more, and the machine has {there}; choose less"


def _divides(key: str) -> Callable[[Config], str]:
    def check(config: Config) -> str:
        ranks, value = config.devices * config.num_nodes, get(config, key)
        return f"{key}={value}: not divisible by devices x num_nodes = {ranks}" if value % ranks else ""

    return check


def _seeds(config: Config) -> str:
    try:
        number_list(config.seeds or "0")
    except ValueError as error:
        return f"seeds={short(error)}"
    return ""


def _streams(config: Config) -> str:
    held, rollouts, members = config.search.holdout, config.search.rollouts, config.dynamics.members
    if held >= members:
        return f"search.holdout={held}: leaves none of dynamics.members={members}"
    text = f"search.rollouts={rollouts}: not a multiple of dynamics.members - search.holdout = {members - held}"
    return text if rollouts % (members - held) else ""


def _targets(config: Config) -> str:
    targets, members = config.dynamics.targets, config.dynamics.members
    return f"dynamics.targets={targets}: not a multiple of dynamics.members={members}" if targets % members else ""


def _shots(config: Config) -> str:
    return "" if config.evaluation.shots else "evaluation.shots=[]: at least one is needed"


def _centres(config: Config) -> str:
    wrong = config.policy.kind == "rbf" and len(config.policy.hidden) != 1
    return "policy.hidden: rbf takes one number of centres" if wrong else ""


def _data(config: Config) -> str:
    some = config.loop.exploration_steps or config.loop.episodes_per_task
    return "" if some else "loop.exploration_steps=0 and loop.episodes_per_task=0: no data would be collected"


def _fall(config: Config) -> str:
    begin, end = config.branch.beta_from, config.branch.beta_to
    if begin is None or end is None:
        return "" if begin == end else "branch.beta_from and branch.beta_to: give both or neither"
    return f"branch.beta_to={end}: must be after branch.beta_from={begin}" if begin >= end else ""


def _rows(config: Config) -> str:
    batch, tasks = config.sac.batch, config.pearl.meta_batch
    return (
        f"sac.batch={batch}: leaves no transition for each of pearl.meta_batch={tasks} tasks" if batch < tasks else ""
    )


def _elites(config: Config) -> str:
    planner = config.planner
    many = planner.kind in ("cem", "icem") and planner.elites > planner.candidates
    return f"planner.elites={planner.elites}: more than planner.candidates={planner.candidates}" if many else ""


def _family(config: Config) -> str:
    name, file = config.env.name, config.env.file
    if file is not None and not os.path.isfile(file):
        return f"env.file={short(file)}: no such file"
    if file is None and name not in (*families(), ""):
        return f"env.name={name}: unknown task family{did_you_mean(name, families())}; known: {', '.join(families())}"
    return "\n  - ".join(option_problems(name, file, config.env.options))


RULES: list[tuple[tuple[str, ...], Callable[[Config], str]]] = [
    (("env.name", "env.file"), _family),
    (("seeds",), _seeds),
    (("search.holdout", "search.rollouts", "dynamics.members"), _streams),  # imagined streams, shared among members
    (("dynamics.context", "dynamics.targets", "dynamics.members"), _targets),  # of a batch with contexts, likewise
    (("evaluation.shots",), _shots),
    (("policy.kind", "policy.hidden"), _centres),
    (("loop.exploration_steps", "loop.episodes_per_task"), _data),
    (("branch.beta_from", "branch.beta_to"), _fall),
    (("sac.batch", "pearl.meta_batch"), _rows),
    (("planner.elites", "planner.candidates"), _elites),
]
