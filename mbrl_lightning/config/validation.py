"""Ranges, choices and what must fit together in a configuration whose types are already right.

A rule belongs to keys, not to algorithms: it holds wherever all the keys that it speaks of are read.
"""

import math
import os
from collections.abc import Iterator, Set

from mbrl_lightning.config.option import limits_broken
from mbrl_lightning.config.schema import FIELDS, Config, get, short
from mbrl_lightning.config.sources import families, option_problems
from mbrl_lightning.config.words import number_list
from mbrl_lightning.errors import did_you_mean

SHARED = (
    "dynamics.tasks",
    "search.tasks",
    "pearl.meta_batch",
    "l2a.segments",
    "cadm.segments",
)  # devices share these out
# what is held in memory at once, as a product of keys, with the least number of bytes for each
HELD = """
100 loop.buffer; 1000 loop.tasks_per_iteration; 100 loop.tasks_per_iteration loop.exploration_steps
100 loop.tasks_per_iteration loop.episodes_per_task loop.episode_steps
40 branch.buffer history.length; 40 branch.per_step history.length; 48 history.hidden history.hidden
16 dynamics.members dynamics.layers dynamics.hidden dynamics.hidden; 16 dynamics.width dynamics.width
16 dynamics.latent_dim dynamics.hidden dynamics.members; 8 dynamics.members dynamics.targets dynamics.hidden
8 dynamics.tasks dynamics.targets dynamics.hidden; 8 dynamics.tasks dynamics.context dynamics.width
4 dynamics.tasks dynamics.targets dynamics.particles dynamics.latent_dim
16 policy.hidden policy.hidden; 16 search.restarts policy.hidden policy.hidden; 8 sac.batch policy.hidden
100 search.tasks search.rollouts search.horizon; 100 search.tasks search.horizon
100 meta.rollouts dynamics.members search.horizon; 4 planner.candidates planner.horizon
4 l2a.segments l2a.past dynamics.members dynamics.hidden; 4 l2a.segments l2a.future dynamics.members dynamics.hidden
48 l2a.hidden l2a.hidden; 16 pearl.hidden pearl.hidden; 16 pearl.latent_dim pearl.hidden; 40 pearl.context pearl.meta_batch
8 variational.memory dynamics.members dynamics.hidden; 100 evaluation.context evaluation.shots; 100 evaluation.episodes
8 cadm.segments cadm.past; 8 cadm.segments cadm.future dynamics.members dynamics.hidden; 16 cadm.hidden cadm.hidden
100 famle.situations loop.exploration_steps; 4 famle.situations famle.past dynamics.members dynamics.hidden
16 dynamics.tasks famle.inner_steps dynamics.targets; 16 famle.situations famle.embedding; 8 cadm.context_dim dynamics.hidden
"""


def problems_of(config: Config, reads: Set[str]) -> list[str]:
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
    problems = [text for keys, broken, text in _rules(config) if broken and reads >= {*keys.split()}]
    return problems + _family(config) + _too_much(config, reads)


