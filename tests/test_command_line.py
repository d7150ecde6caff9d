"""One command line: what all commands share. Words are read, typed and refused in one place, before PyTorch is imported."""

from __future__ import annotations

import importlib
import inspect
import resource
import subprocess
import sys
from dataclasses import dataclass

import pytest

from mbrl_lightning.__main__ import COMMANDS, main
from mbrl_lightning.config import load_config
from mbrl_lightning.config.option import option
from mbrl_lightning.config.sources import PACKAGE, options_of
from mbrl_lightning.config.words import describe, number_list, parse, read, take, yaml_values
from mbrl_lightning.errors import ConfigError

RUN = (
    "import sys, mbrl_lightning.__main__ as m; status = m.main(sys.argv[1:]);"
    "heavy = {'torch', 'torchrl', 'lightning', 'numpy', 'mujoco', 'matplotlib'} & set(sys.modules);"
    "sys.exit(f'imported {heavy}' if heavy else status)"
)


pytestmark = pytest.mark.usefixtures("elsewhere")


@pytest.mark.parametrize(
    ("line", "status", "part"),
    [
        *((f"{name} --help", 0, f"usage: python -m mbrl_lightning.{name}") for name in COMMANDS),
        ("fit conf=carpole", 2, "did you mean 'cartpole'"),
        ("fit --conf=cartpole", 2, "write conf=cartpole"),
        ("fit", 2, "conf=NAME is missing"),
        ("fit resume=nowhere", 2, "not a run folder"),
        ("fit conf=cartpole --print-config", 0, "conf: cartpole"),
        ("fit conf=cartpole env.options.hlaf=true", 2, "did you mean 'half'"),
        ("check_env acrobot env.options.half=true", 2, "it has none"),
        ("evaluate", 2, "run= is missing"),
        ("evaluate run=nowhere", 2, "not a run folder"),
        ("report out=x", 2, "RUN... is missing"),
        ("check_env cartpoel", 2, "did you mean 'cartpole'"),
        ("check_env y=3", 2, "y: unknown key"),
        ("headroom conf=carpole", 2, "did you mean 'cartpole'"),
        ("headroom", 2, "conf=NAME is missing"),
        ("perfect_model tasks=no algoritm=grbal", 2, "algoritm"),
        ("study biassed", 2, "did you mean 'biased'"),
        ("study biased meta.bias=1", 2, "the arms of 'biased' differ in that"),
        ("study", 2, "NAME is missing"),
        ("sweep conf=cartpole,carpole", 2, "did you mean 'cartpole'"),
        ("play run=pretrained:cartpol", 2, "did you mean 'cartpole'"),
        ("play run=nowhere", 2, "not a run folder"),
        ("bounds k=0 gama=1", 2, "did you mean 'gamma'"),
        ("fitt", 2, "did you mean 'fit'"),
        ("--version", 0, "mbrl_lightning 0."),
        ("fit --version", 0, "mbrl_lightning 0."),
        ("", 2, "usage: mbrl COMMAND"),
    ],
)
def test_answers_within_a_second_and_without_pytorch(line, status, part, tmp_path):
    began = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", RUN, *line.split()], capture_output=True, text=True)
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == status, done.stderr
    assert part in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
    # of the processor: a busy machine is slow by the clock
    assert ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime < 1


def test_the_list_of_commands_has_them_all(capsys):
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(name in said and line in said for name, line in COMMANDS.items())
    assert all(callable(importlib.import_module(f"mbrl_lightning.{name}").main) for name in COMMANDS)


def test_a_command_loads_nothing_for_metrics_that_it_has_not():
    """Lightning's torchmetrics would load both; a program that calls us decides for itself."""
    code = (
        "import sys; sys.argv[0] = sys.argv[1]; from mbrl_lightning.config import console; console.quiet_libraries();"
    )
    code += "import lightning.pytorch, mbrl_lightning.loop; print({'scipy', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code, str(PACKAGE / "fit.py")], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


@pytest.mark.parametrize(
    "lines",
    [
        "from mbrl_lightning import fit; from mbrl_lightning.fit import main",
        "from mbrl_lightning.fit import fit as function, main; from mbrl_lightning import fit",
        "import mbrl_lightning.fit; from mbrl_lightning import fit; from mbrl_lightning.fit import main",
    ],
)
def test_fit_of_the_package_can_be_called_whichever_was_imported_first(lines):
    code = f"{lines}\nimport mbrl_lightning, mbrl_lightning.fit as module\nassert module.main is main\n"
    code += "try: fit(conf='nope')\nexcept mbrl_lightning.errors.ConfigError as error: assert 'conf=nope' in str(error)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr == ""


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - {"check_env"}))
def test_every_function_of_a_command_is_called_through_its_module(name):
    module = importlib.import_module(f"mbrl_lightning.{name}")
    with pytest.raises((TypeError, ConfigError), match="no_such_argument"):
        module(no_such_argument=1)


# -- the reader of words


