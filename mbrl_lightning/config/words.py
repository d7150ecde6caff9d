"""`key=value` words, read once for every command: split, typed, checked, all problems together."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, TypeVar

from omegaconf import OmegaConf

from mbrl_lightning.config.option import help_entry, help_line, limits_broken
from mbrl_lightning.errors import ConfigError, did_you_mean

T = TypeVar("T")


@dataclass
class Words:
    """A command line: text of each key, words without `=` or that are paths, what is wrong so far."""

    pairs: dict[str, str] = field(default_factory=dict)
    bare: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def raise_problems(self, remedy: str) -> None:
        """Raise a ConfigError that names all of them, if there are any."""
        if self.problems:
            raise ConfigError(joined(self.problems), remedy)


def joined(problems: Sequence[str]) -> str:
    """One problem as it is, several as a list."""
    return problems[0] if len(problems) == 1 else "\n  - ".join([f"{len(problems)} problems", *problems])


def read(argv: Iterable[str]) -> Words:
    """Split words, of which later ones win; options with dashes are problems, with what to write instead."""
    words = Words()
    for word in argv:
        key, equals, text = word.partition("=")
        if word.startswith("-"):
            name = key.lstrip("-").replace("-", "_")
            words.problems.append(f"{word!r}: options have no dashes; write {name}={text or 'VALUE'}")
        elif not equals or "/" in key:
            words.bare.append(word)
        elif not key:
            words.problems.append(f"{word!r}: key=value is expected")
        else:
            words.pairs[key] = text
    return words


def yaml_values(words: Words) -> dict[str, Any]:
    """The pairs as YAML values; what cannot be read so, and every bare word, is added to the problems."""
    values = {}
    words.problems += [f"{word!r}: key=value is expected" for word in words.bare]
    for key, text in words.pairs.items():
        if "${" in text:
            words.problems.append(f"'{key}={text}': interpolation ('${{...}}') is not allowed")
            continue
        try:
            refuse_nesting(text)
            tree: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))
            values[key] = tree["value"]
        except Exception as error:  # many kinds: of tags, of numbers too long, of nesting too deep
            shown = f"{key}={text}" if len(text) < 80 else f"{key}={text[:80]}..."
            words.problems.append(f"{shown!r}: not readable as YAML: {' '.join(str(error).split())[:200]}")
    return values


def refuse_nesting(text: str) -> None:
    """Raise a ValueError before YAML of thousands of levels ends the process: its reader has no limit."""
    depth = deepest = 0
    for sign in text:
        depth += (sign in "[{") - (sign in "]}")
        deepest = max(deepest, depth)
    if deepest > 50 or "- " * 50 in text:
        raise ValueError("nested too deep")


def take(kind: type[T], words: Words, strict: bool = True) -> T:
    """Options of a dataclass out of a command line; its keys are taken out of the words, problems are added to them.

    A field is made by `option`. Its type is str, bool, int, float or a list of int (`1..5`, `[1,5]`), each perhaps
    `| None`; metadata `bare=True` takes the bare words (a list of str, or one), `required=True` wants a value, and
    `item` says what a bare word is. Unless `strict`, somebody else reads the keys and bare words that are left.
    """
    known = {entry.name: entry for entry in fields(kind)}  # type: ignore[arg-type]
    given: dict[str, Any] = {}
    for name, entry in known.items():
        if entry.metadata.get("bare"):
            many = "list" in str(entry.type)
            taken, words.bare = (words.bare, []) if many else (words.bare[:1], words.bare[1:])
            given[name] = taken if many else next(iter(taken), None)
        elif name in words.pairs:
            _read(entry, words.pairs.pop(name), given, words.problems)
        if entry.metadata.get("required") and not given.get(name):
            words.problems.append(f"{entry.metadata.get('item', f'{name}=')} is missing: {entry.metadata['help']}")
    if strict:
        unknown = [f"'{key}={text}': unknown key{did_you_mean(key, known)}" for key, text in words.pairs.items()]
        words.problems += [*unknown, *(f"{word!r}: key=value is expected" for word in words.bare)]
    return kind(**{name: value for name, value in given.items() if value is not None})


def parse(kind: type[T], argv: Sequence[str], command: str) -> T:
    """Options of a command that has no others; a ConfigError names everything that is wrong."""
    words = read(argv)
    options = take(kind, words)
    words.raise_problems(f"see python -m mbrl_lightning.{command} --help")
    return options


def describe(kind: type[Any]) -> str:
    """Lines of `--help` for all options of a dataclass."""
    lines = []
    for entry in fields(kind):
        default = entry.default if entry.default_factory is MISSING else entry.default_factory()
        if entry.metadata.get("bare"):
            lines.append(help_entry(entry.metadata["item"], entry.metadata["help"]))
        else:
            lines.append(help_line(entry.name, default, entry.metadata))
    return "\n".join(lines)


def _read(entry: Field[Any], text: str, given: dict[str, Any], problems: list[str]) -> None:
    name = entry.type.__name__ if isinstance(entry.type, type) else str(entry.type)
    reader, wanted = READERS[name.removesuffix(" | None")]
    try:
        value = reader(text)
    except (ValueError, KeyError):
        problems.append(f"'{entry.name}={text[:80]}': {wanted} is expected")
        return
    items = value if isinstance(value, list) else [value]
    if broken := next(filter(None, (limits_broken(item, entry.metadata) for item in items)), ""):
        problems.append(f"{entry.name}={text}: {broken}")
    else:
        given[entry.name] = value


def number_list(text: str) -> list[int]:
    """Whole numbers, 1 to 1000 different ones, from `0..4` (both ends count), `[0,3]` or `0,3`; else a ValueError."""
    bare = text.strip().removeprefix("[").removesuffix("]")
    span = re.fullmatch(r"\s*(\d{1,9})\s*\.\.\s*(\d{1,9})\s*", bare)
    if span:
        numbers = list(range(int(span[1]), min(int(span[2]), int(span[1]) + 1000) + 1))
    elif re.fullmatch(r"\s*\d{1,9}\s*(,\s*\d{1,9}\s*)*", bare):
        numbers = [int(word) for word in bare.split(",")]
    else:
        raise ValueError(f"{text}: write a range 0..4 or a list [0,3]")
    if not 0 < len(numbers) <= 1000 or len(set(numbers)) != len(numbers):
        raise ValueError(f"{text}: between 1 and 1000 different numbers are expected")
    return numbers


def _text(text: str) -> str:
    if not text:
        raise ValueError(text)
    return text


READERS: Mapping[str, tuple[Callable[[str], Any], str]] = {
    "str": (_text, "a text"),
    "int": (int, "a whole number"),
    "float": (float, "a number"),
    "bool": (lambda text: {"true": True, "false": False}[text.lower()], "true or false"),
    "list[int]": (number_list, "7, 1..50 or [1,5,10]"),
}
