"""What a planner makes of a perfect model: `python -m mbrl_lightning.perfect_model conf=half_cheetah_disabled algorithm=grbal`.

It plans as it would in a learned model, but tries every candidate in the simulator, from the true state. What a learned
model's planner makes less is the model's doing, and no better planner mends it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from mbrl_lightning.config import config_of, each_seed
from mbrl_lightning.config.console import answer, make_callable, quiet_libraries
from mbrl_lightning.config.option import option
from mbrl_lightning.config.schema import Config
from mbrl_lightning.config.words import describe, read, take

if TYPE_CHECKING:  # PyTorch takes seconds to import; --help and a typo must not
    import torch
    from tensordict import TensorDict, TensorDictBase
    from torch import Tensor

    from mbrl_lightning.envs.family import TaskFamily
    from mbrl_lightning.envs.spec import Simulator
    from mbrl_lightning.policies.planners import Advance, Planner


@dataclass
class Options:
    """Keys of the command line that are not the configuration's."""

    tasks: int = option(4, "training tasks, drawn anew with each seed", minimum=1)


HELP = f"""usage: python -m mbrl_lightning.perfect_model conf=NAME algorithm=NAME [tasks=4] [seeds=0..2] [key=value ...]

Plays one episode of each of some training tasks with the algorithm's planner (planner.kind, .horizon, .candidates, ...), which
tries its candidates in the true simulator, and prints their returns beside those of random actions. No model is trained.

{describe(Options)}

Any key of `python -m mbrl_lightning.fit --help` may follow. Rows go to perfect_model.csv in out/NAME/perfect_model/seed<k>.
"""


class SimulatorModel:
    """An `Advance` (see `policies.planners`) that is the simulator itself: each search starts where the acting one stands.

    `acting` simulates `tasks` `[B, P]`; after `horizon` steps the next candidates begin.
    """

    def __init__(self, family: TaskFamily, tasks: Tensor, acting: Simulator, horizon: int) -> None:
        self.family, self.tasks, self.acting, self.horizon = family, tasks, acting, horizon
        self.copies: dict[int, Simulator] = {}
        self.now = 0

    def __call__(self, observation: Tensor, action: Tensor) -> Tensor:
        """Next observations `[B, R, S]` of R candidates in each environment; see `Advance`."""
        rows = action.shape[1]
        if rows not in self.copies:
            self.copies[rows] = self.family.simulate(self.tasks.repeat_interleave(rows, 0))
        if self.now == 0:
            self.copies[rows].set_state(self.acting.state().repeat_interleave(rows, 0))
        self.now = (self.now + 1) % self.horizon
        return self.copies[rows].step(action.flatten(0, 1)).unflatten(0, (-1, rows))

    def close(self) -> None:
        """Release the copies."""
        for simulator in self.copies.values():
            simulator.close()


class Planning:
    """An agent that plans at every step and carries its plan; it says every tenth of `steps` how far it is."""

    def __init__(self, planner: Planner, advance: Advance, steps: int) -> None:
        self.planner, self.advance, self.steps, self.began = planner, advance, steps, time.monotonic()

    def begin(self, tasks: int) -> TensorDict:
        """A cold plan."""
        import torch
        from tensordict import TensorDict

        age = torch.zeros(tasks, dtype=torch.long)
        return TensorDict({"plan": self.planner.cold(tasks), "age": age}, batch_size=[tasks])

    def act(
        self, belief: TensorDict, observation: Tensor, noise: torch.Generator | None = None
    ) -> tuple[Tensor, TensorDict]:
        """See `data.collect.Agent`."""
        assert noise is not None
        action, plan = self.planner.plan(self.advance, observation, noise, belief["plan"])
        done = int(belief["age"].max()) + 1
        if done % max(self.steps // 10, 1) == 0:
            gone = time.monotonic() - self.began
            passed, left = (timedelta(seconds=round(t)) for t in (gone, gone / done * (self.steps - done)))
            print(f"step {done} of {self.steps} | {passed} gone, {left} to go", flush=True)
        return action, belief.clone(False).update({"plan": plan, "age": belief["age"] + 1})

    def adapt(self, belief: TensorDict, transitions: TensorDictBase) -> TensorDict:
        """The simulator has nothing to learn."""
        return belief


def perfect_model(cfg: Config, tasks: int) -> dict[str, Tensor]:
    """Returns `[B]` of `planner` and `random`, in the family's unit: an episode of each of `tasks` = B training tasks."""
    import torch

    from mbrl_lightning.data.collect import Uniform, collect, episode_returns
    from mbrl_lightning.data.control import Control
    from mbrl_lightning.data.seeds import Streams
    from mbrl_lightning.envs import family_of
    from mbrl_lightning.policies.planners import make_planner

    family, streams = family_of(cfg.env), Streams(cfg.seed)
    spec, drawn, noise = family.spec, family.sample(tasks, streams["tasks"]), streams["evaluation"]
    returns = {}
    for name in ("random", "planner"):
        simulator = family.simulate(drawn)
        model = SimulatorModel(family, drawn, simulator, cfg.planner.horizon)
        agent: Uniform | Planning = Uniform(Control(spec))
        if name == "planner":
            agent = Planning(make_planner(spec, cfg.planner), model, spec.horizon)
        start = torch.Generator().manual_seed(cfg.seed)  # both begin alike
        try:
            belief = agent.begin(len(drawn))
            episodes = collect(simulator, spec, agent, belief, spec.horizon, start, noise, training=False)
            returns[name] = episode_returns(episodes, spec)
        finally:
            simulator.close()
            model.close()
    return returns


def parse(argv: Sequence[str]) -> tuple[Config, int]:
    """Configuration and number of tasks."""
    words = read(argv)
    tasks = take(Options, words, strict=False).tasks
    return config_of(words), tasks


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""

    def command(argv: list[str]) -> None:
        cfg, tasks = parse(argv)
        quiet_libraries()
        kind = f"{cfg.planner.kind}, {cfg.planner.candidates} candidates, {cfg.planner.horizon} steps ahead"
        print(f"{cfg.conf}, {tasks} training tasks, planner in the true simulator ({kind})", flush=True)
        for one in each_seed(cfg):
            print(_told(one, perfect_model(one, tasks)), flush=True)

    return answer(argv, lambda: HELP, command)


def _told(cfg: Config, returns: dict[str, Tensor]) -> str:
    """Lines about one seed, whose rows are put in the place of earlier ones."""
    from mbrl_lightning.envs import family_of
    from mbrl_lightning.runs.results import Results, return_unit

    spec, results, lines = family_of(cfg.env).spec, Results(None, "perfect_model", cfg.conf, cfg.seed), []
    unit = return_unit(spec.unit, spec.horizon)
    for name, values in returns.items():
        lines.append(f"  {name:<8} {values.mean():8.4g}   each task {' '.join(f'{value:.4g}' for value in values)}")
        for task, value in enumerate(values.tolist()):
            results.add(f"return/{name}", value, iteration=0, real_steps=0, split="train", task=task, unit=unit)
    results.save_as(Path(cfg.out) / cfg.conf / "perfect_model" / f"seed{cfg.seed}" / "perfect_model.csv")
    return "\n".join([f"seed {cfg.seed}", *lines])


make_callable(__name__)


if __name__ == "__main__":
    sys.exit(main())