@dataclass
class Options:
    names: list[str] = option([], "what", bare=True, required=True, item="NAME...")
    count: int | None = option(None, "how many", minimum=1, maximum=9, shown="all")
    size: float = option(1.5, "how large", above=0)
    steps: list[int] | None = option(None, "which", minimum=1)
    kind: str = option("soft", "how", choices=("soft", "hard"))
    loud: bool = option(False, "tell")


def test_options_are_read_and_later_words_win():
    words = ["a", "count=3", "size=1e-2", "steps=2..4", "kind=hard", "runs/x=1", "loud=TRUE", "count=4"]
    assert parse(Options, words, "x") == Options(["a", "runs/x=1"], 4, 0.01, [2, 3, 4], "hard", True)
    assert parse(Options, ["a"], "x") == Options(["a"])


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["count=0"], ["NAME... is missing", "count=0: must be at least 1"]),
        (["a", "count=ten", "szie=2"], ["'count=ten': a whole number", "did you mean 'size'"]),
        (["a", "size=0", "steps=0..2"], ["more than 0", "steps=0..2: must be at least 1"]),
        (["a", "size=nan", "size=inf"], ["must be finite"]),
        (["a", "kind=hrad"], ["did you mean 'hard'"]),
        (["a", "loud=1", "kind="], ["true or false", "a text is expected"]),
        (["a", "--dry-run", "--count=3"], ["write dry_run=VALUE", "write count=3"]),
        (["a", "=3"], ["key=value is expected"]),
    ],
)
def test_all_that_is_wrong_is_named_at_once(words, parts):
    with pytest.raises(ConfigError) as caught:
        parse(Options, words, "thing")
    assert all(part in str(caught.value) for part in parts)
    assert "python -m mbrl_lightning.thing --help" in str(caught.value)


def test_help_is_made_from_the_options():
    assert [line.split()[0] for line in describe(Options).splitlines()] == [
        "NAME...",
        "count=all",
        "size=1.5",
        "steps=null",
        "kind=soft",
        "loud=false",
    ]
    assert "[>= 1, <= 9]" in describe(Options)
    assert "[soft | hard]" in describe(Options)


def test_what_a_command_does_not_know_is_left_for_others():
    words = read(["a", "b", "count=3", "search.lr=1e-3"])
    assert take(Options, words, strict=False).count == 3
    assert (words.pairs, words.bare, words.problems) == ({"search.lr": "1e-3"}, [], [])
    assert yaml_values(words) == {"search.lr": 1e-3}


@pytest.mark.parametrize(
    "text",
    ["!!bool x", "[" * 5000, "9" * 5000, "!!python/object:os.system ls", "{a: [}", "${x}", "*a", "!!timestamp x"],
)
def test_no_value_ends_in_a_traceback(text):
    words = read([f"x={text}"])
    yaml_values(words)
    assert len(words.problems) == 1
    assert len(words.problems[0]) < 400


@pytest.mark.parametrize(("text", "numbers"), [("0..2", [0, 1, 2]), ("[0, 3]", [0, 3]), ("4", [4]), ("7,1", [7, 1])])
def test_lists_of_numbers(text, numbers):
    assert number_list(text) == numbers


@pytest.mark.parametrize(
    "text", ["", "4..0", "1,1", "a", "0..", "0..1000", "0..99999999", "-1..2", "1.5", "[[1]]", "0..2..4"]
)
def test_what_is_no_list_of_numbers(text):
    with pytest.raises(ValueError, match=r"numbers|range"):
        number_list(text)


def test_options_of_families_are_read_off_their_sources():
    from mbrl_lightning.envs import FAMILIES

    shipped = sorted((PACKAGE / "envs" / "families").glob("*.py"))
    for name, function in FAMILIES.items():
        assert options_of(name, shipped) == list(inspect.signature(function).parameters), name


@pytest.mark.parametrize(
    ("source", "known"),
    [
        ("def family(a, *, b=1): ...", ["a", "b"]),
        ("def family(**options): ...", None),
        ("@wrapped\ndef family(a): ...", None),
        ("family = 3", None),
        ("def make(x):\n    def built(a=1): ...\n    return built\nfamily = make(2)", ["a"]),
        ("def family(:", None),
    ],
)
def test_options_of_a_users_family_are_what_its_file_says(tmp_path, source, known):
    (tmp_path / "mine.py").write_text(source)
    assert options_of("family", [tmp_path / "mine.py"]) == known


def test_an_algorithm_without_its_yaml_says_so(monkeypatch):
    monkeypatch.setattr("mbrl_lightning.config.files.available", lambda kind="": ["cartpole"] if not kind else ["gssm"])
    with pytest.raises(ConfigError, match=r"its YAML is missing: write conf/algorithm/pearl\.yaml"):
        load_config(["conf=cartpole", "algorithm=pearl"])
    with pytest.raises(ConfigError, match="algorithm=perl: unknown"):
        load_config(["conf=cartpole", "algorithm=perl"])
