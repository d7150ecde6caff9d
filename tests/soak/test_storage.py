"""Kills, full and failing disks at every operation, and damaged files: nothing is lost, nothing passes in silence."""

from __future__ import annotations

import itertools
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from damage import DAMAGES

from mbrl_lightning.config import load_config

from .harness import KILLED, at_operation, child, command, none_is_wrong, training, values, verdict

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200), pytest.mark.usefixtures("elsewhere")]
RUN = Path("runs/debug/gssm_aps/seed0")
ASIDE = RUN.with_name("seed0.tmp-replaced")
NEW = ("fit", "conf=debug", "loop.iterations=2")
RESUME = ("fit", f"resume={RUN}", "loop.iterations=3")
OVERWRITE = (*NEW, "overwrite=true", "loop.iterations=3")


@pytest.fixture
def old(tmp_path):
    """A finished run, kept in `old`, and its rows."""
    status, text = child(command(*NEW))
    assert status == 0, text
    rows = values(RUN)
    shutil.move("runs", "old")
    return rows


def prepare(before: bool) -> None:
    shutil.rmtree("runs", ignore_errors=True)
    if before:
        shutil.copytree("old", "runs")


def go_on(config) -> str:
    """The same command again, or what it says is the way on; what is wrong with that."""
    status, text = child(training(config))
    if status == 2 and "already holds a run" in text:
        status, text = child(training(replace(config, resume=str(RUN))))
    return verdict(status, text, {0})


@pytest.mark.parametrize("fault", ["kill", "ENOSPC", "EIO"])
@pytest.mark.parametrize(
    ("words", "before"), [(NEW, False), (RESUME, True), (OVERWRITE, True)], ids=["new", "resumed", "overwritten"]
)
def test_a_fault_at_every_operation(old, words, before, fault):
    prepare(before)
    config = load_config(words[1:])
    assert child(at_operation(0, fault, training(config)))[0] == 0
    wanted, count = values(RUN), int(Path("count").read_text())

    def outcome(number: int) -> str:
        prepare(before)
        status, text = child(at_operation(number, fault, training(config)))
        wrong = verdict(status, text, {0, 5, KILLED})
        there = [place for place in (RUN, ASIDE) if (place / "results.csv").exists()]
        kept = [rows for rows in map(values, there) if rows[: len(old)] == old or rows == wanted[: len(rows)] != []]
        wrong = wrong or ("neither the old run nor the new one is there" if before and not kept else "")
        wrong = wrong or go_on(config) or ("" if values(RUN) == wanted else "other rows than undisturbed")
        left = [path.name for path in RUN.parent.iterdir() if path.name != RUN.name]
        return wrong or (f"left over: {left}" if left else "")

    none_is_wrong(f"operations, {fault} at each", ((f"{n}", outcome(n)) for n in range(1, count + 1)))


def test_random_kills_of_a_real_run(tmp_path):
    words = ("fit", "conf=debug", "loop.iterations=3", "loop.evaluate_every=1")
    status, text = child(command(*words, stubbed=False), seconds=300)
    assert status == 0, text
    wanted, draw, kills, runs = values(RUN), random.Random(0), 0, 0
    shutil.move("runs", "whole")
    while kills < 100:
        now = words if not (RUN / "config.yaml").exists() else ("fit", f"resume={RUN}")
        status, text = child(command(*now, stubbed=False), seconds=300, kill_after=draw.uniform(0, 2.5))
        assert not verdict(status, text, {0, KILLED})
        kills += status == KILLED
        if status == 0:
            runs += 1
            assert values(RUN) == wanted
            shutil.rmtree("runs")
    print(f"{kills} kills, {runs} runs that ended, all with the rows of one that was left alone")


FILES = ["config.yaml", "manifest.json", "results.csv", "lock", "checkpoints/rows"]
FILES += [f"checkpoints/step_0000000{step}/{name}" for step in (1, 2) for name in ("state.pt", "manifest.json")]
VERBS = {
    "resume": ("fit", f"resume={RUN}"),
    "longer": RESUME,
    "seeds": ("fit", "conf=debug", "loop.iterations=2", "seeds=[0]"),
    "overwrite": OVERWRITE,
    "report": ("report", str(RUN)),
}


@pytest.mark.parametrize("verb", VERBS)
def test_damages(old, verb):
    """Whatever is damaged: rows as before, or an error; rows that come out of a record are told of."""
    prepare(True)
    assert child(command(*RESUME))[0] == 0
    wanted = values(RUN) if verb in ("longer", "overwrite") else old

    def outcome(file: str, damage: Callable[[Path], object]) -> str:
        prepare(True)
        damage(RUN / file)
        status, text = child(command(*VERBS[verb]), seconds=30)
        wrong = verdict(status, text, {0, 2, 5})
        if not wrong and status == 0 and verb != "report" and (rows := values(RUN)) != wanted:
            wrong = f"{len(rows)} rows for {len(wanted)}:\n{text}"
        silent = status == 0 and verb in ("report", "longer") and "record" not in text and "no end" not in text
        return wrong or ("in silence" if silent and file == "results.csv" else "")

    cases = itertools.product(FILES, DAMAGES)
    none_is_wrong(f"damages, then {verb}", ((f"{file} {name}", outcome(file, DAMAGES[name])) for file, name in cases))
