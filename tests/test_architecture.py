"""The shape of the package: imports point down, files and functions stay small, errors need no PyTorch."""

import ast
import re
from pathlib import Path

import pytest

import mbrl_lightning
from mbrl_lightning.__main__ import COMMANDS
from mbrl_lightning.config import available
from mbrl_lightning.config.sources import families

PACKAGE = Path(mbrl_lightning.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# From the bottom up; a file may import rooms of earlier rows, and other files of its own room. The top level is a room too.
ROOMS = [
    {"errors"},
    {"config", "networks", "envs"},
    {"beliefs", "runs"},
    {"data", "report"},
    {"models"},
    {"policies"},
    {"algorithms"},
    {"measuring"},
    {"top level", "bounds"},
]
TOP_LEVEL = {"__init__", "__main__", "agent", "fit", "evaluate", "loop"}
TOP_LEVEL |= {"check_env", "headroom", "perfect_model", "study", "play", "export", "sweep"}
TOP_LEVEL |= {"record", "fit_model"}
RUNS = ("storage", "checkpoint", "results", "run", "signals", "seed_jobs", "loggers")
# of algorithms/, what others may import
SHARED = ("base", "imagining", "planning", "adapted_policy", "inferred_latent")
LIGHT = ("errors", "config", "__main__", *COMMANDS, *(f"runs.{name}" for name in RUNS))
HEAVY = {"torch", "torchrl", "tensordict", "lightning", "numpy"}
HEAVY |= {"gymnasium", "mujoco", "matplotlib", "sklearn", "imageio"}


def dotted(path: Path) -> str:
    """Name of a module below the package."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "__init__"


MODULES = {dotted(path): path for path in FILES}


def room(module: str) -> str:
    name = module.partition(".")[0]
    return "top level" if name in TOP_LEVEL else name


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    """Dotted names a file imports, those for annotations alone too; in `from mbrl_lightning.room import x`, x if it is a file."""
    tree = ast.parse(path.read_text())
    found = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            files = {name for name in inside if name.removeprefix("mbrl_lightning.") in MODULES}
            found |= files | ({str(node.module)} if inside - files else set())
    return found


def own_imports(path: Path, top_level_only: bool = False) -> set[str]:
    found = {name.partition(".")[2] for name in imports(path, top_level_only) if name.startswith("mbrl_lightning.")}
    return found - {dotted(path)}


def test_rooms_are_few():
    assert len(ROOMS) <= 9
    assert len(list(PACKAGE.glob("*.py"))) <= 10
    known = set().union(*ROOMS)
    missing = {room(name) for name in MODULES} - known
    assert not missing, f"add {missing} to ROOMS"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    level = {name: number for number, row in enumerate(ROOMS) for name in row}
    own = room(dotted(path))
    upward = {name for name in own_imports(path) if room(name) != own and level[room(name)] >= level[own]}
    assert not upward, f"{own} imports {upward}, which are not below it"


def test_no_file_imports_itself_by_a_detour():
    graph = {name: own_imports(path) & MODULES.keys() for name, path in MODULES.items()}
    while leaves := {name for name, below in graph.items() if not below}:
        graph = {name: below - leaves for name, below in graph.items() if name not in leaves}
    assert not graph, f"circle among {sorted(graph)}"


def test_algorithms_do_not_import_each_other():
    for path in (PACKAGE / "algorithms").glob("*.py"):
        siblings = {name for name in imports(path) if name.startswith("mbrl_lightning.algorithms.")}
        if path.stem not in ("__init__", "base"):
            assert siblings <= {f"mbrl_lightning.algorithms.{name}" for name in SHARED}, path


def lightweight(name: str) -> bool:
    return name in ("__init__", *LIGHT) or name.startswith(("config.", "study."))


@pytest.mark.parametrize("name", [name for name in MODULES if lightweight(name)])
def test_what_checks_a_configuration_imports_nothing_heavy(name):
    path = MODULES[name]
    assert not {imported.partition(".")[0] for imported in imports(path, top_level_only=True)} & HEAVY
    assert all(lightweight(below) for below in own_imports(path, top_level_only=True) & MODULES.keys())


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
    assert set(families()) == set(FAMILIES) <= set(available())


def test_nothing_asks_of_what_class_of_ours_a_thing_is():
    """Errors are told apart by class, as Python does; and what a user's own function gave is looked at once."""
    nodes = {module: list(ast.walk(ast.parse(path.read_text()))) for module, path in MODULES.items()}
    own = {node.name for found in nodes.values() for node in found if isinstance(node, ast.ClassDef)}
    own, asked = {name for name in own if not name.endswith("Error")}, set()
    for module, found in nodes.items():
        for node in found:
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass"):
                names = {part.id for part in ast.walk(node.args[1]) if isinstance(part, ast.Name)}
                asked |= {(module, name) for name in names & own}
    assert asked <= {("envs", "TaskFamily"), ("algorithms", "Algorithm")}


def test_no_module_is_hidden_from_its_owner():
    hidden = [path.name for path in FILES if re.search(r"__dict__\[.*\] = ", path.read_text())]
    assert not hidden


def lines(*parts: str) -> int:
    return sum(len(path.read_text().splitlines()) for part in parts for path in PACKAGE.glob(part))


# Lines of the parts that learn, of the package and of its tests. Lowered with what a change takes away, on the way to 5,200,
# 13,000 and 11,500; raised by what a new method or family needs alone.
LEARNING, WHOLE, TESTS = 9416, 24257, 19933


def test_totals_only_fall():
    """A change that needs more lines takes some away elsewhere."""
    learning = [f"{room}/**/*.py" for room in ("algorithms", "beliefs", "models", "policies", "data", "networks")]
    assert lines(*learning) <= LEARNING
    assert lines("**/*.py") <= WHOLE
    assert sum(len(path.read_text().splitlines()) for path in Path(__file__).parent.rglob("*.py")) <= TESTS
