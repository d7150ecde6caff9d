"""What the documents say can be done: command lines parse, files exist, examples run."""

from __future__ import annotations

import ast
import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import mbrl_lightning
from mbrl_lightning import (
    bounds,
    check_env,
    evaluate,
    export,
    fit_model,
    perfect_model,
    play,
    record,
    report,
    study,
    sweep,
)
from mbrl_lightning import fit as fit_module
from mbrl_lightning.__main__ import COMMANDS
from mbrl_lightning.algorithms import ALGORITHMS
from mbrl_lightning.config import load_config, to_yaml
from mbrl_lightning.config.files import located
from mbrl_lightning.config.words import parse as parse_options
from mbrl_lightning.config.words import read
from mbrl_lightning.runs.loggers import EXTRAS
from mbrl_lightning.runs.run import run_folder

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    (ROOT / "docs").rglob("*.md")
)
RUNS = ("conf=cartpole", "conf=half_cheetah")  # that the documents take for granted
PATH = re.compile(r"^(?:mbrl_lightning|conf|tests|examples|docs|notebooks|benchmarks|results)/[\w/.-]*\.\w+$")
MODULE = re.compile(r"(?:(?:python|torchrun.*?) -m mbrl_lightning[. ]|^mbrl )(\w+)(.*)")

OWN = {
    "bounds": bounds.parse,
    "perfect_model": perfect_model.parse,
    "sweep": lambda words: sweep.arms_of(read(word for word in words if not word.startswith(("launcher=", "slurm.")))),
    "export": lambda words: parse_options(export.Options, words, "export"),
    "record": lambda words: parse_options(record.Options, words, "record"),
    "fit_model": fit_model.parsed,
}


def blocks(page: Path, language: str) -> list[str]:
    """Fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def commands() -> list[tuple[str, str]]:
    """(page, command) of every line in a bash block, and of those in running text that are whole commands."""
    found = []
    for page in PAGES:
        for block in blocks(page, "bash"):
            found += [(page.name, line.strip()) for line in block.replace("\\\n", " ").splitlines() if line.strip()]
        text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        inline = re.findall(r"`((?:python -m|make) [^`]+)`", text)
        found += [(page.name, line) for line in inline]
    return found


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    """A folder like the root of a checkout in which the runs have been made that the documents speak of."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for words in RUNS:
        config = load_config([words])
        folder = tmp_path / run_folder(config)
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(to_yaml(config))
    return tmp_path


def parse(module: str, words: list[str]) -> None:
    """Raises if the words are not a command line of the module."""
    if words in ([], ["--help"], ["NAME"]):
        return
    if module == "fit":
        load_config([word for word in words if word != "--print-config"])
    elif module == "headroom":
        load_config([*words, "algorithm=dr_ppo"])
    elif options := {"evaluate": evaluate.Options, "play": play.Options}.get(module):
        assert (located(parse_options(options, words, module).run) / "config.yaml").is_file()
    elif module in OWN:
        OWN[module](words)
    elif module == "study":
        name, *changes = words
        arms = [word.partition("=")[2] for word in changes if word.startswith("arms=")] or ["*"]
        changes = [word for word in changes if not word.startswith("arms=")]
        for command in study.arm_words(name, changes, chosen=arms[0]).values():
            load_config(command)
    elif module == "report":
        paths = parse_options(report.Options, words, module).runs
        assert all(path == "RUN" or Path(path).exists() or path.startswith("runs/") for path in paths)
    else:
        assert module == "check_env"
        check_env._load(words)


@pytest.mark.parametrize(("page", "line"), commands(), ids=lambda value: value[:70])
def test_command_lines_parse(page, line, workplace):
    words = shlex.split(line, comments=True)
    found = MODULE.search(shlex.join(words))
    if found:
        parse(found[1], shlex.split(found[2]))
    elif words[0] == "mbrl" or words == ["python", "-m", "mbrl_lightning"]:
        assert words[-1] in ("--help", "--version", "mbrl", "mbrl_lightning")
    elif words[0] == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert words[1] in targets
    elif benchmark := [word for word in words if word.partition(".")[0] == "benchmarks"]:
        assert (ROOT / "benchmarks" / f"{benchmark[0].partition('.')[2] or '__main__'}.py").is_file()
    else:
        assert words[0] in ("pip", "pre-commit"), f"{page}: what is {line!r}?"


