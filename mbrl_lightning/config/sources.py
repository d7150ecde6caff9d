"""What the sources of families and algorithms say, read without importing them: PyTorch would take seconds."""

import ast
import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mbrl_lightning.errors import did_you_mean

PACKAGE = Path(__file__).resolve().parent.parent


def options_of(function: str, files: Iterable[Path]) -> list[str] | None:
    """Names of a function's parameters; None where no file defines it plainly, or where it takes any (`**options`).

    Plainly is `def name(...)`, or `name = maker(...)` with a `def` inside of a `maker` of the same file.
    """
    for file in files:
        if not file.is_file():  # /dev/zero has no end
            return None
        try:
            nodes = ast.parse(file.read_text(encoding="utf-8")).body
        except (OSError, ValueError, SyntaxError):  # whoever imports it says so better
            return None
        defined = {node.name: node for node in nodes if isinstance(node, ast.FunctionDef)}
        for node in nodes:
            match node:
                case ast.Assign([ast.Name(name)], ast.Call(ast.Name(maker))) if name == function and maker in defined:
                    inner = [each for each in defined[maker].body if isinstance(each, ast.FunctionDef)]
                    defined |= {name: inner[0]} if inner else {}
        if function in defined:
            found = defined[function]
            known = [argument.arg for argument in (*found.args.args, *found.args.kwonlyargs)]
            return None if found.args.kwarg or found.decorator_list else known
    return None


def option_problems(name: str, file: str | None, options: dict[str, Any]) -> list[str]:
    """`env.options.*` that a shipped family, or `family()` of a user's file, does not have."""
    shipped = sorted((PACKAGE / "envs" / "families").glob("*.py"))
    known = options_of("family", [Path(file)]) if file else options_of(name, shipped)
    if not options or known is None:
        return []
    what, those = file or f"task family '{name}'", f"its options: {', '.join(known)}" if known else "it has none"
    unknown = [key for key in options if key not in known]
    return [f"env.options.{key}: {what} has no such option{did_you_mean(key, known)}; {those}" for key in unknown]


@functools.cache
def registered(registry: str) -> list[str]:
    """Names of the rows of a registry, that of the `algorithms` or of the `envs`."""
    tree = ast.parse((PACKAGE / registry / "__init__.py").read_text(encoding="utf-8"))
    keys = [key for node in ast.walk(tree) if isinstance(node, ast.Dict) for key in node.keys]
    return [str(key.value) for key in keys if isinstance(key, ast.Constant)]


def families() -> list[str]:
    """Names of the shipped task families."""
    return registered("envs")
