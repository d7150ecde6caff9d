"""Models of GSSM's Tables 4 and 5 on the same recorded data: one-step errors on unseen tasks, and parameters.

Of each seed data are recorded once, by random actions, and every model is fitted to them with as many optimizer steps: the
model is all that differs. All have one member and decoders of one size. `conf` says of which family, `loop.tasks_per_iteration`
and `loop.exploration_steps` how much is recorded, `loop.first_model_steps` how long it is fitted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mbrl_lightning.config.words import number_list
from mbrl_lightning.runs.results import Results, Row
from mbrl_lightning.study.base import Study, draws, figure_line, folder_of, written

if TYPE_CHECKING:
    from tensordict import TensorDict
    from torch import Tensor

    from mbrl_lightning.config.schema import Config
    from mbrl_lightning.data.buffer import TaskBuffer
    from mbrl_lightning.envs.family import TaskFamily
    from mbrl_lightning.report.tables import Table

    Recorded = tuple[TaskBuffer, TensorDict, TensorDict]

MODELS = ("gssm", "m_dpilco", "mlsm_v0", "mlsm_v1", "grbal", "blind", "told")
BASELINES = {"blind": False, "told": True}  # networks told nothing, and the task's parameters
HELD, TARGETS, PARTS = 5, 1000, 10  # steps that half of the actions are held for; transitions to predict; rates
PAPER = {  # Table 4, in the order of MODELS, of which the paper has five
    "cartpole": (0.0296, 0.0475, 0.0626, 0.0310, 0.0397),
    "acrobot": (0.0024, 0.0030, 0.004, 0.0024, 0.0039),
    "half_cheetah": (0.530, 0.678, 0.533, 0.636, 0.785),
    "slim_humanoid": (1.78, 1.9, 2.0, 1.75, 2.364),
}


def recorded(cfg: Config, family: TaskFamily) -> Recorded:
    """Training data, and of each unseen task `[M]` a context `[M, K]` and episodes `[M, E, H]` to predict.

    Half of the training data is of actions drawn anew at each step, half of actions held for five, as in the episodes.
    """
    from mbrl_lightning.data.buffer import TaskBuffer
    from mbrl_lightning.data.collect import Uniform, collect_in
    from mbrl_lightning.data.control import Control
    from mbrl_lightning.data.seeds import Streams

    streams, loop, spec = Streams(cfg.seed), cfg.loop, family.spec

    def transitions(tasks: Tensor, count: int, stream: str, hold: int, training: bool = True) -> TensorDict:
        agent, draws = Uniform(Control(spec, hold=hold)), streams[stream]
        return collect_in(family, tasks, agent, agent.begin(len(tasks)), count, draws, draws, training)

    real = TaskBuffer(len(family.parameters), loop.buffer)
    tasks = family.sample(loop.tasks_per_iteration, streams["tasks"])
    index, steps = real.add_tasks(tasks), loop.exploration_steps
    for hold, count in ((1, steps - steps // 2), (min(HELD, spec.horizon), steps // 2)):
        real.extend(transitions(tasks, count, "envs", hold), index, exploratory=True)
    context, count = transitions(family.test, family.context_steps, "evaluation", 1), -(-TARGETS // spec.horizon)
    rows = family.test.repeat_interleave(count, 0)
    episodes = transitions(rows, spec.horizon, "evaluation", min(HELD, spec.horizon), training=False)
    return real, context, episodes.unflatten(0, (len(family.test), count))


def measured(arm: str, cfg: Config, family: TaskFamily, data: Recorded) -> tuple[Tensor, int]:
    """Mean squared error of the predicted change in each unseen task `[M]`, in raw units, and the number of parameters.

    A model that adapts in mid-episode does so to its last transitions, the others to the context.
    """
    from lightning.fabric import Fabric

    from mbrl_lightning.algorithms import make_algorithm
    from mbrl_lightning.data.seeds import Streams
    from mbrl_lightning.measuring.baselines import fit_baseline
    from mbrl_lightning.models.adaptive import output_errors
    from mbrl_lightning.models.measures import first_valid, one_step_error, until_fall
    from mbrl_lightning.networks.step import GradientStep

    (real, context, episodes), step = data, GradientStep(Fabric(accelerator="cpu", devices=1))
    streams, updates, episodes = Streams(cfg.seed), cfg.loop.first_model_steps, until_fall(episodes, family.spec)
    streams.seed_globals()
    batches, targets = streams["batches"], first_valid(episodes.flatten(1, 2), TARGETS)
    model: Any
    if arm in BASELINES:
        model = fit_baseline(family, cfg, real, step, batches, updates, BASELINES[arm])
        error = one_step_error(model, targets, model.tell(family.scale(family.test)))["mse"]
    else:
        algorithm = make_algorithm(cfg, family)
        for part in range(PARTS):  # the rate falls, as that of the baselines does
            algorithm.optimizers["dynamics"].param_groups[0]["lr"] = cfg.dynamics.lr * (1 - part / PARTS)
            algorithm.fit(real, step, updates * (part + 1) // PARTS - updates * part // PARTS, batches)
        model = algorithm.dynamics
        if arm == "grbal":
            future = max(min(cfg.l2a.future, family.spec.horizon - cfg.l2a.past), 1)
            error = output_errors(model, episodes, cfg.l2a.past, future)[0][1].mean(-1)
        else:
            error = one_step_error(model, targets, algorithm.adapt(algorithm.begin(len(context)), context))["mse"]
    return error, sum(p.numel() for p in model.parameters() if p.requires_grad)


def fit_models(configs: Mapping[str, Config], folder: Path) -> None:
    """Record the data of each seed and fit every arm that has no rows yet: `results.csv` in <arm>/<family>/seed<n>."""
    from dataclasses import replace

    from mbrl_lightning.envs import family_of

    first = next(iter(configs.values()))
    family, name = family_of(first.env), first.conf or first.env.name
    for seed in number_list(first.seeds or "0"):
        data: Recorded | None = None
        for arm, cfg in configs.items():
            own = replace(cfg, seed=seed)
            path = folder / folder_of(arm) / name / f"seed{seed}" / "results.csv"
            if path.is_file():
                continue
            data = data or recorded(own, family)
            error, count = measured(arm, own, family, data)
            at: dict[str, Any] = {"iteration": 1, "real_steps": len(data[0])}
            results = Results(None, arm, name, seed)
            for task, value in enumerate(error.tolist()):
                results.add("model/mse", value, split="test", task=task, **at)
            results.add("model/parameters", count, **at)
            path.parent.mkdir(parents=True, exist_ok=True)
            results.save_as(path)
            print(f"{name}, seed {seed}, {arm}: mean squared error {float(error.nanmean()):.4g}", flush=True)


def tables(rows: Sequence[Row]) -> list[Table]:
    """For each family: mean squared error with its interval, by seed, the paper's, the number of parameters."""
    from mbrl_lightning.report.statistics import score_matrix, stratified_bootstrap
    from mbrl_lightning.report.tables import Table, number

    found, header = [], ["model", "seeds", "MSE", "95 %", "by seed", "paper", "parameters"]
    for env in sorted({row.env for row in rows}):
        table = Table(f"{env}: one-step error on unseen tasks, the same recorded data", header)
        for model in MODELS:
            mine = [row for row in rows if (row.env, row.algorithm) == (env, model)]
            seeds, _, scores = score_matrix([row for row in mine if row.metric == "model/mse"])
            if seeds:
                low, high = stratified_bootstrap(scores, lambda values: float(values.mean()))
                count = next(row.value for row in mine if row.metric == "model/parameters")
                own = dict(zip(MODELS, PAPER.get(env, ()), strict=False)).get(model)
                cells = [
                    number(scores.mean()),
                    f"[{number(low)}, {number(high)}]",
                    " ".join(map(number, scores.mean(1))),
                ]
                table.rows.append(
                    [model, str(len(seeds)), *cells, "-" if own is None else number(own), f"{count:,.0f}"]
                )
        table.notes.append("MSE: raw units, mean over outputs, transitions and tasks; paper: Table 4")
        found.append(table)
    return found


