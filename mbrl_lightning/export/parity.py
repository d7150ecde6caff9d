"""Exported files do what the run did, without PyTorch: `python -m mbrl_lightning.export.parity FILE.onnx`.

They are given the context and the observations in FILE_check.npz and carry their own belief; their actions are compared.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, Any]
TOLERANCE = 1e-5
PARTS = ("begin", "adapt", "step", "act")


def part_file(file: Path, part: str) -> Path:
    """Where a part lies: FILE itself acts."""
    return file if part == "act" else file.with_name(f"{file.stem}_{part}{file.suffix}")


def check_file(file: Path) -> Path:
    """Where the steps lie that were recorded for the check."""
    return file.with_name(f"{file.stem}_check.npz")


def onnx_caller(file: Path) -> Callable[[str, Arrays], Arrays]:
    """`call(part, inputs)` of the parts beside an ONNX file: named arrays in, named arrays out."""
    import onnxruntime

    sessions = {}
    for part in PARTS:
        if part_file(file, part).is_file():
            sessions[part] = onnxruntime.InferenceSession(part_file(file, part), providers=["CPUExecutionProvider"])

    def call(part: str, inputs: Arrays) -> Arrays:
        session = sessions[part]
        names = [entry.name for entry in session.get_outputs()]
        return dict(zip(names, session.run(names, inputs), strict=True))

    return call


def contract_of(file: Path) -> dict[str, Any]:
    """The contract in an ONNX file's metadata."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    found: dict[str, Any] = json.loads(session.get_modelmeta().custom_metadata_map["mbrl_lightning"])
    return found


def differences(call: Callable[[str, Arrays], Arrays], contract: Mapping[str, Any], record: Mapping[str, Any]) -> Any:
    """Largest difference of the actions of each of T recorded steps from those of the parts, `[T]`.

    The `record` has `context.observation` `[n, K, S]`, `context.action` and `context.next_observation` where there is an
    `adapt`, and `observation` `[T, n, S]`, `action`, `next_observation` of T steps; an episode begins every `horizon` of them.
    """
    parts, found = contract["parts"], []

    def asked(part: str, belief: Arrays, **given: Any) -> tuple[Arrays, Arrays]:
        wanted = [entry["name"] for entry in contract["inputs"][part]]
        out = call(part, {name: value for name, value in (belief | given).items() if name in wanted})
        after = {f"belief.{name[6:]}": value for name, value in out.items() if name.startswith("after.")}
        return out, belief | after

    def steps(prefix: str, rows: Any = slice(None)) -> Arrays:
        return {name: record[prefix + name][rows] for name in ("observation", "action", "next_observation")}

    _, start = asked("begin", {})
    if "adapt" in parts:
        _, start = asked("adapt", start, **steps("context."))
    belief = start
    for time in range(len(record["observation"])):
        if time and time % contract["horizon"] == 0:  # what is under `trial` outlasts an episode
            belief = start | {name: value for name, value in belief.items() if name.startswith("belief.trial.")}
        out, belief = asked("act", belief, observation=record["observation"][time])
        found.append(np.abs(out["action"].astype(np.float64) - record["action"][time]).max())
        if "step" in parts:
            _, belief = asked("step", belief, **steps("", time))
    return np.array(found)


def main(file: Path) -> float:
    """The largest difference in the files beside FILE.onnx."""
    with np.load(check_file(file)) as record:
        return float(differences(onnx_caller(file), contract_of(file), record).max())


if __name__ == "__main__":
    worst = main(Path(sys.argv[1]))
    assert "torch" not in sys.modules
    print(worst)
