"""Notebooks look and define nothing: each runs on a small run and is committed without outputs."""

from __future__ import annotations

import ast
import os
from importlib.util import find_spec
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NEEDS = {"recorded_data": "minari"}  # packages of an extra
SAYS = {"call_an_agent": "20 unseen tasks"}  # the others: how long the tiny run is that they make for themselves


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_committed_without_outputs_and_defines_nothing(path):
    notebook = read(path)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs
            assert cell.execution_count is None
            defined = (ast.FunctionDef, ast.ClassDef, ast.Lambda)
            assert not any(isinstance(node, defined) for node in ast.walk(ast.parse(cell.source)))


@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore")  # of Jupyter's own machinery
def test_run_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    folder = tmp_path / "notebooks"
    folder.mkdir()
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    shown = [path for path in NOTEBOOKS if find_spec(NEEDS.get(path.stem, "torch"))]
    assert len(shown) > len(NOTEBOOKS) - len(NEEDS) - 1
    resources = {"metadata": {"path": str(folder)}}
    client = NotebookClient(nbformat.v4.new_notebook(), timeout=300, kernel_name="python3", resources=resources)
    with client.setup_kernel():  # one for all: its imports are paid for once
        for path in shown:
            client.nb = read(path)
            client.reset_execution_trackers()
            client.nb.cells.insert(0, nbformat.v4.new_code_cell("%reset -f"))
            for index, cell in enumerate(client.nb.cells):
                client.execute_cell(cell, index)
            looked_at(path.stem, client.nb)
    assert list((tmp_path / "runs").rglob("results.csv"))


def looked_at(name: str, notebook: nbformat.NotebookNode) -> None:
    """What a reader is promised was shown."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert len(pictures) >= 2, name
    assert SAYS.get(name, "160 real steps") in printed, name
    assert "error" not in {output.output_type for output in outputs}, name
    assert "not drawn" not in printed, name
