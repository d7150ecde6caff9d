"""How fast does each way of adapting adapt: gradient steps, recurrence, amortised inference, variational inference.

Every arm is trained on the same family. Then, in each unseen task, it gathers n transitions in its own way (random actions, or
its own policy where it learns from its own), takes them in, and plays an episode. Its model is asked, whoever gathered: after
the same recorded n transitions, what follows the same observation and action? What adapts inside an episode does so in that
one too, so its curve is flat beyond what it remembers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from mbrl_lightning.runs.results import Results, Row, read_results
from mbrl_lightning.study.base import Study, draws, figure_line, folder_of, written

if TYPE_CHECKING:
    from tensordict import TensorDict
    from torch import Tensor

    from mbrl_lightning.algorithms.base import Algorithm
    from mbrl_lightning.envs.family import TaskFamily
    from mbrl_lightning.report.tables import Table

SHOTS = (0, 8, 16, 64, 256, 500)  # real transitions of the unseen task
TASKS, LIVES, HELD, TIMES, TIMED = 10, 10, 5, 5, 64
KINDS = {
    "gradient": ("maml", "reptile", "grbal", "famle"),
    "recurrence": ("rl2", "rebal", "m3po"),
    "amortised inference": ("pearl", "gssm_aps", "mlsm_v1_aps", "cadm"),
    "variational inference": ("variational", "ghp_mdp"),
}
COSTS = ("model/parameters", "time/adapt", "time/act")
FILE = "evaluation/adaptation.csv"  # in a folder of its own, as rows beside checkpoints are taken for the run's


def recorded(family: TaskFamily, tasks: Tensor, seed: int) -> TensorDict:
    """Transitions `[M * LIVES, 501]` of `tasks` `[M, P]` by actions held for five steps; the last is what is to be predicted."""
    import torch

    from mbrl_lightning.data.collect import Uniform, collect_in
    from mbrl_lightning.data.control import Control

    draws = torch.Generator().manual_seed(seed)
    rows, agent = tasks.repeat_interleave(LIVES, 0), Uniform(Control(family.spec, hold=HELD))
    return collect_in(family, rows, agent, agent.begin(len(rows)), SHOTS[-1] + 1, draws, draws)


def one_step(algorithm: Algorithm, lives: TensorDict, shot: int) -> Tensor:
    """Error of the last transition of each life after the `shot` before it, as a share of the variance: `[M]`."""
    from mbrl_lightning.models.measures import share_of_variance

    last, before, spec = lives[:, -1], lives[:, SHOTS[-1] - shot : SHOTS[-1]].to(algorithm.device), algorithm.spec
    belief = algorithm.adapt(algorithm.begin(len(lives)), before)
    predicted = algorithm.imagine(belief, last["observation"], last["action"].unsqueeze(1)).cpu()[:, :, 0].mean(0)
    truth = spec.change(last["observation"], last["next", "observation"])
    error = (spec.change(last["observation"], predicted) - truth).square()
    return share_of_variance(error, truth.var(0, correction=0)).view(-1, LIVES).mean(1)


def milliseconds(act: Callable[[], object]) -> float:
    """Time of a call, the middle one of five after a first."""
    act()
    spent = []
    for _ in range(TIMES):
        start = time.perf_counter()
        act()
        spent.append(time.perf_counter() - start)
    return 1000 * median(spent)


def measure(run: Path, seed: int) -> None:
    """All that this study looks at in a finished run, into its folder `evaluation`."""
    from mbrl_lightning.evaluate import load_run
    from mbrl_lightning.measuring.meta_test import MetaTest

    loop = load_run(run)
    algorithm, family = loop.algorithm, loop.family
    tasks, results = family.test[:TASKS], Results(None, loop.results.algorithm, loop.results.env, seed)

    def add(metric: str, value: float, **where: Any) -> None:
        results.add(metric, value, iteration=1, real_steps=loop.real.num_steps, **where)

    test = MetaTest(algorithm, loop.real, loop.step, loop.streams["evaluation"], add)
    context = test.context(tasks, SHOTS[-1])
    for shot in SHOTS:
        test.report("return/policy", test.episodes(tasks, test.adapt(context, shot)), "test", shot)
    if algorithm.model is not None:
        lives = recorded(family, tasks, seed)
        for shot in SHOTS:
            for task, value in enumerate(one_step(algorithm, lives, shot).tolist()):
                add("model/nmse", value, split="test", task=task, shot=shot)
    one, begun = context[:1, :TIMED].to(algorithm.device), algorithm.begin(1)
    belief, observation = algorithm.adapt(begun, one), one["observation"][:, -1].cpu()
    add("time/adapt", milliseconds(lambda: algorithm.adapt(begun, one)))
    add("time/act", milliseconds(lambda: algorithm.act(belief, observation)))
    add("model/parameters", sum(p.numel() for p in algorithm.parameters() if p.requires_grad))
    results.save_as(run / FILE)


def compare(name: str, study: Study, folder: Path, rows: Sequence[Row]) -> tuple[int, str]:
    """Measure the finished runs that are not yet measured; tables and figure of all."""
    finished = {(row.algorithm, row.env, row.seed) for row in rows if row.metric == "return/policy"}
    for arm, env, seed in sorted(finished):
        run = folder / folder_of(arm) / env / arm / f"seed{seed}"
        if not (run / FILE).is_file():
            measure(run, seed)
            print(f"{arm}, seed {seed}: measured", flush=True)
    found = [row for file in sorted(folder.glob(f"*/*/*/*/{FILE}")) for row in read_results(file)]
    text, picture = written(folder, study.question, tables(found)), folder / f"{name}.png"
    if draws():
        draw(found, picture)
    return 0, "\n\n".join([*text, figure_line(picture)])


def tables(rows: Sequence[Row]) -> list[Table]:
    """Returns, errors of the models, and what adapting costs; a line for each arm."""
    from mbrl_lightning.report.statistics import iqm, score_matrix, stratified_bootstrap
    from mbrl_lightning.report.tables import Table, number

    titles = {"return/policy": "return of an episode", "model/nmse": "share of the next change that is missed"}
    shots = [f"after {shot}" for shot in SHOTS]
    found = [
        Table(f"{title}, by transitions of the unseen task", ["method", "adapts by", "seeds", "trained on", *shots])
        for title in titles.values()
    ]
    cost = Table("what it takes", ["method", "parameters", "adapt to 64 [ms]", "act [ms]"])
    for kind, arm in ((kind, arm) for kind, arms in KINDS.items() for arm in arms):
        mine = [row for row in rows if row.algorithm == arm]
        if not mine:
            continue
        for table, metric in zip(found, titles, strict=True):
            cells = []
            for shot in SHOTS:
                seeds, _, scores = score_matrix([row for row in mine if (row.metric, row.shot) == (metric, shot)])
                ends = f" [{', '.join(map(number, stratified_bootstrap(scores)))}]" if len(seeds) > 1 else ""
                cells.append(number(iqm(scores)) + ends if scores.size else "-")
            steps = max(row.real_steps for row in mine)
            if cells[0] != "-":
                table.rows.append([arm, kind, str(len(seeds)), f"{steps:,}", *cells])
        spent = [score_matrix([row for row in mine if row.metric == name])[2].mean() for name in COSTS]
        cost.rows.append([arm, f"{spent[0]:,.0f}", *map(number, spent[1:])])
    found[0].notes = ["interquartile mean over seeds and tasks, 95 %: stratified bootstrap over seeds within tasks"]
    cost.notes = [
        "of one robot, on one CPU thread; adapt: a context of 64 transitions; act: one step, planning included"
    ]
    return [*found, cost]


def draw(rows: Sequence[Row], path: Path) -> Path:
    """Return and error against the transitions of the unseen task, a colour for each way of adapting."""
    from mbrl_lightning.report.canvas import blank, colour, save
    from mbrl_lightning.report.statistics import iqm, score_matrix

    figure, panels = blank(1, 2, 5.5, 4.5)
    names = {"return/policy": "return of the next episode", "model/nmse": "one-step error, share of the variance"}
    for axes, (metric, label) in zip(panels, names.items(), strict=True):
        for number, arms in enumerate(KINDS.values()):
            for mark, arm in zip("osv^", arms, strict=False):
                mine = [row for row in rows if (row.algorithm, row.metric) == (arm, metric)]
                means = [iqm(score_matrix([row for row in mine if row.shot == shot])[2]) for shot in SHOTS if mine]
                axes.plot(SHOTS[: len(means)], means, mark + "-", color=colour(number), label=arm, markersize=4)
        axes.set_xscale("symlog", linthresh=8)
        axes.set_xticks(SHOTS, map(str, SHOTS))
        axes.set(xlabel="real transitions of the unseen task", ylabel=label)
    panels[1].set_yscale("log")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    note = "; ".join(f"{kind}: {', '.join(arms)}" for kind, arms in KINDS.items())
    return save(figure, path, note)


_PLAN = "planner.kind=mppi planner.horizon=10 planner.candidates=100 planner.iterations=1"
_FITTED = (
    f"loop.iterations=6 loop.tasks_per_iteration=10 loop.exploration_steps=0 loop.first_model_steps=1000 {_PLAN} "
    "dynamics.hidden=128 dynamics.members=3"
)
_IMAGINED = (
    "loop.iterations=10 loop.tasks_per_iteration=4 loop.exploration_steps=100 loop.first_model_steps=600 loop.model_steps=200 "
    "dynamics.latent_dim=8 dynamics.hidden=128 dynamics.layers=3 dynamics.members=3 dynamics.scale=0.3 "
    "dynamics.learn_scale=true dynamics.tasks=8 dynamics.context=128 dynamics.targets=126 policy.hidden=[128,128] "
    "policy.initial_std=0.5 policy.latent_gain=2 search.method=ppo search.updates=10 search.segments=5 "
    "search.horizon=100 search.tasks=42 search.rollouts=3 search.restarts=1 search.lr=5e-4 search.max_grad_norm=0.5"
)
_REPLAYED = "loop.iterations=12 loop.tasks_per_iteration=5 loop.episode_steps=200 sac.batch=128"
_EPISODES = "loop.iterations=50 search.tasks=5 meta.rollouts=4"
ARMS = {
    "maml": f"{_EPISODES} search.lam=0.95",
    "reptile": f"{_EPISODES} search.lam=0.95",
    "grbal": f"{_FITTED} loop.model_steps=300",
    "famle": f"loop.iterations=4 loop.exploration_steps=400 loop.episode_steps=100 {_PLAN}",
    "rl2": "loop.iterations=50 loop.episodes_per_task=2 search.tasks=20 search.minibatch=2000",
    "rebal": f"{_FITTED} loop.model_steps=600",
    "m3po": f"{_REPLAYED} sac.warmup_steps=1000 sac.updates_per_step=0.5 branch.per_step=10 branch.beta=0.5 history.hidden=16",
    "pearl": f"{_REPLAYED} policy.latent_gain=2",
    "gssm_aps": _IMAGINED,
    "mlsm_v1_aps": _IMAGINED,
    "cadm": f"{_FITTED} loop.model_steps=600 dynamics.layers=2",
    "variational": f"{_FITTED} loop.model_steps=600 dynamics.targets=42 variational.memory=64 variational.every=5",
    "ghp_mdp": f"{_FITTED} loop.model_steps=600 dynamics.targets=42 variational.memory=64 variational.every=5",
}
STUDIES = {
    "adaptation": Study(
        "",
        "Which way of adapting makes most of few real transitions of an unseen task?",
        {arm: f"algorithm={arm} {words}" for arm, words in ARMS.items()},
        "conf=half_cheetah_wide_200 loop.evaluate_every=0",
        compare,
    )
}
