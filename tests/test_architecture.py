"""The shape of the package: imports point down, files and functions stay small, errors need no PyTorch."""

import ast
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

import mbrl_lightning
from mbrl_lightning.config import available
from mbrl_lightning.config.schema import ENVIRONMENTS

PACKAGE = Path(mbrl_lightning.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# From the bottom up; a module may import those of earlier rows only. A folder stands for all of its files.
LAYERS = [
    {"errors", "runs", "reporting"},
    {"console", "config.option", "guarantees"},
    {"config.methods"},
    {"config.schema"},
    {"config.validation", "runs.storage", "runs.signals"},
    {"config.draft", "runs.lock"},
    {"config"},
    {"config.usage", "runs.run", "runs.checkpoint"},
    {"networks", "gaussians", "envs", "seeds", "step", "reporting.scores"},
    {"results", "adaptation"},
    {"data"},
    {"dynamics", "reporting.curves", "reporting.paper", "reporting.video"},
    {"imagination", "measures", "reporting.canvas", "reporting.tables"},
    {
        "policy_search",
        "hidden_task",
        "reporting.hidden_tables",
        "reporting.model_tables",
        "reporting.outputs",
        "reporting.switches",
        "reporting.figures",
        "reporting.guarantees",
    },
    {"algorithms", "cloning"},
    {"plasticity"},
    {"meta_test", "progress", "rulers"},
    {"loop"},
    {"diagnostics"},
    {"report", "check_env"},
    {"runs.seed_jobs"},
    {"fit", "evaluate", "headroom", "perfect_model", "bounds"},
    {"study"},
]
SPLIT = ("config", "runs", "reporting")  # folders whose files have layers of their own
LIGHT = ("__init__", "errors", "console", "config", "config.schema", "config.validation", "config.draft")
LIGHT += ("config.usage", "runs", "runs.storage", "runs.lock", "runs.run", "runs.signals", "runs.seed_jobs", "fit")
LIGHT += ("bounds", "study", "config.option", "config.methods")
HEAVY = {
    "torch",
    "torchrl",
    "tensordict",
    "lightning",
    "numpy",
    "gymnasium",
    "mujoco",
    "matplotlib",
    "sklearn",
    "imageio",
}


def part(path: Path) -> str:
    """Name in LAYERS of a file: its own where its folder is split, else its folder or its stem."""
    return unit(path.relative_to(PACKAGE).with_suffix("").parts)


def unit(parts: Sequence[str]) -> str:
    """Name in LAYERS of a dotted name below the package."""
    inside = [name for name in parts[:2] if name != "__init__"]
    return ".".join(inside) if inside and inside[0] in SPLIT else parts[0]


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    """Dotted names a file imports; in `from mbrl_lightning import x`, x too."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):  # imports for annotations alone do not run
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            bare = ("mbrl_lightning", "mbrl_lightning.runs", "mbrl_lightning.reporting")  # these export modules
            found |= names if node.module in bare else {str(node.module)}
    return found


def own_imports(path: Path) -> set[str]:
    parts = {unit(name.split(".")[1:]) for name in imports(path) if name.startswith("mbrl_lightning.")}
    return parts - {"__version__"}


def test_every_module_has_a_layer():
    known = set().union(*LAYERS) | {"__init__"}
    missing = {part(path) for path in FILES} - known
    assert not missing, f"add {missing} to LAYERS"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    level = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    own = part(path)
    upward = {name for name in own_imports(path) - {own} if level.get(name, 0) >= level.get(own, -1) >= 0}
    assert not upward, f"{own} imports {upward}, which are not below it"


def test_algorithms_do_not_import_each_other():
    for path in (PACKAGE / "algorithms").glob("*.py"):
        siblings = {name for name in imports(path) if name.startswith("mbrl_lightning.algorithms.")}
        if path.stem not in ("__init__", "base"):
            assert siblings <= {"mbrl_lightning.algorithms.base"}, path


@pytest.mark.parametrize("name", LIGHT)
def test_what_checks_a_configuration_imports_nothing_heavy(name):
    path = PACKAGE.joinpath(*name.split("."))
    for imported in imports(path / "__init__.py" if path.is_dir() else path.with_suffix(".py"), top_level_only=True):
        top, _, rest = imported.partition(".")
        assert top not in HEAVY
        if top == "mbrl_lightning" and rest:
            assert unit(rest.split(".")) in (*LIGHT, "__version__")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_stay_small(path):
    assert len(path.read_text().splitlines()) <= 300
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = len((ast.get_docstring(node) or "").splitlines())
            assert node.end_lineno - node.lineno + 1 - docstring <= 60, f"{path.name}: {node.name}"


def test_names_say_something():
    vague = re.compile(r"(^|_)(utils?|helpers?|common|misc|manager)($|_)")
    assert not [path for path in FILES if vague.search(path.stem)]


def test_names_on_the_command_line_are_those_in_the_registries():
    from mbrl_lightning.algorithms import ALGORITHMS
    from mbrl_lightning.envs import FAMILIES

    assert set(available("algorithm")) == set(ALGORITHMS)
    assert set(ENVIRONMENTS) == set(FAMILIES)
