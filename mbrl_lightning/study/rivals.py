"""Methods side by side on families of two papers: GSSM's Tables 1 and 2 with Fig. 2 to 4, M3PO's Fig. 7, 11, 12, 14 and 17."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mbrl_lightning.runs.results import Results, Row, read_results
from mbrl_lightning.study.base import Study, draws, figure_line, folder_of, written

if TYPE_CHECKING:
    from mbrl_lightning.report.tables import Table

PAPER = {  # GSSM: Table 2, of DR-PPO and PE-PPO Table 1; at which multiple of the model-based methods' real steps
    "acrobot gssm_aps": -0.478,
    "acrobot gssm": -0.506,
    "acrobot m_dpilco": -0.645,
    "acrobot mlsm_v0": -0.560,
    "acrobot mlsm_v1": -0.524,
    "acrobot grbal": -0.7775,
    "acrobot dr_ppo 1x": -0.836,
    "acrobot dr_ppo 3x": -0.433,
    "acrobot pe_ppo 1x": -0.828,
    "acrobot pe_ppo 3x": -0.420,
    "half_cheetah gssm_aps": 1597,
    "half_cheetah gssm": 1307,
    "half_cheetah m_dpilco": 862,
    "half_cheetah mlsm_v0": 827,
    "half_cheetah mlsm_v1": 1227,
    "half_cheetah grbal": -17.9,
    "half_cheetah dr_ppo 1x": 453,
    "half_cheetah dr_ppo 25x": 1361,
    "half_cheetah pe_ppo 1x": -44.1,
    "half_cheetah pe_ppo 25x": 608,
}
ERRORS = {
    "train/model_nll": "model error: NLL of held-out steps [nats]",
    "policy/kl_cloned": "divergence: KL from cloned policy [nats]",
    "train/loss_qvalue": "TD error: loss of the Q functions",
}
FILE = "evaluation/errors.csv"


def tables(study: Study, rows: Sequence[Row]) -> list[Table]:
    """Of each family a table of returns on unseen tasks, with intervals, by seed, beside the paper's."""
    from mbrl_lightning.report.curves import at_context
    from mbrl_lightning.report.statistics import iqm, score_matrix, stratified_bootstrap
    from mbrl_lightning.report.tables import Table, number

    found, header = [], ["method", "seeds", "real steps", "IQM [95 %]", "by seed", "paper"]
    for env in sorted({row.env for row in rows}):
        table = Table(f"{env}: return on unseen tasks", header)
        ends = [row for row in at_context([row for row in rows if row.env == env]) if row.metric == "return/policy"]
        for arm in [arm for arm in study.arms if any(row.algorithm == arm for row in ends)]:
            own = [row for row in ends if row.algorithm == arm]
            seeds, _, scores = score_matrix(own)
            low, high = (number(end) for end in stratified_bootstrap(scores))
            cells = [f"{max(row.real_steps for row in own):,}", f"{number(iqm(scores))} [{low}, {high}]"]
            cells += [" ".join(map(number, scores.mean(1))), number(PAPER[arm]) if arm in PAPER else "-"]
            table.rows.append([short(arm), str(len(seeds)), *cells])
        table.notes.append("deterministic policy after the family's context; bootstrap over seeds within tasks")
        found.append(table)
    return found


def by_family(name: str, study: Study, folder: Path, rows: Sequence[Row]) -> tuple[int, str]:
    """Of each family a table, and a panel with learning curves."""
    text, picture = written(folder, f"{study.figure}. {study.question}", tables(study, rows)), folder / f"{name}.png"
    if draws():
        draw(rows, picture)
    return 0, "\n\n".join([*text, figure_line(picture)])


def short(arm: str) -> str:
    """An arm's name without its family's."""
    return arm.partition(" ")[2] or arm


