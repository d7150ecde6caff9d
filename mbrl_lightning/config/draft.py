"""A configuration being put together: typed leaf by leaf, every problem collected instead of raised."""

import math
import os
import re
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from mbrl_lightning.config.files import readers, reads_of
from mbrl_lightning.config.schema import FIELDS, OPEN, SECTIONS, Config, get, short
from mbrl_lightning.config.validation import problems_of
from mbrl_lightning.config.words import joined
from mbrl_lightning.errors import ConfigError, did_you_mean

_KEY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text", dict: "a mapping"}
_ELSEWHERE = {  # what other libraries call it
    "device": "accelerator=cuda",
    "gpus": "devices=",
    "lr": "dynamics.lr or search.lr",
    "learning_rate": "dynamics.lr or search.lr",
    "epochs": "loop.iterations",
    "env": "conf=",
}


class Draft:
    """A configuration being put together; takes what the algorithm reads, once that is known, and nothing else."""

    def __init__(self, problems: Iterable[str] = ()) -> None:
        self.values: dict[str, Any] = {}
        self.problems = [*problems]
        self.algorithm, self.reads = "", frozenset(FIELDS)

    def limit(self, algorithm: Any, file: str | None = None) -> None:
        """Say what the algorithm is, and in which file where it is a user's."""
        self.algorithm, self.reads = str(algorithm), reads_of(algorithm, file)

    def put(self, key: str, value: Any, origin: str, lenient: bool = False) -> None:
        """Set a leaf, or every leaf of a section; `lenient` passes over what the algorithm does not read."""
        if key == "" or key in SECTIONS or key == OPEN:
            if isinstance(value, Mapping):
                for name, entry in value.items():
                    self.put(f"{key}.{name}" if key else str(name), entry, origin, lenient)
            elif value is not None:
                self.problems.append(f"{origin}: '{key}' is a section: give {key}.NAME=VALUE")
        elif not _KEY.fullmatch(key) or (key not in FIELDS and not key.startswith(OPEN + ".")):
            self.problems.append(f"{origin}: unknown key '{short(key)}'{_nearest_key(key)}")
        elif key not in FIELDS or key in self.reads:
            self._put_leaf(key, value, origin)
        elif not lenient:
            other = "".join(f" (algorithm={name} reads it)" for name in readers(key)[:1])
            self.problems.append(f"{origin}: {key} is not read by algorithm={self.algorithm}{other}")

    def _put_leaf(self, key: str, value: Any, origin: str) -> None:
        if _forbidden(value) and not (key in FIELDS and isinstance(value, float)):  # ranges name those better
            text = "interpolation ('${...}'), '???', deep nesting and non-finite options are not allowed"
            self.problems.append(f"{origin}: {key}: {text}")
        elif key in FIELDS:
            try:
                found = typed(value, FIELDS[key].type)
                self.values[key] = os.path.expanduser(found) if "path" in FIELDS[key].metadata and found else found
            except (TypeError, ValueError, OverflowError) as error:
                several = "; for several seeds write seeds=0..2" if key == "seed" else ""
                self.problems.append(f"{origin}: {key}={short(value)}: {error}{several}")
        else:
            *path, name = key.removeprefix(OPEN + ".").split(".")
            options = self.values.setdefault(OPEN, {})
            for part in path:
                options = options.setdefault(part, {})
            options[name] = plain(value)

    def finish(self) -> Config:
        """The checked configuration, defaults where nothing was put; a ConfigError names every problem."""
        config = Config()
        for key, value in self.values.items():
            section, _, name = key.rpartition(".")
            setattr(get(config, section) if section else config, name, value)
        told = {text.partition("=")[0] for text in self.problems}
        known = not told & {"algorithm", "algorithm_file"}  # of another nobody knows what it reads
        reads = self.reads if known else frozenset[str]()
        problems = self.problems + [text for text in problems_of(config, reads) if text.partition("=")[0] not in told]
        if not config.env.name and not config.env.file and not self.problems:
            problems.append("env.name is missing")
        if problems:
            remedy = "correct the above; `python -m mbrl_lightning.fit --help` lists every name and key"
            raise ConfigError(joined(problems), remedy)
        return config


def plain(value: Any) -> Any:
    """Arrays and scalars of numpy and PyTorch as Python's own."""
    return value.tolist() if hasattr(value, "tolist") else value


def typed(value: Any, annotation: Any) -> Any:
    """`value` as what a field holds; a ValueError or OverflowError says what is expected."""
    value, kinds = plain(value), typing.get_args(annotation)
    if type(None) in kinds:
        return None if value is None else typed(value, kinds[0])
    if typing.get_origin(annotation) is list:
        value = value.split(",") if isinstance(value, str) and kinds[0] is str else value
        if not isinstance(value, (list, tuple)) or any(isinstance(item, (list, tuple)) for item in value):
            raise ValueError(f"a list is expected, each entry {_NAMES[kinds[0]]}")
        return [typed(item, kinds[0]) for item in value]
    kind = typing.get_origin(annotation) or annotation
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)  # 1e3 is a float in YAML; an exactly whole one is meant as such
    if kind is float and type(value) is int:
        return float(value)
    if kind is str and type(value) is bool:
        return str(value).lower()  # compile=true
    if kind is str and type(value) in (int, list):
        return str(value).replace(" ", "")  # seeds=3, seeds=[0,3]
    if type(value) is not kind:
        raise ValueError(f"{_NAMES[kind]} is expected")
    return value


def _forbidden(value: Any, depth: int = 0) -> bool:
    if isinstance(value, (Mapping, list, tuple)):
        inner = (*value, *value.values()) if isinstance(value, Mapping) else value
        return depth > 20 or any(_forbidden(entry, depth + 1) for entry in inner)
    if isinstance(value, float):
        return not math.isfinite(value)
    return isinstance(value, str) and ("${" in value or value == "???" or "\0" in value)


def _nearest_key(key: str) -> str:
    """The usual slip is a bare `lr` for `search.lr`; otherwise spelling decides."""
    same_end = [known for known in FIELDS if known.rpartition(".")[2] == key]
    likely = _ELSEWHERE.get(key) or " or ".join(same_end)
    return f" (did you mean {likely}?)" if likely else did_you_mean(key[:60], FIELDS)
