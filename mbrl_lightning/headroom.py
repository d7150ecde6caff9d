"""What knowing the task is worth in a family: `python -m mbrl_lightning.headroom conf=half_cheetah_wide`.

The same policy (PPO in the true simulator) and the same one-step model, given the true task parameters, not given them, and
given another task's. No adaptive method can gain more than "with" has over "without" with the same learner, and where there
is no such gap, a policy that ignores its context looks as good as one that adapts.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mbrl_lightning.config import config_of, each_seed
from mbrl_lightning.config.console import answer, make_callable, quiet_libraries
from mbrl_lightning.config.schema import Config
from mbrl_lightning.config.words import read

HELP = """usage: python -m mbrl_lightning.headroom conf=NAME [seeds=0..2] [key=value ...]

Trains PPO in the true simulator (loop.iterations x search.updates x search.tasks x search.horizon real steps, from the
dr_ppo settings of the conf) and a one-step model (dynamics.* of gssm_aps), each with and without the true task parameters.
Any key of `python -m mbrl_lightning.fit --help` may follow. Rows go to headroom.csv in out/NAME/headroom/seed<k>.
"""
MODEL_TASKS, MODEL_STEPS, MODEL_UPDATES = 100, 300, 1500


def policy_headroom(cfg: Config, family: Any, add: Any) -> dict[str, float]:
    """Mean return of PPO on the unseen tasks `with`, `without` and with `wrong` parameters."""
    from mbrl_lightning.algorithms.dr_ppo import DRPPO
    from mbrl_lightning.data.seeds import Streams
    from mbrl_lightning.loop import MetaLoop
    from mbrl_lightning.measuring.meta_test import MetaTest

    means: dict[str, float] = {}
    for arm, told in (("with", True), ("without", False)):
        Streams(cfg.seed).seed_globals()
        algorithm = DRPPO(family, cfg, told=told)
        loop = MetaLoop(cfg, family, algorithm, quiet=True)
        for iteration in range(cfg.loop.iterations):
            algorithm.improve(loop.world, loop.step)
            algorithm.iteration += 1
            if (iteration + 1) % 10 == 0:
                print(f"  policy {arm} parameters: {loop.real.num_steps} real steps", flush=True)
        test = MetaTest(algorithm, loop.real, loop.step, loop.streams["evaluation"], add)
        for name, held in _beliefs(arm, algorithm.tell(family.test)).items():
            episodes = test.episodes(family.test, held)
            means[name] = test.report(f"return/{name}", episodes, "test", loop.real.num_steps)
    return means


def model_headroom(cfg: Config, family: Any, add: Any) -> dict[str, float]:
    """Mean one-step nMSE under random actions on the unseen tasks `with`, `without` and with `wrong` parameters."""
    from lightning.fabric import Fabric

    from mbrl_lightning.data.buffer import TaskBuffer
    from mbrl_lightning.data.collect import Uniform, collect
    from mbrl_lightning.data.control import Control
    from mbrl_lightning.data.seeds import Streams
    from mbrl_lightning.measuring.baselines import fit_baseline
    from mbrl_lightning.models.measures import one_step_error
    from mbrl_lightning.networks.step import GradientStep

    streams, step = Streams(cfg.seed), GradientStep(Fabric(accelerator="cpu", devices=1))
    real = TaskBuffer(len(family.parameters), MODEL_TASKS * MODEL_STEPS)
    tasks = family.sample(MODEL_TASKS, streams["tasks"])

    def transitions(chosen: Any) -> Any:
        agent, envs = Uniform(Control(family.spec)), streams["envs"]
        start = agent.begin(len(chosen))
        return collect(family.simulate(chosen), family.spec, agent, start, MODEL_STEPS, envs, noise=envs)

    real.extend(transitions(tasks), real.add_tasks(tasks), exploratory=True)
    targets, means = transitions(family.test), {}
    for arm, told in (("with", True), ("without", False)):
        streams.seed_globals()
        dynamics = fit_baseline(family, cfg, real, step, streams["batches"], MODEL_UPDATES, told)
        for name, held in _beliefs(arm, dynamics.tell(family.scale(family.test))).items():
            errors = one_step_error(dynamics, targets, held)["nmse"]
            for task, value in enumerate(errors.tolist()):
                add(f"model/nmse_{name}", value, split="test", task=task)
            means[name] = float(errors.mean())
    return means


def _beliefs(arm: str, belief: Any) -> dict[str, Any]:
    """The arm's own belief and, where it is told the parameters, another task's."""
    from mbrl_lightning.measuring.meta_test import MetaTest

    return {arm: belief} | ({"wrong": MetaTest.another(belief)} if arm == "with" else {})


def headroom(cfg: Config, folder: Path) -> dict[str, dict[str, float]]:
    """Of one seed, the means of `policy` and `model`; rows go to `headroom.csv` in `folder`. `cfg` has `algorithm=dr_ppo`."""
    from mbrl_lightning.envs import family_of
    from mbrl_lightning.runs.results import Results
    from mbrl_lightning.runs.storage import probe

    family = family_of(cfg.env)
    probe(folder)
    results = Results(None, "headroom", cfg.conf, cfg.seed)

    def add(metric: str, value: float, split: str = "", task: int = -1, shot: int = -1) -> None:
        results.add(metric, value, iteration=0, real_steps=max(shot, 0), split=split, task=task)

    out = {"model": model_headroom(cfg, family, add), "policy": policy_headroom(cfg, family, add)}
    results.save_as(folder / "headroom.csv")  # the earlier one stays until there is another
    return out


def _table(conf: str, seed: int, out: dict[str, dict[str, float]]) -> str:
    policy, model = ([means[arm] for arm in ("with", "without", "wrong")] for means in (out["policy"], out["model"]))
    gain = (policy[0] - policy[1]) / max(abs(policy[1]), 1e-9)
    return (
        f"{conf}, seed {seed}, unseen tasks      told      not told  told wrong\n"
        f"  return of PPO on real steps  {policy[0]:10.4g} {policy[1]:10.4g} {policy[2]:10.4g}   told is worth {gain:+.0%}\n"
        f"  one-step nMSE, random policy {model[0]:10.4g} {model[1]:10.4g} {model[2]:10.4g}"
        f"   not told / told {model[1] / model[0]:.2f}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""

    def command(words: list[str]) -> None:
        model = [word for word in words if word.startswith("dynamics.")]
        rest = [word for word in words if word not in model]
        shared = [word for word in rest if word.startswith(("conf", "env."))]
        cfg = config_of(read(rest), algorithm="dr_ppo")
        cfg.dynamics = config_of(read([*shared, *model]), algorithm="gssm_aps").dynamics
        quiet_libraries()
        for one in each_seed(cfg):
            out = headroom(one, Path(cfg.out) / cfg.conf / "headroom" / f"seed{one.seed}")
            print(_table(cfg.conf, one.seed, out), flush=True)

    return answer(argv, lambda: HELP, command)


make_callable(__name__)


if __name__ == "__main__":
    sys.exit(main())