def draw(rows: Sequence[Row], path: Path, metrics: Sequence[str] = ("return/policy",)) -> Path:
    """A panel for each metric and family: means over tasks against real steps, thick over seeds, thin by seed.

    Steps are on a logarithmic axis where one arm makes more than ten times another's.
    """
    from mbrl_lightning.report.canvas import blank, colour, save
    from mbrl_lightning.report.curves import by_algorithm, choose, curve
    from mbrl_lightning.report.metrics import metric as shown

    spots = [(env, each) for env in sorted({row.env for row in rows}) for each in metrics]
    figure, panels = blank(1, len(spots), 5.5, 4.5)
    for axes, (env, metric) in zip(panels, spots, strict=True):
        mine = [row for row in rows if row.env == env and row.metric == metric]
        for number, (arm, own) in enumerate(by_algorithm(choose(mine, metric)).items()):
            line = curve(own, "real_steps")
            for places, values in line.seeds:
                axes.plot(places, values, color=colour(number), linewidth=0.7, alpha=0.5)
            style = "-" if number < 7 else "--"
            axes.plot(*line.mean(), style, marker="o", markersize=4, color=colour(number), label=short(arm))
        last = [max(row.real_steps for row in own) for own in by_algorithm(mine).values()]
        scale = "log" if max(last) > 10 * min(last) > 0 else "linear"
        axes.set(title=env, xlabel="real steps", ylabel=ERRORS.get(metric, shown(metric).heading), xscale=scale)
        axes.legend(fontsize=8)
    return save(figure, path)


def divergences(run: Path) -> list[Row]:
    """KL of the policy from one that imitates the data, at each checkpoint of a finished run; kept in its folder `evaluation`."""
    from mbrl_lightning.data.buffer import TaskBuffer
    from mbrl_lightning.data.windows import Histories
    from mbrl_lightning.evaluate import load_run
    from mbrl_lightning.policies.cloning import divergence_from_data
    from mbrl_lightning.runs import checkpoint

    if not (run / FILE).is_file():
        loop = load_run(run)
        algorithm, cfg, results = loop.algorithm, loop.cfg, loop.results
        results = Results(None, results.algorithm, results.env, results.seed)
        for step in reversed(checkpoint.steps(run / "checkpoints")):
            _, state = checkpoint.load(run / "checkpoints", step)
            algorithm.load_state_dict(state["algorithm"])
            real = TaskBuffer(len(loop.family.parameters), cfg.loop.buffer)  # the data that there were then
            real.load_state_dict(state["world"]["real"])
            histories = Histories(real, algorithm.dynamics.inputs, cfg.history.length, algorithm.device)
            value = divergence_from_data(algorithm.policy, histories, cfg, loop.step, loop.streams["evaluation"])
            results.add("policy/kl_cloned", value, iteration=step, real_steps=real.num_steps)
        results.save_as(run / FILE)
    return read_results(run / FILE)


def error_table(study: Study, rows: Sequence[Row]) -> Table:
    """What the last iteration of each arm has of the three."""
    from mbrl_lightning.report.curves import last
    from mbrl_lightning.report.statistics import score_matrix
    from mbrl_lightning.report.tables import Table, number

    table = Table(f"{rows[0].env}: the last iteration, by seed", ["method", *ERRORS.values()])
    for arm in study.arms:
        cells = []
        for metric in ERRORS:
            own = last([row for row in rows if (row.algorithm, row.metric) == (arm, metric)])
            cells.append(" ".join(map(number, score_matrix(own)[2].mean(1))) if own else "-")
        table.rows.append([arm, *cells])
    return table


def errors(name: str, study: Study, folder: Path, rows: Sequence[Row]) -> tuple[int, str]:
    """The three along training: what the last iteration has in a table, all of it in a figure."""
    found = [row for row in rows if row.metric in ERRORS and row.metric != "policy/kl_cloned"]
    for arm in study.arms:
        runs = sorted(file.parent for file in (folder / folder_of(arm)).glob("*/*/seed*/config.yaml"))
        found += [row._replace(algorithm=arm) for run in runs for row in divergences(run)]
    text, picture = (
        written(folder, f"{study.figure}. {study.question}", [error_table(study, found)]),
        folder / f"{name}.png",
    )
    if draws():
        draw(found, picture, [metric for metric in ERRORS if any(row.metric == metric for row in found)])
    return 0, "\n\n".join([*text, figure_line(picture)])


