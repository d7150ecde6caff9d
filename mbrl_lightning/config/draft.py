"""A configuration being put together: typed leaf by leaf, every problem collected instead of raised."""

import math
import re
import typing
from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mbrl_lightning.config.schema import FIELDS, OPEN, SECTIONS, Config
from mbrl_lightning.config.validation import range_problems
from mbrl_lightning.errors import ConfigError, did_you_mean

_KEY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


class Draft:
    """A configuration being put together; collects problems instead of stopping at the first."""

    def __init__(self) -> None:
        self.values = OmegaConf.structured(Config)
        self.problems: list[str] = []

    def put(self, key: str, value: Any, origin: str) -> None:
        """Set a leaf, or every leaf of a section."""
        value = value.tolist() if hasattr(value, "tolist") else value  # numpy's scalars and arrays
        if key == "" or key in SECTIONS or key == OPEN:
            if isinstance(value, Mapping):
                for name, entry in value.items():
                    self.put(f"{key}.{name}" if key else str(name), entry, origin)
            elif value is not None:
                self.problems.append(f"{origin}: '{key}' is a section: give {key}.NAME=VALUE")
        elif not _KEY.fullmatch(key) or (key not in FIELDS and not key.startswith(OPEN + ".")):
            self.problems.append(f"{origin}: unknown key '{key}'{_nearest_key(key)}")
        elif _forbidden(value) and not (key in FIELDS and isinstance(value, float)):  # ranges name those better
            self.problems.append(
                f"{origin}: {key}: interpolation ('${{...}}'), '???' and non-finite options are not allowed"
            )
        else:
            self._put_leaf(key, value, origin)

    def _put_leaf(self, key: str, value: Any, origin: str) -> None:
        if key == "seeds" and isinstance(value, (list, tuple)):
            value = "[" + ",".join(map(str, value)) + "]"
        if key in FIELDS:
            value = _whole_floats(value, FIELDS[key].type)
        try:
            OmegaConf.update(self.values, key, value)
        except OmegaConfBaseException as error:
            self.problems.append(f"{origin}: {key}: {str(error).splitlines()[0]}")

    def finish(self) -> Config:
        """The checked configuration.

        Raises:
            ConfigError: naming every problem found on the way.
        """
        config = OmegaConf.to_object(self.values)
        assert isinstance(config, Config)
        problems = self.problems + range_problems(config)
        if not config.env.name and not self.problems:
            problems.append("env.name is missing")
        if problems:
            text = problems[0] if len(problems) == 1 else "\n  - ".join([f"{len(problems)} problems", *problems])
            raise ConfigError(text, "correct the above; `python -m mbrl_lightning.fit --help` lists every name and key")
        return config


def _forbidden(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_forbidden(entry) for entry in (*value, *value.values()))
    if isinstance(value, (list, tuple)):
        return any(_forbidden(entry) for entry in value)
    if isinstance(value, float):
        return not math.isfinite(value)
    return isinstance(value, str) and ("${" in value or value == "???")


def _nearest_key(key: str) -> str:
    """The usual slip is a bare `lr` for `search.lr`; otherwise spelling decides."""
    same_end = [known for known in FIELDS if known.rpartition(".")[2] == key]
    return f" (did you mean {' or '.join(same_end)}?)" if same_end else did_you_mean(key, FIELDS)


def _whole_floats(value: Any, annotation: Any) -> Any:
    """1e3 is a float in YAML; where an int is expected an exactly whole one is meant as such."""
    if annotation is not int and int not in typing.get_args(annotation):
        return value
    if isinstance(value, (list, tuple)):
        return [_whole_floats(entry, annotation) for entry in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
