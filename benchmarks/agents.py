"""Milliseconds of a control step of each method's agent, beside the methods in docs/index.md: `python -m benchmarks.agents`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch
from tensordict import TensorDict

from benchmarks.__main__ import machine
from benchmarks.document import put_into
from benchmarks.setting import random_steps
from mbrl_lightning.agent import Agent
from mbrl_lightning.algorithms import ALGORITHMS, make_algorithm
from mbrl_lightning.config import compose
from mbrl_lightning.config.console import quiet_libraries
from mbrl_lightning.envs import make_family

CONF, ROWS, STEPS, LONGEST = "half_cheetah_wide_200", (1, 100), 40, 10.0
MARKS = "<!-- control steps -->\n", "<!-- end control steps -->\n"


def agent(name: str) -> tuple[Agent, TensorDict]:
    """An agent of the method, untrained, which costs what a trained one does, and what it is shown: `[100, STEPS]`."""
    own = {"loop": {"episodes_per_task": 2}} if name == "rl2" else {}  # a trial is of two episodes
    cfg = compose({"conf": CONF, "algorithm": name} | own)
    family, generator = make_family(cfg.env.name, **cfg.env.options), torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    algorithm = make_algorithm(cfg, family)
    data = random_steps(family, family.sample(max(ROWS), generator), STEPS, generator)
    return Agent(algorithm), data


def milliseconds(one: Agent, data: TensorDict, rows: int) -> float:
    """Median CPU time of `act` and `adapt` together, with arrays in and out, of `rows` environments at once."""
    belief, taken, began = one.begin(rows), list[float](), time.monotonic()
    shown = data[:rows]
    for number in range(STEPS):
        now: dict[str, Any] = {"observation": shown["observation"][:, number].numpy()}
        after = {"observation": shown["next", "observation"][:, number].numpy()}
        start = time.process_time()
        action, belief = one.act(belief, now["observation"])
        belief = one.adapt(belief, now | {"action": action, "next": after})
        taken.append(1000 * (time.process_time() - start))
        if number and time.monotonic() - began > LONGEST:
            break
    return statistics.median(taken[min(3, len(taken) - 1) :])


def lines() -> Iterator[str]:
    """The table."""
    told = machine()
    yield f"One thread, {told['cpu'].partition(',')[0]}, the sizes of `conf={CONF}`; `python -m benchmarks.agents` measures it."
    yield ""
    yield "| `algorithm=` | trained numbers | 1 body [ms] | 100 bodies at once [ms] |"
    yield "| --- | --- | --- | --- |"
    for name in ALGORITHMS:
        one, data = agent(name)
        numbers = sum(p.numel() for p in one.algorithm.parameters())
        yield f"| `{name}` | {numbers:,} | {' | '.join(f'{milliseconds(one, data, rows):.3g}' for rows in ROWS)} |"


def main() -> None:
    """Measure, print, and write the table into the page."""
    quiet_libraries()
    torch.set_num_threads(1)
    put_into("docs/index.md", MARKS, lines())


if __name__ == "__main__":
    main()
