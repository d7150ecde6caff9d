"""Graphs as files, each with the contract in its metadata, and the check of what lies there."""

from __future__ import annotations

import io
import json
import logging
import re
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mbrl_lightning.agent import Agent
from mbrl_lightning.export.graphs import Arrays, Exporter, Graph
from mbrl_lightning.export.parity import TOLERANCE, check_file, differences, part_file
from mbrl_lightning.runs.storage import replace_file

PT2 = "write out=FILE.pt2, or "


def described(names: Sequence[str], values: Sequence[Tensor], free: Sequence[set[int]]) -> list[dict[str, Any]]:
    """Name, type and shape of each; a dimension that may have any size is `K`."""
    shapes = [
        ["K" if at in dims else n for at, n in enumerate(value.shape)] for value, dims in zip(values, free, strict=True)
    ]
    types = [str(value.dtype).removeprefix("torch.") for value in values]
    return [{"name": n, "type": t, "shape": s} for n, t, s in zip(names, types, shapes, strict=True)]


def write(agent: Agent, run: Path, file: Path, rows: int) -> dict[str, Any]:
    """See `export.export`."""
    exporter, programs = Exporter(agent, rows), {}
    contract = exporter.contract(run)
    contract["parts"] = {part: part_file(file, part).name for part in exporter.graphs}
    for part, graph in exporter.graphs.items():
        programs[part], values, free = exporter.program(part)
        outputs = graph(*values)
        contract["inputs"][part] = described(graph.inputs, values, free)
        grows: list[set[int]] = [set()] * (len(outputs) - len(graph.keys)) + exporter.growing
        contract["outputs"][part] = described(graph.outputs, outputs, grows)
    record, buffer = exporter.record(), io.BytesIO()
    np.savez(buffer, **record)
    contents = {check_file(file): buffer.getvalue()}
    for part, program in programs.items():
        told, graph = json.dumps(contract | {"part": part}), exporter.graphs[part]
        content = _as_onnx(exporter, graph, program, told) if file.suffix == ".onnx" else _as_pt2(program, told)
        contents[part_file(file, part)] = content
    for path, content in contents.items():
        replace_file(path, content)
    worst = _checked(file, contract, record, exporter)
    if not worst <= TOLERANCE:
        for path in contents:
            path.unlink()
        why = f"actions of {file} differ by {worst:.1e} from the run's own, more than {TOLERANCE:.0e}"
        raise exporter.refusal(why, PT2 if file.suffix == ".onnx" else "")
    return contract | {"difference": worst}


def _as_pt2(program: torch.export.ExportedProgram, told: str) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={"mbrl_lightning": told})
    return buffer.getvalue()


def _as_onnx(exporter: Exporter, graph: Graph, program: torch.export.ExportedProgram, told: str) -> bytes:
    for name in ("torch.onnx", "onnxscript", "onnx_ir"):  # what is not installed, what is not folded
        logging.getLogger(name).setLevel(logging.ERROR)
    names: dict[str, Any] = {"input_names": graph.inputs, "output_names": graph.outputs}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what PyTorch itself will give up
            made = torch.onnx.export(program, **names, dynamo=True, verbose=False)
    except torch.onnx.OnnxExporterError as error:  # its text is a page
        missing = re.search(r"aten\.\w+", str(error))
        why = f"its {graph.part} is nothing that ONNX has{f' ({missing[0]})' if missing else ''}"
        raise exporter.refusal(why, PT2) from error
    assert made is not None
    made.model.metadata_props["mbrl_lightning"] = told
    return bytes(made.model_proto.SerializeToString())


def _checked(file: Path, contract: dict[str, Any], record: Arrays, exporter: Exporter) -> float:
    """The largest difference of an action, of the files as they lie there."""
    if file.suffix == ".onnx":
        command = [sys.executable, "-m", "mbrl_lightning.export.parity", str(file)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise exporter.refusal(f"onnxruntime cannot run it ({' '.join(done.stderr.split())[-200:]})")
        return float(done.stdout)
    graphs = exporter.graphs
    modules = {part: torch.export.load(part_file(file, part)).module() for part in graphs}

    def call(part: str, inputs: Arrays) -> Arrays:
        out = modules[part](*(torch.as_tensor(inputs[name]) for name in graphs[part].inputs))
        return dict(zip(graphs[part].outputs, (value.numpy() for value in out), strict=True))

    return float(differences(call, contract, record).max())
