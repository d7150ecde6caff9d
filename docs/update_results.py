"""Write the tables and curves of docs/results.md from the rows in results/: `make results`."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from hidden_families import SECTIONS, begin_section

from mbrl_lightning import study
from mbrl_lightning.config import available
from mbrl_lightning.report import figures, make_tables
from mbrl_lightning.report.curves import place_in_order
from mbrl_lightning.report.hidden_tables import reward_table
from mbrl_lightning.report.paper import PAPER
from mbrl_lightning.report.tables import Table, number
from mbrl_lightning.runs.results import Row, read_results

DOCS = Path(__file__).parent
RESULTS, RUNS, PAGE = DOCS.parent / "results", DOCS.parent / "runs", DOCS / "results.md"
README = DOCS.parent / "README.md"
ARMS = {"with": "told", "without": "not told", "wrong": "told wrong"}
CLAIM = ("gssm_aps", "return/policy")
SIDE_BY_SIDE = {
    "hidden tasks": ("m3po", "m3po_h", "m2po", "recurrent_sac", "pearl"),
    "known reward": ("mb_mpo", "me_trpo", "trpo", "ppo", "ddpg"),
    "adapting models": ("grbal", "rebal", "mb_mpc"),
}
COLUMNS = {
    "return/policy": "deterministic",
    "return/sampled": "sampled",
    "return/wrong_belief": "another task's belief",
    "return/fine_tuned": "fine-tuned",
    "return/unadapted": "un-adapted",
    "return/random": "random actions",
    "model/nmse_before": "nMSE of the next K steps before adapting",
    "model/nmse_after": "after adapting",
    "model/loss_before": "L of them before adapting",
    "model/loss_after": "L after adapting",
    "model/mse": "MSE, policy's episodes",
    "model/nmse": "nMSE",
    "model/mse_random": "MSE, exploration",
    "model/nmse_random": "nMSE, exploration",
    "upright/share": "upright",
    "distance": "metres",
}


def take_over() -> None:
    """Copy the rows of finished runs under runs/ into results/<conf>/<algorithm>/seed<k>.csv."""
    for source in sorted(RUNS.glob("*/*/seed*/results.csv")):
        conf, algorithm, seed = source.parts[-4:-1]
        target = RESULTS / conf / algorithm / f"{seed}.csv"
        if conf != "debug" and "finished_iterations" in (source.parent / "manifest.json").read_text():
            _copy(source, target)
    for source in sorted(RUNS.glob("*/headroom/seed*/headroom.csv")):
        _copy(source, RESULTS / source.parts[-4] / "headroom" / f"{source.parts[-2]}.csv")
    for source in sorted(RUNS.glob("studies/*/*/*/*/seed*/results.csv")):
        study, arm, _, _, seed = source.parts[-6:-1]
        if "finished_iterations" in (source.parent / "manifest.json").read_text():
            _copy(source, RESULTS / "studies" / study / arm / f"{seed}.csv")


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def rows_of(name: str) -> list[Row]:
    """All rows of a family; those of a variant (results/<conf>/m3po_k3) under the name of its folder."""
    labels = sorted(
        folder.name for folder in (RESULTS / name).iterdir() if folder.is_dir() and folder.name != "headroom"
    )
    return [row._replace(algorithm=label) for label in labels for row in read_results(RESULTS / name / label)]


def by_seed(rows: Sequence[Row], env: str) -> Table | None:
    """Every seed's means over the unseen tasks at the family's context length, at its last iteration."""
    test = [row for row in rows if row.split == "test" and row.task >= 0]
    table = Table(f"{env}, test tasks: every seed", ["algorithm", "seed", "real steps", "context", *COLUMNS.values()])
    runs = {(row.algorithm, row.seed) for row in test}
    for algorithm, seed in sorted(runs, key=lambda run: (place_in_order(run[0]), run[1])):
        mine = [row for row in test if (row.algorithm, row.seed) == (algorithm, seed)]
        end = max(row.iteration for row in mine)
        mine = [row for row in mine if row.iteration == end]
        shot = next((row.shot for row in mine if row.metric == "return/random"), mine[0].shot)
        cells = [algorithm, str(seed), f"{mine[0].real_steps:,}", str(shot)]
        for metric in COLUMNS:
            values = [row.value for row in mine if row.metric == metric and row.shot == shot]
            cells.append(number(sum(values) / len(values)) if values else "-")
        table.rows.append(cells)
    return table if table.rows else None


def headroom_table(name: str) -> Table | None:
    """What knowing the task is worth to PPO on real steps and to a one-step model, for every seed."""
    files = sorted((RESULTS / name / "headroom").glob("seed*.csv"))
    header = ["seed", "PPO's real steps", *(f"PPO, {arm}" for arm in ARMS.values())]
    table = Table(f"{name}, test tasks: headroom", [*header, *(f"nMSE, {arm}" for arm in ARMS.values())])
    for file in files:
        rows = read_results(file)
        cells = [str(rows[0].seed), f"{max(row.real_steps for row in rows):,}"]
        for kind in ("return/", "model/nmse_"):
            for arm in ARMS:
                values = [row.value for row in rows if row.metric == f"{kind}{arm}" and row.task >= 0]
                cells.append(number(sum(values) / len(values)) if values else "-")
        table.rows.append(cells)
    table.notes.append(
        "PPO in the true simulator, and a one-step model of random transitions, told the true parameters,"
    )
    table.notes.append("told nothing, told another task's: `python -m mbrl_lightning.headroom`")
    return table if files else None


def study_section(name: str) -> str:
    """Tables and figure of one of MB-MPO's studies."""
    rows = study.rows_of(name, RESULTS / "studies" / name)
    parts = [table.markdown() for table in study.tables_of(name, rows)]
    if name != "plasticity":  # which is drawn from checkpoints
        study.draw(name, rows, DOCS / "images" / f"study_{name}.png")
    return "\n\n".join([*parts, f"![{study.STUDIES[name].question}](images/study_{name}.png)"])


