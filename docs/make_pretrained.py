"""Makes shipped weights of a finished run: `python docs/make_pretrained.py NAME RUN "command that made it"`.

Kept are networks and normalisers, matrices in half precision; no data, optimizers or streams. The return on the card is measured
with what is kept, as `python -m mbrl_lightning.evaluate run=pretrained:NAME` does.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
import yaml

from mbrl_lightning.config import read_run_config, to_yaml
from mbrl_lightning.evaluate import evaluate
from mbrl_lightning.report.curves import at_context
from mbrl_lightning.report.statistics import score_matrix
from mbrl_lightning.runs import checkpoint
from mbrl_lightning.runs.results import read_results
from mbrl_lightning.runs.run import manifest_of

HERE = Path(__file__).parents[1] / "pretrained"


def main(name: str, run: str, command: str) -> None:
    """Write `pretrained/NAME`; an older one goes."""
    source, target = Path(run), HERE / name
    step, state = checkpoint.load(source / "checkpoints")
    weights = {key: value.half() if halved(value) else value.clone() for key, value in state["algorithm"].items()}
    shutil.rmtree(target, ignore_errors=True)
    checkpoint.save(target / "checkpoints", step, {"algorithm": weights, "family": state["family"]}, keep=1)
    (target / "config.yaml").write_text(to_yaml(replace(read_run_config(source), out="runs")))
    told, rows = manifest_of(source), read_results(source)
    kept = {key: told[key] for key in ("mbrl_lightning", "git", "python", "versions")}
    (target / "manifest.json").write_text(json.dumps(kept, indent=1) + "\n")
    card = {"family": rows[0].env, "algorithm": rows[0].algorithm, "seed": rows[0].seed, "iterations": step}
    card |= {"real_steps": max(row.real_steps for row in rows), "command": command, "versions": kept}
    (target / "card.yaml").write_text(yaml.safe_dump(card, sort_keys=False))
    value, unit = measured(name)
    card |= {"return": round(value, 4), "unit": unit, "measured": f"mbrl evaluate run=pretrained:{name}"}
    (target / "card.yaml").write_text(yaml.safe_dump(card, sort_keys=False))
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(name, card["return"], f"{size / 1000:.0f} kB")


def halved(value: torch.Tensor) -> bool:
    """Whether it is a matrix of weights."""
    return value.dtype == torch.float32 and value.ndim > 1


def measured(name: str) -> tuple[float, str]:
    """Mean return on the unseen tasks after the family's context, and its unit."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        rows = evaluate(f"pretrained:{name}", figures=False).rows
    rows = [row for row in at_context(rows) if row.metric == "return/policy"]
    return float(score_matrix(rows)[2].mean()), rows[0].unit


if __name__ == "__main__":
    main(*sys.argv[1:])
