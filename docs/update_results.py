"""Write the tables and curves of docs/results.md from the rows in results/: `make results`."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from mbrl_lightning.report import make_tables
from mbrl_lightning.reporting import figures
from mbrl_lightning.reporting.paper import PAPER
from mbrl_lightning.reporting.tables import Table, number
from mbrl_lightning.results import Row, read_results

DOCS = Path(__file__).parent
RESULTS, RUNS, PAGE = DOCS.parent / "results", DOCS.parent / "runs", DOCS / "results.md"
README = DOCS.parent / "README.md"
CLAIM = ("gssm_aps", "return/policy")
COLUMNS = {
    "return/policy": "deterministic",
    "return/sampled": "sampled",
    "return/wrong_belief": "another task's belief",
    "return/fine_tuned": "fine-tuned",
    "return/random": "random actions",
    "model/mse": "MSE, policy's episodes",
    "model/nmse": "nMSE",
    "model/mse_random": "MSE, random policy",
    "model/nmse_random": "nMSE, random policy",
    "upright/share": "upright",
    "distance": "metres",
}


def take_over() -> None:
    """Copy the rows of finished runs under runs/ into results/<conf>/<algorithm>/seed<k>.csv."""
    for source in sorted(RUNS.glob("*/*/seed*/results.csv")):
        conf, algorithm, seed = source.parts[-4:-1]
        target = RESULTS / conf / algorithm / f"{seed}.csv"
        if conf != "debug" and "finished_iterations" in (source.parent / "manifest.json").read_text():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)


def by_seed(rows: Sequence[Row], env: str) -> Table:
    """Every seed's means over the unseen tasks at the family's context length, at its last iteration."""
    test = [row for row in rows if row.split == "test" and row.task >= 0]
    table = Table(f"{env}, test tasks: every seed", ["algorithm", "seed", "real steps", "context", *COLUMNS.values()])
    for algorithm, seed in sorted({(row.algorithm, row.seed) for row in test}):
        mine = [row for row in test if (row.algorithm, row.seed) == (algorithm, seed)]
        end = max(row.iteration for row in mine)
        mine = [row for row in mine if row.iteration == end]
        shot = next((row.shot for row in mine if row.metric == "return/random"), mine[0].shot)
        cells = [algorithm, str(seed), f"{mine[0].real_steps:,}", str(shot)]
        for metric in COLUMNS:
            values = [row.value for row in mine if row.metric == metric and row.shot == shot]
            cells.append(number(sum(values) / len(values)) if values else "-")
        table.rows.append(cells)
    return table


def section(name: str) -> str:
    """Tables and the learning curve of one family."""
    rows = read_results(RESULTS / name)
    tables = [by_seed(rows, name), *make_tables(rows, name)]
    figures.learning_curve(rows, "return/policy", DOCS / "images" / f"{name}_curve.png", split="test")
    parts = [table.markdown() for table in tables]
    return "\n\n".join([*parts, f"![{name}: return on unseen tasks against real steps](images/{name}_curve.png)"])


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
        rows = read_results(RESULTS / name)
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


def _mean(values: dict[int, float]) -> str:
    return number(sum(values.values()) / len(values)) if values else "-"


def main() -> None:
    """Take over finished runs, then rewrite what stands between the marks of the page."""
    take_over()
    page = PAGE.read_text()
    for name in re.findall(r"<!-- table: (\w+) -->", page):
        if not (RESULTS / name).is_dir():
            continue
        mark, end = f"<!-- table: {name} -->", f"<!-- end: {name} -->"
        page = re.sub(rf"{mark}(.*?{end})?", lambda _: f"{mark}\n\n{section(name)}\n\n{end}", page, flags=re.DOTALL)  # noqa: B023
    PAGE.write_text(page)
    names = [name for name in re.findall(r"<!-- table: (\w+) -->", page) if (RESULTS / name).is_dir()]
    mark, end = "<!-- results -->", "<!-- end results -->"
    text = README.read_text()
    README.write_text(
        re.sub(rf"{mark}(.*?{end})?", lambda _: f"{mark}\n\n{summary(names)}\n\n{end}", text, flags=re.DOTALL)
    )


if __name__ == "__main__":
    main()