def section(name: str) -> str:
    """Tables and learning curves of one family."""
    rows = rows_of(name)
    tables = [by_seed(rows, name), reward_table(rows, name, "test", each_seed=True), *make_tables(rows, name)]
    tables.append(headroom_table(name))
    parts = [table.markdown() for table in tables if table is not None]
    variants = sorted({row.algorithm for row in rows} - set(available("algorithm")))
    drawn = {"curve": [row for row in rows if row.algorithm not in variants]}
    if variants:  # more lines than colours in one picture
        bases = {name for name in available("algorithm") if any(each.startswith(f"{name}_") for each in variants)}
        drawn["variants"] = [row for row in rows if row.algorithm in bases | {*variants, "m3po"}]
    for kind, mine in drawn.items():
        if any(row.metric == "return/policy" for row in mine):
            image = f"{name}_{kind}.png"
            figures.learning_curve(mine, "return/policy", DOCS / "images" / image, split=curve_split(mine))
            parts.append(f"![{name}: return on unseen tasks against real steps](images/{image})")
    return "\n\n".join(parts)


def curve_split(rows: Sequence[Row]) -> str:
    """The split that was measured most often along the runs: test, unless they looked at training tasks on the way."""
    places = {(*row[:4], row.split) for row in rows if row.metric == "return/policy" and row.split in ("test", "train")}
    times = {split: len([place for place in places if place[-1] == split]) for split in ("test", "train")}
    return "train" if times["train"] > times["test"] else "test"


def at_context(rows: Sequence[Row], algorithm: str, metric: str = "return/policy") -> dict[int, float]:
    """Mean over the unseen tasks for every seed, after the family's context, at the seed's last iteration."""
    mine = [row for row in rows if (row.algorithm, row.split) == (algorithm, "test") and row.task >= 0]
    means: dict[int, float] = {}
    for seed in sorted({row.seed for row in mine}):
        own = [row for row in mine if row.seed == seed]
        shot = next((row.shot for row in own if row.metric == "return/random"), own[0].shot)
        end = max(row.iteration for row in own)
        values = [row.value for row in own if (row.metric, row.shot, row.iteration) == (metric, shot, end)]
        if values:
            means[seed] = sum(values) / len(values)
    return means