def _rules(config: Config) -> Iterator[tuple[str, bool, str]]:
    """The keys that a rule speaks of, whether it is broken, and what is said then."""
    loop, dynamics, search, planner = config.loop, config.dynamics, config.search, config.planner
    try:
        number_list(config.seeds or "0")
    except ValueError as error:
        yield "seeds", True, f"seeds={short(error)}"
    ranks = config.devices * config.num_nodes
    for key in SHARED:
        value = get(config, key)
        yield key, value % ranks > 0, f"{key}={value}: not divisible by devices x num_nodes = {ranks}"
    targets, members, rollouts = dynamics.targets, dynamics.members, search.rollouts
    keys, used = "search.holdout search.rollouts dynamics.members", members - search.holdout
    yield keys, used <= 0, f"search.holdout={search.holdout}: leaves none of dynamics.members={members}"
    text = f"search.rollouts={rollouts}: not a multiple of dynamics.members - search.holdout = {used}"
    yield keys, used > 0 and rollouts % used > 0, text  # imagined streams, shared among members
    lone = search.moment_matching and 0 < used == rollouts
    text = f"search.moment_matching=true: one particle has no spread; choose search.rollouts={2 * used} or more"
    yield f"{keys} search.moment_matching", lone, text
    text = f"dynamics.targets={targets}: not a multiple of dynamics.members={members}"
    yield "dynamics.context dynamics.targets dynamics.members", targets % members > 0, text
    yield "evaluation.shots", not config.evaluation.shots, "evaluation.shots=[]: at least one is needed"
    centres = config.policy.kind == "rbf" and len(config.policy.hidden) != 1
    yield "policy.kind policy.hidden", centres, "policy.hidden: rbf takes one number of centres"
    text = "loop.exploration_steps=0 and loop.episodes_per_task=0: no data would be collected"
    keys = "loop.exploration_steps loop.episodes_per_task"
    yield keys, loop.exploration_steps == loop.episodes_per_task == 0, text
    keys, begin, end = "branch.beta_from branch.beta_to", config.branch.beta_from, config.branch.beta_to
    yield keys, (begin is None) != (end is None), "branch.beta_from and branch.beta_to: give both or neither"
    late = begin is not None and end is not None and begin >= end
    yield keys, late, f"branch.beta_to={end}: must be after branch.beta_from={begin}"
    batch, tasks = config.sac.batch, config.pearl.meta_batch
    text = f"sac.batch={batch}: leaves no transition for each of pearl.meta_batch={tasks} tasks"
    yield "sac.batch pearl.meta_batch", batch < tasks, text
    many = planner.kind in ("cem", "icem") and planner.elites > planner.candidates
    text = f"planner.elites={planner.elites}: more than planner.candidates={planner.candidates}"
    yield "planner.elites planner.candidates", many, text
    text = (
        f"planner.gamma={planner.gamma}: a plan's value discounts by sac.gamma={config.sac.gamma}; give both the same"
    )
    yield "planner.gamma sac.gamma", planner.gamma != config.sac.gamma, text
    gains, hold, method = config.policy.feedback, config.policy.hold, config.search.method
    text = f"policy.feedback={short(gains)}: give two gains, [kp,kd], or none, []"
    yield "policy.feedback", len(gains) not in (0, 2), text
    text = f"policy.hold={hold}, policy.feedback={short(gains)}: search.method={method} knows neither; choose search.method=sac"
    yield "policy.hold policy.feedback search.method", method != "sac" and (hold > 1 or bool(gains)), text


def _family(config: Config) -> list[str]:
    name, file = config.env.name, config.env.file
    if file is not None and not os.path.isfile(file):
        return [f"env.file={short(file)}: no such file"]
    if file is None and name not in (*families(), ""):
        known = ", ".join(families())
        return [f"env.name={name}: unknown task family{did_you_mean(name, families())}; known: {known}"]
    return option_problems(name, file, config.env.options)


def _too_much(config: Config, reads: Set[str]) -> list[str]:
    """Whether what is held at once exceeds this machine's memory; from below, as a family's widths count as few."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    sizes: dict[str, int] = {}
    for size, keys in (row.strip().split(maxsplit=1) for row in HELD.strip().replace("\n", ";").split(";")):
        if reads >= {*keys.split()}:
            values = [get(config, key) for key in keys.split()]
            most = (max(value, default=1) if isinstance(value, list) else value or 1 for value in values)
            sizes[keys] = int(size) * math.prod(most)
    if (total := sum(sizes.values())) <= machine:
        return []
    largest = dict.fromkeys(max(sizes, key=lambda keys: sizes[keys]).split())
    named = ", ".join(f"{key}={short(get(config, key))}" for key in largest)
    asked, there = (f"{size / 2**30:,.0f} GiB" for size in (total, machine))
    return [f"{named}: this asks for {asked} of memory or more, and the machine has {there}; choose less"]
