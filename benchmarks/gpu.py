"""`python -m benchmarks.gpu`: whole short runs and planning, on this machine's GPU and on one of its CPU threads.

Prints a table and replaces docs/benchmarks_gpu.md. Without a GPU it says so and stops with exit code 2.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.__main__ import machine
from benchmarks.planning import LOOP, ONE, WANTED, Planning
from mbrl_lightning.algorithms import make_algorithm
from mbrl_lightning.config import compose
from mbrl_lightning.config.console import quiet_libraries
from mbrl_lightning.envs import make_family
from mbrl_lightning.loop import MetaLoop
from mbrl_lightning.report.tables import Table

PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks_gpu.md"
SHORT = {"loop.iterations": 2, "loop.evaluate_every": 0, "loop.last_model_steps": 0}
RUNS: dict[str, dict[str, object]] = {
    "GSSM+APS": {"conf": "half_cheetah", "loop.first_model_steps": 60, "loop.model_steps": 60, "search.updates": 3},
    "MB-MPO": {
        "conf": "half_cheetah_200",
        "algorithm": "mb_mpo",
        "loop.first_model_steps": 60,
        "loop.model_steps": 60,
        "meta.updates": 4,
    },
    "MB-MPO, the paper's sizes": {
        "conf": "half_cheetah_200",
        "algorithm": "mb_mpo",
        "preset": "paper",
        "loop.first_model_steps": 30,
        "loop.model_steps": 30,
        "meta.updates": 2,
    },
    "M3PO": {
        "conf": "half_cheetah_fwd_bwd",
        "algorithm": "m3po",
        "loop.first_model_steps": 60,
        "loop.model_steps": 60,
        "loop.episode_steps": 100,
        "sac.warmup_steps": 200,
    },
    "M3PO, the paper's sizes": {
        "conf": "half_cheetah_fwd_bwd",
        "algorithm": "m3po",
        "preset": "paper",
        "loop.first_model_steps": 60,
        "loop.model_steps": 60,
        "loop.episode_steps": 10,
        "sac.warmup_steps": 300,
        "branch.per_step": 100,
        "branch.buffer": 20_000,
    },
}
DEVICES: dict[str, dict[str, object]] = {
    "CPU": {"accelerator": "cpu"},
    "GPU": {"accelerator": "gpu"},
    "GPU, bf16-mixed": {"accelerator": "gpu", "precision": "bf16-mixed"},
}
CASES = ((500, 5, 200), (500, 5, 32))
PLANNER = {"kind": "cem", "horizon": 20, "iterations": 1, "elites": 25}


def stages(changes: dict[str, object]) -> dict[str, float]:
    """Seconds of the second of two short iterations, by stage: the first one also compiles, allocates and warms up."""
    cfg = compose(SHORT | changes)
    family = make_family(cfg.env.name, **cfg.env.options)
    loop = MetaLoop(cfg, family, make_algorithm(cfg, family), quiet=True)
    loop.evaluate = lambda *_, **__: {}  # type: ignore[method-assign]
    before: dict[str, float] = {}
    loop.progress.line = lambda iteration, *_: before.update(loop.times) if iteration == 1 else None  # type: ignore
    loop.fit()
    return {stage: loop.times[stage] - before[stage] for stage in ("collect", "model", "policy")}


def seconds(work: Callable[[], object], repeats: int = 5) -> float:
    """Median wall-clock of a call, finished on the device."""
    found = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        work()
        torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
    return statistics.median(found[1:])


def run_table() -> Table:
    """Every run on every device."""
    table = Table("Second iteration of a short run [s]", ["run", "device", "collect", "model", "policy", "CPU / this"])
    for name, changes in RUNS.items():
        base = 0.0
        for device, where in DEVICES.items():
            took = stages(changes | where)
            learning = took["model"] + took["policy"]
            base = base or learning
            cells = [f"{took[stage]:.3f}" for stage in ("collect", "model", "policy")]
            table.rows.append([name, device, *cells, f"{base / learning:.2f}"])
            print(table.rows[-1], flush=True)
    table.notes.append("CPU / this: time of the stages model and policy together, one CPU thread over this device")
    return table


def planning_table() -> Table:
    """Sixteen environments planned for in one call and one after the other, on the GPU."""
    header = [
        "candidates x members, hidden",
        ONE + " [ms]",
        LOOP + " [ms]",
        "loop / one call",
        "wanted",
    ]
    table = Table("Planning for 16 half-cheetahs, horizon 20, on the GPU", header)
    for candidates, members, width in CASES:
        work = Planning(candidates, members, width, device="cuda", chunk=10**6)
        one, loop = seconds(work.one_call), seconds(work.loop)  # TorchRL's planner draws on the CPU and fails on a GPU
        times = [f"{1e3 * value:.1f}" for value in (one, loop)]
        met = "met" if loop / one >= WANTED else "missed"
        table.rows.append([f"{candidates} x {members}, {width}", *times, f"{loop / one:.1f}", f">= {WANTED:g}: {met}"])
        print(table.rows[-1], flush=True)
    return table


def main() -> int:
    """Command line; exit code 2 without a GPU."""
    if not torch.cuda.is_available():
        print("no GPU here: torch.cuda.is_available() is false")
        return 2
    quiet_libraries()
    torch.set_num_threads(1)
    facts = machine()
    head = [
        "# On a GPU",
        "`python -m benchmarks.gpu` measures this page in one run. Wall-clock times; the GPU's memory and clocks as they come.",
        f"Measured on: {torch.cuda.get_device_name()}, beside {facts['cpu']} ({facts['threads']} thread); "
        f"torch {torch.__version__}, python {facts['python']}.",
    ]
    tables: list[Table] = []
    for measure in (planning_table, run_table):
        tables.append(measure())
        PAGE.write_text("\n\n".join([*head, *(table.markdown() for table in tables)]) + "\n")
    print(*(table.text() for table in tables), sep="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
