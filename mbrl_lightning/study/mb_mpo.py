"""The studies of MB-MPO (Clavera et al. 2018), on one family each with one budget: Fig. 3 to 7."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mbrl_lightning.runs.results import Row
from mbrl_lightning.study.base import Study, draws, figure_line, written

if TYPE_CHECKING:
    from mbrl_lightning.report.tables import Table

BASE = "conf=half_cheetah_200 algorithm=mb_mpo"


def tables_of(name: str, rows: Sequence[Row]) -> list[Table]:
    """Returns of all arms, how far their bodies got, and how their training went."""
    from mbrl_lightning.report.kinds import BODY, RETURN, TRAINING
    from mbrl_lightning.report.tables import build

    env = f"{rows[0].env}, study '{name}'"
    tables = (build(rows, env, split, kind) for split, kind in (("test", RETURN), ("test", BODY), ("", TRAINING)))
    return [table for table in tables if table is not None]


def draw(question: str, rows: Sequence[Row], path: Path) -> Path:
    """Learning curves of all arms, of the policy before it adapts."""
    from mbrl_lightning.report.figures import learning_curve

    return learning_curve(rows, "return/policy", path, shot=0, title=question)


def curves(name: str, study: Study, folder: Path, rows: Sequence[Row]) -> tuple[int, str]:
    """Tables of all arms, and their learning curves."""
    text, picture = written(folder, heading(study), tables_of(name, rows)), folder / f"{name}.png"
    if draws():
        draw(study.question, rows, picture)
    return 0, "\n\n".join([*text, figure_line(picture)])


def maps(name: str, study: Study, folder: Path, rows: Sequence[Row]) -> tuple[int, str]:
    """Tables of all arms, the rank correlation at every checkpoint of every run, and maps of the newest."""
    from mbrl_lightning.evaluate import load_run
    from mbrl_lightning.measuring.plasticity import Plasticity, draw_maps, grid, plasticity
    from mbrl_lightning.runs import checkpoint

    text, picture = written(folder, heading(study), tables_of(name, rows)), folder / f"{name}.png"
    states, found = grid(), list[list[Plasticity]]()
    for run in sorted(file.parent for file in folder.rglob("config.yaml")):
        loop, each = load_run(run), list[Plasticity]()
        for step in reversed(checkpoint.steps(run / "checkpoints")):
            number = loop.restore(run, weights_only=True, last=step)
            each.append(Plasticity(run.name, number, states, *plasticity(loop.algorithm, states)))
        found.append(each)
    if draws():
        draw_maps([each[-1] for each in found], picture)
    lines = ["rank correlation over the plane of KL(pi, pi') and the models' deviation"]
    for each in found:
        said = (f"{now.correlation:+.2f} after iteration {now.iteration}" for now in each)
        lines.append(f"  {each[-1].run}: " + ", ".join(said))
    return 0, "\n\n".join([*text, "\n".join(lines), figure_line(picture)])


def heading(study: Study) -> str:
    """Title of a study's text."""
    return f"{study.figure} of MB-MPO. {study.question}"


STUDIES = {
    "plasticity": Study(
        "Fig. 3",
        "Does the policy change most by its inner step where the models disagree?",
        {"mb_mpo": ""},
        "conf=point2d algorithm=mb_mpo loop.keep=1000",
        maps,
    ),
    "biased": Study(
        "Fig. 4",
        "Half-cheetah, 100 steps, models off by U(0, b_max) and noise of 0.1: does it still run?",
        {
            f"{algorithm}, b_max={bias}": f"algorithm={algorithm} meta.bias={bias}"
            for bias in ("0", "0.5", "1")
            for algorithm in ("mb_mpo", "me_trpo")
        },
        "conf=half_cheetah_200 env.options.horizon=100 meta.noise=0.1",
        curves,
    ),
    "horizon": Study(
        "Fig. 5",
        "Half-cheetah, 1,000 steps: is learning steady with an inner step, and without?",
        {"with adaptation": "", "without adaptation": "meta.inner_lr=0"},
        f"{BASE} env.options.horizon=1000 search.horizon=200 search.initial_starts=0.5 loop.tasks_per_iteration=4 "
        "evaluation.context=2000",
        curves,
    ),
    "tailored": Study(
        "Fig. 6",
        "Who should collect the real data: the adapted policies, or the one before it adapts?",
        {"adapted policies collect": "", "the policy before it adapts": "meta.collectors=prior"},
        BASE,
        curves,
    ),
    "inner_step": Study(
        "Fig. 7a",
        "How large an inner step?",
        {f"inner step {size}": f"meta.inner_lr={size}" for size in ("0", "0.01", "0.1", "0.3")},
        BASE,
        curves,
    ),
    "ensemble": Study(
        "Fig. 7b",
        "How many models?",
        {f"{count} model{'s' * (count > 1)}": f"dynamics.members={count}" for count in (1, 3, 5, 10)},
        BASE,
        curves,
    ),
    "outer_steps": Study(
        "Fig. 7c",
        "How many outer steps before the models are fitted again?",
        {f"{count} outer steps": f"meta.updates={count}" for count in (10, 30, 60)},
        BASE,
        curves,
    ),
}