def compare(name: str, study: Study, folder: Path, rows: Sequence[Row]) -> tuple[int, str]:
    """The tables, and a figure."""
    text, picture = written(folder, f"{study.figure} of GSSM. {study.question}", tables(rows)), folder / f"{name}.png"
    if draws():
        draw(rows, picture)
    return 0, "\n\n".join([*text, figure_line(picture)])


def draw(rows: Sequence[Row], path: Path) -> Path:
    """A panel for each family: every model's error by seed, and the paper's beside it."""
    from mbrl_lightning.report.canvas import blank, colour, save
    from mbrl_lightning.report.statistics import score_matrix

    envs = sorted({row.env for row in rows})
    figure, panels = blank(1, len(envs), 4.5, 3.5)
    for axes, env in zip(panels, envs, strict=True):
        for place, model in enumerate(MODELS):
            mine = [row for row in rows if (row.env, row.algorithm, row.metric) == (env, model, "model/mse")]
            means = score_matrix(mine)[2].mean(1) if mine else []
            axes.plot(
                [place] * len(means), means, "o", color=colour(0), label="ours, a seed each" if place == 0 else None
            )
        paper = PAPER.get(env, ())
        axes.plot(range(len(paper)), paper, "_", color=colour(1), markersize=16, label="paper, Table 4")
        axes.set(title=env, yscale="log", ylabel="one-step MSE, raw units")
        axes.set_xticks(range(len(MODELS)), MODELS, rotation=30, ha="right")
        axes.legend(fontsize=8)
    return save(figure, path)


_LATENT = "search.holdout=0 dynamics.latent_dim=16"
STUDIES = {
    "gssm_models": Study(
        "Tables 4 and 5",
        "Which model predicts unseen tasks best, fitted to the same recorded data?",
        {
            "gssm": f"algorithm=gssm {_LATENT}",
            "m_dpilco": "algorithm=m_dpilco search.holdout=0",
            **{model: f"algorithm={model} {_LATENT}" for model in ("mlsm_v0", "mlsm_v1")},
            "grbal": "algorithm=grbal dynamics.activation=relu",
            **dict.fromkeys(BASELINES, f"algorithm=gssm {_LATENT}"),
        },
        "conf=cartpole dynamics.hidden=200 dynamics.layers=2 dynamics.members=1 loop.tasks_per_iteration=40 "
        "loop.exploration_steps=150 loop.first_model_steps=2000",
        compare,
        train=fit_models,
    )
}