def test_the_documents_show_commands():
    modules = {found[1] for _, line in commands() if (found := MODULE.search(line))}
    assert modules == COMMANDS.keys()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_referred_to_exist(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
    for name in re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)):
        if PATH.match(name):
            assert (ROOT / name).exists(), f"{page.name} names {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_name_no_machine(page):
    assert not re.search(r"(?<![\w.])/(?:home|root|work|tmp|Users)/", page.read_text())


def test_the_example_in_the_readme_is_the_file():
    shown = blocks(ROOT / "README.md", "python")[0]
    file = (ROOT / "examples" / "pendulum.py").read_text()
    assert file.endswith(shown)
    assert len(file.splitlines()) <= 30


def test_pendulum_passes_the_check_and_trains(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert check_env.main(["env.file=examples/pendulum.py"]) == 0
    sizes = (tmp_path / "config.txt", ["loop.iterations=1", "loop.exploration_steps=20", "loop.first_model_steps=2"])
    words = ["conf_file=examples/pendulum.yaml", f"out={tmp_path}", *sizes[1], "loop.episode_steps=20"]
    words += ["search.updates=1", "search.horizon=4", "evaluation.context=8", "evaluation.shots=[1]"]
    assert fit_module.main(words) == 0
    assert "pendulum" in capsys.readouterr().out
    assert (tmp_path / "pendulum" / "gssm_aps" / "seed0" / "results.csv").is_file()


@pytest.mark.filterwarnings("ignore")  # tips of Lightning's Trainer
def test_python_in_the_documents_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks(ROOT / "docs" / "using.md", "python"):
        exec(compile(block, "using.md", "exec"), names)
    assert names["unseen"]
    assert names["trainer"].global_step == 100


def test_every_error_code_is_explained():
    from mbrl_lightning import errors

    text = (ROOT / "docs" / "errors.md").read_text()
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.MBRLError)]
    for kind in kinds:
        assert kind.code in text
        assert f"`{kind.__name__}`" in text
        assert f"exit status {kind.exit_code}" in text


def test_every_name_on_the_command_line_is_in_the_documents():
    from mbrl_lightning.config import available

    text = (ROOT / "README.md").read_text() + (ROOT / "docs" / "families.md").read_text()
    assert len((ROOT / "README.md").read_text().splitlines()) <= 250
    assert not [name for name in (*available("algorithm"), *available()) if f"`{name}`" not in text and name != "debug"]


def test_a_control_step_of_every_method_was_measured():
    table = (ROOT / "docs/index.md").read_text().partition("<!-- control steps -->")[2]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(ALGORITHMS)


def test_a_citation_names_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == mbrl_lightning.__version__
    assert (Path(mbrl_lightning.__file__).parent / "py.typed").is_file()


def test_every_import_is_declared_and_every_extra_imported():
    """Each package of the dependencies and extras, but those of developers, peers and the site, is imported in the package."""
    modules = {"pyyaml": "yaml", "scikit-learn": "sklearn", "pillow": "PIL"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {
        name: words for name, words in project["optional-dependencies"].items() if name not in ("dev", "docs", "peers")
    }
    named = [re.split(r"[\[<>=]", word)[0] for words in [project["dependencies"], *extras.values()] for word in words]
    trees = [ast.parse(path.read_text()) for path in Path(mbrl_lightning.__file__).parent.rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)]
    calls = [
        node for node in nodes if isinstance(node, ast.Call) and ast.unparse(node.func) == "importlib.import_module"
    ]
    names += [str(call.args[0].value) for call in calls if isinstance(call.args[0], ast.Constant)]
    used = {name.partition(".")[0] for name in names}
    assert all(named.count(package) == 1 for package in EXTRAS)  # of these Lightning imports them
    expected = {modules.get(name, name).replace("-", "_") for name in named} - EXTRAS.keys() - {*export.NEEDED}
    assert expected <= used
    assert used - set(sys.stdlib_module_names) - {"mbrl_lightning", *export.NEEDED} <= expected
