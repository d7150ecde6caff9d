"""Take over the rows of finished runs and write all numbers and curves of docs/results/ from them: `make results`."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from mbrl_lightning.config import available
from mbrl_lightning.report import figures, make_tables
from mbrl_lightning.report.curves import at_context, by_algorithm
from mbrl_lightning.report.kinds import REWARD, interval
from mbrl_lightning.report.metrics import METRICS, metric
from mbrl_lightning.report.paper import PAPER, full_unit
from mbrl_lightning.report.statistics import iqm, score_matrix
from mbrl_lightning.report.tables import Column, Kind, Table, build, number, span
from mbrl_lightning.runs.results import Row, read_results
from mbrl_lightning.study import STUDIES, adaptation, gssm_models, mb_mpo, rivals

DOCS = Path(__file__).parent
PAGES, IMAGES = DOCS / "results", DOCS / "images"
RESULTS, RUNS = DOCS.parent / "results", DOCS.parent / "runs"
RETURN = "return/policy"
ARMS = {"with": "told", "without": "not told", "wrong": "told wrong"}
FRONT = {
    "A context of random actions, then an episode": ("gssm_aps", "gssm", "dr_ppo", "sac"),
    "The task is hidden, and may switch in mid-episode": ("m3po", "m3po_h", "m2po", "recurrent_sac", "pearl"),
    "Nothing varies, the reward is known": ("mb_mpo", "me_trpo", "trpo", "ppo", "ddpg"),
    "No model, and a task's own episodes to adapt to": ("maml", "reptile", "rl2", "pe_ppo"),
    "A latent found by gradient on what was seen, and a planner": ("variational", "ghp_mdp"),
    "Models that adapt at every control step, or do not": (
        "grbal",
        "grbal_sac",
        "rebal",
        "mb_mpc",
        "famle",
        "cadm",
        "sac",
    ),
}
EVERY_SEED = Kind(
    "every seed, after the family's context",
    RETURN,
    tuple(
        Column(name)
        for name in (*METRICS, "model/mse_random", "model/nmse_random")
        if name.startswith(("return/", "model/nmse", "model/loss", "model/mse", "upright/share", "distance"))
        and name not in ("return/oracle", "model/multi_step_nmse")
    ),
)


def take_over() -> None:
    """Copy the rows of finished runs under runs/ to where they are committed."""
    for source in sorted(RUNS.glob("*/*/seed*/results.csv")):
        if source.parts[-4] != "debug" and _finished(source):
            _copy(source, RESULTS / source.parts[-4] / source.parts[-3] / f"{source.parts[-2]}.csv")
    for source in sorted(RUNS.glob("*/headroom/seed*/headroom.csv")):
        _copy(source, RESULTS / source.parts[-4] / "headroom" / f"{source.parts[-2]}.csv")
    for source in sorted(RUNS.glob("studies/gssm_models/*/*/seed*/results.csv")):  # models alone, no runs
        _copy(source, RESULTS.joinpath("studies", *source.parts[-5:-2], f"{source.parts[-2]}.csv"))
    for run in sorted(path.parent for path in RUNS.glob("studies/*/*/*/*/seed*/results.csv")):
        source = run / (adaptation.FILE if run.parts[-5] in adaptation.STUDIES else "results.csv")
        if source.is_file() and _finished(run / "results.csv"):
            _copy(source, RESULTS.joinpath("studies", *run.parts[-5:-3], f"{run.name}.csv"))


def _finished(source: Path) -> bool:
    return "finished_iterations" in (source.parent / "manifest.json").read_text()


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def families() -> list[str]:
    """Those that have results."""
    return sorted(path.name for path in RESULTS.iterdir() if path.is_dir() and path.name != "studies")


def rows_of(name: str) -> list[Row]:
    """All rows of a family; those of a variant (results/<conf>/m3po_k3) under the name of its folder."""
    labels = sorted(path.name for path in (RESULTS / name).iterdir() if path.is_dir() and path.name != "headroom")
    return [row._replace(algorithm=label) for label in labels for row in read_results(RESULTS / name / label)]


def page(name: str) -> str:
    """Tables and learning curves of one family."""
    rows = rows_of(name)
    each = [build(at_context(rows), name, "test", EVERY_SEED, True), build(rows, name, "test", REWARD, True)]
    tables = [*each, *make_tables(rows, name), headroom_table(name)]
    parts = [table.markdown() for table in tables if table is not None]
    variants = {row.algorithm for row in rows} - set(available("algorithm"))
    bases = {base for base in available("algorithm") if any(each.startswith(f"{base}_") for each in variants)}
    # more lines than colours in one picture
    shown = {"curve": set(available("algorithm")), "variants": bases | variants | {"m3po"} if variants else set()}
    for kind, algorithms in shown.items():
        mine = [row for row in rows if row.algorithm in algorithms - (variants if kind == "curve" else set())]
        if any(row.metric == RETURN for row in mine):
            image = f"{name}_{kind}.png"
            figures.learning_curve(mine, RETURN, IMAGES / image, split=curve_split(mine))
            parts.append(f"![{name}: return on unseen tasks against real steps](../images/{image})")
    return "\n\n".join(parts)


def curve_split(rows: Sequence[Row]) -> str:
    """The split that was measured most often along the runs: test, unless they looked at training tasks on the way."""
    places = {(*row[:4], row.split) for row in rows if row.metric == RETURN and row.split in ("test", "train")}
    times = {split: len([place for place in places if place[-1] == split]) for split in ("test", "train")}
    return "train" if times["train"] > times["test"] else "test"


def headroom_table(name: str) -> Table | None:
    """What knowing the task is worth to PPO on real steps and to a one-step model, for every seed."""
    files = sorted((RESULTS / name / "headroom").glob("seed*.csv"))
    kinds = {"return/": "PPO", "model/nmse_": "nMSE"}
    header = ["seed", "PPO's real steps", *(f"{kind}, {arm}" for kind in kinds.values() for arm in ARMS.values())]
    table = Table(f"{name}, test tasks: headroom", header)
    for file in files:
        rows = read_results(file)
        scores = [score_matrix([row for row in rows if row.metric == kind + arm])[2] for kind in kinds for arm in ARMS]
        steps = f"{max(row.real_steps for row in rows):,}"
        table.rows.append([str(rows[0].seed), steps, *(number(each.mean()) if each.size else "-" for each in scores)])
    table.notes += [
        "PPO in the true simulator, and a one-step model of random transitions, told the true parameters, told nothing,",
        "told another task's: `python -m mbrl_lightning.headroom`",
    ]
    return table if files else None


def study_section(name: str) -> str:
    """Tables and figure of a study."""
    one, picture = STUDIES[name], IMAGES / f"study_{name}.png"
    rows = one.rows(RESULTS / "studies" / name)
    if name in adaptation.STUDIES:
        tables = adaptation.tables(rows)
        adaptation.draw(rows, picture)
    elif name in gssm_models.STUDIES:
        tables = gssm_models.tables(rows)
        gssm_models.draw(rows, picture)
    elif name == "m3po_errors":
        tables = [rivals.error_table(one, rows)]
        rivals.draw(rows, picture, list(rivals.ERRORS))
    elif name in rivals.STUDIES:
        tables = rivals.tables(one, rows)
        rivals.draw(rows, picture)
    else:
        tables = mb_mpo.tables_of(name, rows)
        if name != "plasticity":  # which is drawn from checkpoints
            mb_mpo.draw(one.question, rows, picture)
    return "\n\n".join([*(table.markdown() for table in tables), f"![{one.question}](../images/{picture.name})"])


def front() -> str:
    """One line a family: each method's return with its interval, where most of the family's methods are."""
    every, parts = {name: at_context(rows_of(name)) for name in families()}, []
    have = {name: {row.algorithm for row in rows} for name, rows in every.items()}
    home = {name: max(FRONT, key=lambda title: len(own & {*FRONT[title]})) for name, own in have.items()}
    for title, methods in FRONT.items():
        ends = {name: rows for name, rows in every.items() if home[name] == title}
        papers = [entry for entry in PAPER if entry.metric == RETURN and entry.method in methods[:1]]
        header = ["family", "real steps", *methods, "random", *(["paper"] if papers else [])]
        lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
        for name, rows in ends.items():
            if mine := [row for row in rows if row.algorithm in methods]:
                reached = {row.real_steps for row in mine if row.metric == RETURN}
                random = score_matrix([row for row in mine if row.metric == "return/random"])[2]
                cells = [f"[{name}]({name}.md)", span(reached), *(best(rows, method) for method in methods)]
                paper = [number(entry.value) for entry in papers if entry.env == name] or ["-"]
                cells += [number(random.mean()) if random.size else "-", *(paper if papers else [])]
                lines.append("| " + " | ".join(cells) + " |")
        parts.append("\n".join([f"**{title}** ({units(ends, methods)})", "", *lines]))
    return "\n\n".join(parts)


def units(ends: dict[str, list[Row]], methods: Sequence[str]) -> str:
    """In words, of the families that any of the methods has results of."""
    mine = [row for rows in ends.values() for row in rows if row.algorithm in methods and row.metric == RETURN]
    kinds = {full_unit(row.unit, row.env).partition(",")[0] for row in mine} - {""}
    return " or ".join(sorted(kinds))


def best(rows: Sequence[Row], method: str) -> str:
    """A method's interval and number of seeds, or those of a variant that does better with as many seeds."""
    sign = -1.0 if metric(RETURN).better == "down" else 1.0
    labels = {row.algorithm for row in rows if f"{row.algorithm}_".startswith(f"{method}_")}
    labels -= set(available("algorithm")) - {method}
    scores = {
        label: score_matrix([row for row in rows if (row.algorithm, row.metric) == (label, RETURN)])[2]
        for label in labels
    }
    least = len(scores[method]) if method in scores else 1
    scores = {label: each for label, each in scores.items() if each.size and len(each) >= least}
    if not scores:
        return "-"
    chosen = max(scores, key=lambda label: sign * iqm(scores[label]))
    variant = chosen.removeprefix(method).strip("_")
    return f"{interval(scores[chosen])} ({', '.join(filter(None, [str(len(scores[chosen])), variant]))})"


