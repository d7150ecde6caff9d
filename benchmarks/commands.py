"""Time and memory of commands as a user gives them, into docs/index.md: `python -m benchmarks.commands`."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.__main__ import machine
from benchmarks.document import put_into

MARKS = "<!-- commands -->\n", "<!-- end commands -->\n"
MEASURED = """
import resource, subprocess, sys
status = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime, used.ru_maxrss)
sys.exit(status)
"""  # in a small process: one begun by a large one counts that one's memory
RUN = "runs/cartpole/gssm_aps/seed0"
COMMANDS = (  # each may use what those before it left
    "bounds",
    "check_env half_cheetah",
    "fit conf=point2d video=true",
    "evaluate run=pretrained:cartpole figures=false",
    "fit conf=cartpole",
    f"evaluate run={RUN} tasks=extreme episodes=5 video=true",
    "report runs/cartpole runs/point2d out=report",
    f"record run={RUN} out=cartpole/recorded-v0",
    "fit_model data=cartpole/recorded-v0 dynamics=ensemble",
    f"export run={RUN} out=policy.onnx",
)


def lines() -> Iterator[str]:
    """The table; a command that fails ends it."""
    cpu = machine()["cpu"].partition(",")[0]
    yield f"One thread, {cpu}, imports counted; `python -m benchmarks.commands` measures it."
    yield ""
    yield "| command | CPU time | memory at most |"
    yield "| --- | --- | --- |"
    with tempfile.TemporaryDirectory() as folder:
        here = Path(__file__).parents[1]
        own = {"PYTHONPATH": str(here), "OMP_NUM_THREADS": "1", "MINARI_DATASETS_PATH": f"{folder}/minari"}
        for command in COMMANDS:
            words = [sys.executable, "-m", *f"mbrl_lightning.{command}".split()]
            done = subprocess.run(
                [sys.executable, "-c", MEASURED, *words], cwd=folder, env=os.environ | own, stdout=subprocess.PIPE
            )
            if done.returncode:
                raise SystemExit(f"{command}: exit status {done.returncode}")
            seconds, kilobytes = (float(number) for number in done.stdout.split())
            taken = f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"
            yield f"| `mbrl {command}` | {taken} | {kilobytes / 1024:.0f} MB |"


def main() -> None:
    """Measure, print, and write the table into the page."""
    put_into("docs/index.md", MARKS, lines())


if __name__ == "__main__":
    main()