def summary(names: Sequence[str]) -> str:
    """One line a family: our seeds, the paper, the model-free rival at equal real steps, random actions."""
    lines = [
        "| family | real steps | GSSM+APS, unseen tasks: mean (each seed) | paper | DR-PPO, equal steps | random |"
    ]
    lines.append("|---|---|---|---|---|---|")
    for name in names:
        rows = rows_of(name)
        ours, rival = at_context(rows, "gssm_aps"), at_context(rows, "dr_ppo")
        if not ours:
            continue
        paper = [entry.value for entry in PAPER if (entry.env, entry.method, entry.metric) == (name, *CLAIM)]
        steps = max(row.real_steps for row in rows if row.algorithm == "gssm_aps")
        cells = [f"`{name}`", f"{steps:,}", f"**{_mean(ours)}** ({', '.join(number(v) for v in ours.values())})"]
        cells += [
            number(paper[0]) if paper else "-",
            _mean(rival),
            _mean(at_context(rows, "gssm_aps", "return/random")),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def side_by_side(names: Sequence[str], methods: Sequence[str]) -> str:
    """One line a family that has any of them: mean over unseen tasks and seeds of each method, and how many seeds that are."""
    lines = [f"| family | real steps | {' | '.join(f'`{name}`' for name in methods)} | random |"]
    lines.append("|---" * (len(methods) + 3) + "|")
    for name in names:
        rows = [row for row in rows_of(name) if row.algorithm in methods]
        found = {method: means for method in methods if (means := at_context(rows, method))}
        if not found:
            continue
        seeds = [f"{_mean(found[method])} ({len(found[method])})" if method in found else "-" for method in methods]
        random = at_context(rows, next(iter(found)), "return/random")
        steps = max(row.real_steps for row in rows if row.algorithm == next(iter(found)))
        cells = [f"`{name}`", f"{steps:,}", *seeds, _mean(random)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _mean(values: dict[int, float]) -> str:
    return number(sum(values.values()) / len(values)) if values else "-"


def with_hidden_families(page: str) -> str:
    """The page with a section for every family with a hidden task that has results and none yet."""
    for name in SECTIONS:
        if (RESULTS / name).is_dir() and f"<!-- table: {name} -->" not in page:
            labels = sorted((path.name for path in (RESULTS / name).iterdir() if path.is_dir()), key=place_in_order)
            files = {label: (RESULTS / name / label).glob("seed*.csv") for label in labels}
            found = {label: sorted(int(path.stem[4:]) for path in files[label]) for label in labels}
            first = not any(f"<!-- table: {other} -->" in page for other in SECTIONS)
            page = f"{page.rstrip()}\n\n{begin_section(name, found, first)}\n"
    return page


def filled(page: str, kind: str, name: str, text: str) -> str:
    """The page with `text` between the marks `<!-- kind: name -->` and `<!-- end: name -->` (or `end kind`)."""
    mark = f"<!-- {kind}: {name} -->" if name else f"<!-- {kind} -->"
    end = {"table": f"<!-- end: {name} -->", "study": f"<!-- end study: {name} -->"}.get(kind, f"<!-- end {kind} -->")
    return re.sub(rf"{mark}(.*?{end})?", lambda _: f"{mark}\n\n{text}\n\n{end}", page, flags=re.DOTALL)


def main() -> None:
    """Take over finished runs, then rewrite what stands between the marks of the page."""
    take_over()
    page = with_hidden_families(PAGE.read_text())
    names = [name for name in re.findall(r"<!-- table: (\w+) -->", page) if (RESULTS / name).is_dir()]
    for name in names:
        page = filled(page, "table", name, section(name))
    for name in re.findall(r"<!-- study: (\w+) -->", page):
        if (RESULTS / "studies" / name).is_dir():
            page = filled(page, "study", name, study_section(name))
    PAGE.write_text(page)
    readme = filled(README.read_text(), "results", "", summary(names))
    for title, methods in SIDE_BY_SIDE.items():
        readme = filled(readme, title, "", side_by_side(names, methods))
    README.write_text(readme)


if __name__ == "__main__":
    main()