def filled(text: str, mark: str, new: str) -> str:
    """The page with `new` between `<!-- mark -->` and `<!-- end mark -->`."""
    pattern = rf"(<!-- {re.escape(mark)} -->).*?(<!-- end {re.escape(mark)} -->)"
    return re.sub(pattern, lambda found: f"{found[1]}\n\n{new}\n\n{found[2]}", text, flags=re.DOTALL)


def begun(name: str) -> str:
    """The page of a family whose first rows have come; from then on it is written by hand around its tables."""
    labels = sorted(by_algorithm(rows_of(name)))
    known = [
        f"python -m mbrl_lightning.fit conf={name} algorithm={each}"
        for each in labels
        if each in available("algorithm")
    ]
    commands = "\n".join(known)
    return f"# {name}\n\n```bash\n{commands}\n```\n\n<!-- tables -->\n<!-- end tables -->\n"


def main(names: Sequence[str] = ()) -> None:
    """Take over finished runs, then write the pages of these families, or all pages."""
    take_over()
    for name in names or families():
        path = PAGES / f"{name}.md"
        path.write_text(filled(path.read_text() if path.is_file() else begun(name), "tables", page(name)))
    studies = PAGES / "studies.md"
    for name in STUDIES if not names else ():
        if not (RESULTS / "studies" / name).is_dir():
            continue
        studies.write_text(filled(studies.read_text(), f"study: {name}", study_section(name)))
    index = PAGES / "README.md"
    index.write_text(filled(index.read_text(), "front", front()))


if __name__ == "__main__":
    main(sys.argv[1:])