_SHEET = "search.updates=1 search.epochs=10 search.max_grad_norm=0.5 policy.hidden=[128,128]"
_MODELS = ("gssm_aps", "gssm", "m_dpilco", "mlsm_v0", "mlsm_v1", "grbal")
_MULTIPLES = {  # of the model-based methods' real steps, in iterations of PPO
    "cartpole": ("search.tasks=20 search.minibatch=100 search.lr=5e-4", {"1x": 12, "3x": 36, "25x": 300}),
    "acrobot": (
        "search.tasks=5 search.horizon=200 search.minibatch=250 search.lr=1e-3 search.entropy=0.01",
        {"1x": 18, "3x": 54},
    ),
    "half_cheetah": (
        "search.tasks=2 search.horizon=500 search.minibatch=64 search.lr=3e-4 search.gamma=0.98 search.lam=0.92 "
        "policy.initial_std=0.3",
        {"1x": 68, "25x": 1700},
    ),
}
_EQUAL = {  # what makes the real steps of a method those of the others: half of PE-PPO's, or a part of them, are contexts
    "cartpole pe_ppo": {"search.tasks": "10"},
    "acrobot pe_ppo": {"search.tasks": "4", "pearl.context": "50"},
    "half_cheetah pe_ppo": {"search.horizon": "400", "pearl.context": "100"},
    "cartpole grbal": {"loop.episodes_per_task": "4"},
    "acrobot grbal": {"loop.tasks_per_iteration": "6"},
    "half_cheetah grbal": {"loop.tasks_per_iteration": "17"},
}
_PLAN = "planner.kind=mppi planner.horizon=10 planner.candidates=100 planner.iterations=1"
_RIVALS = {
    "m3po": "",
    "pearl": "",
    "rebal": f"{_PLAN} dynamics.members=3",
    "ghp_mdp": f"{_PLAN} variational.every=5",
    "rl2": "loop.iterations=40 loop.episodes_per_task=2 search.tasks=10 search.minibatch=1000",
}


def _equal(conf: str, algorithm: str, words: str) -> str:
    """The words of an arm, with those of `_EQUAL` in the place of its own."""
    values = dict(word.split("=", 1) for word in words.split()) | _EQUAL.get(f"{conf} {algorithm}", {})
    return " ".join([f"conf={conf} algorithm={algorithm}", *(f"{key}={value}" for key, value in values.items())])


STUDIES = {
    "gssm_policies": Study(
        "Tables 1 and 2, Fig. 2 to 4 of GSSM",
        "Who returns most in unseen tasks at equal real steps, and PPO at multiples of them?",
        {f"{conf} {each}": _equal(conf, each, "") for conf in _MULTIPLES for each in _MODELS}
        | {
            f"{conf} {each} {multiple}": _equal(conf, each, f"{_SHEET} {words} loop.iterations={count}")
            for conf, (words, counts) in _MULTIPLES.items()
            for each in ("dr_ppo", "pe_ppo")
            for multiple, count in counts.items()
        },
        "",
        by_family,
    ),
    "m3po_rivals": Study(
        "Fig. 7 and 14 of M3PO",
        "M3PO and other ways of meta-learning where the task is hidden and switches",
        {
            f"{conf} {algorithm}": f"conf={conf} algorithm={algorithm} {words}"
            for conf in ("point_switch", "half_cheetah_pier")
            for algorithm, words in _RIVALS.items()
        },
        "",
        by_family,
    ),
    "m3po_errors": Study(
        "Fig. 11, 12 and 17 of M3PO",
        "How do errors of model and Q functions, and the policy's distance from the data, go along training?",
        {algorithm: f"algorithm={algorithm}" for algorithm in ("m3po", "m2po")},
        "conf=point_switch loop.keep=1000",
        errors,
    ),
}
