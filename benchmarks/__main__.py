"""`python -m benchmarks [quick=true] [only=NAME,...]`: measure, print the table, write it down."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks import (
    actor_critic,
    branching,
    collecting,
    compiled,
    control_step,
    encoder,
    fitting,
    imagining,
    meta_step,
    peers,
    planning,
    whole,
)
from benchmarks.document import markdown, text
from benchmarks.measure import Memory, Ratio, Share
from mbrl_lightning.config.console import quiet_libraries

HELP = """usage: python -m benchmarks [quick=true] [only=NAME,...]
       python -m benchmarks peers [quick=true]

Measures speed and memory against stated rivals on one CPU thread, in one run, and prints the ratios.
A whole run takes about five minutes on an idle core and replaces docs/benchmarks.md and
benchmarks/results.json.

  quick=true   few repeats; nothing is written
  only=NAMES   some of encoder, fitting, imagining, actor_critic, compiled, branching, collecting, planning,
               control_step, meta_step, whole; nothing is written

`peers` does the same work with mbrl-lib and stable-baselines3, as far as they are installed, and prints the
ratios with names and versions; nothing is written.
"""
NAMES = ("encoder", "fitting", "imagining", "actor_critic", "compiled", "branching", "collecting", "planning")
NAMES += ("control_step", "meta_step", "whole")
ROOT = Path(__file__).resolve().parent.parent
LIBRARIES = ("torch", "torchrl", "tensordict", "lightning", "gymnasium", "mujoco", "numpy")


def machine() -> dict[str, str]:
    """What the numbers depend on; no host or user names."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = f"{names[0]}, {len(names)} cores" if names else cpu
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {
        "cpu": cpu,
        "threads": "1",
        "load": f"{os.getloadavg()[0]:.1f}",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **versions,
    }


def measure(names: list[str], repeats: int) -> tuple[list[Ratio], list[Memory], list[Share]]:
    """Run the named benchmarks."""
    ratios: list[Ratio] = []
    memories: list[Memory] = []
    shares: list[Share] = []
    if "encoder" in names:
        ratios, memories = encoder.run(repeats)
    parts = {
        "fitting": fitting,
        "imagining": imagining,
        "actor_critic": actor_critic,
        "compiled": compiled,
        "branching": branching,
        "planning": planning,
        "control_step": control_step,
        "meta_step": meta_step,
    }
    parts["collecting"] = collecting
    for name, module in parts.items():
        if name in names:
            ratios += module.run(repeats)
    if "whole" in names:
        shares = whole.run()
    return ratios, memories, shares


def main(words: list[str]) -> int:
    """Command line; returns the exit status: 0, 1 if a target is missed, 2 for wrong usage."""
    against_peers = words[:1] == ["peers"]
    options = dict(word.partition("=")[::2] for word in words[against_peers:])
    names = options.pop("only", ",".join(NAMES)).split(",")
    quick = options.pop("quick", "false") == "true"
    if options or set(names) - set(NAMES):
        print(HELP)
        return 0 if set(options) <= {"--help", "-h"} else 2
    quiet_libraries()
    torch.set_num_threads(1)
    facts, repeats = machine(), 3 if quick else 15
    if against_peers:
        print(", ".join(f"{name} {value}" for name, value in (facts | peers.versions()).items()))
        print(text(peers.run(repeats), [], []))
        return 0
    ratios, memories, shares = measure(names, repeats)
    print(text(ratios, memories, shares))
    if not quick and set(names) == set(NAMES):
        record = {
            "machine": facts,
            "ratios": [asdict(entry) for entry in ratios],
            "memory": [asdict(entry) for entry in memories],
            "shares": [asdict(entry) for entry in shares],
        }
        (ROOT / "benchmarks" / "results.json").write_text(json.dumps(record, indent=1) + "\n")
        (ROOT / "docs" / "benchmarks.md").write_text(markdown(ratios, memories, shares, facts))
        print("written to docs/benchmarks.md and benchmarks/results.json")
    missed = [entry.case for entry in (*ratios, *shares) if entry.met is False]
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
