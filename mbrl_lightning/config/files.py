"""The shipped YAML files: found by name, read, put on top of those that they are like. What is wrong with one is a problem."""

import os
import re
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from mbrl_lightning.config.schema import EVERY, FIELDS, NAME, short
from mbrl_lightning.config.sources import registered
from mbrl_lightning.config.words import refuse_nesting
from mbrl_lightning.errors import ConfigError, did_you_mean

LARGEST = 10**6  # bytes
PRETRAINED = "pretrained:"


def conf_root() -> Path:
    """Folder of the shipped YAML files: inside an installed package, or beside it in a checkout."""
    return _shipped("conf")


def _shipped(name: str) -> Path:
    package = Path(__file__).resolve().parent.parent
    inside = package / name
    return inside if inside.is_dir() else package.parent / name


def is_pretrained(run: str | os.PathLike[str]) -> bool:
    """Whether it names shipped weights, `pretrained:NAME`, and not a folder."""
    return str(run).startswith(PRETRAINED)


def located(run: str | os.PathLike[str]) -> Path:
    """The folder of a run, which may be `pretrained:NAME`; a ConfigError where no weights of that name are shipped."""
    if not isinstance(run, str | os.PathLike):
        raise ConfigError(f"run={run!r} is no path", "give a run's folder, or pretrained:NAME")
    if not is_pretrained(run):
        return Path(run)
    name, root = str(run).removeprefix(PRETRAINED), _shipped("pretrained")
    known = sorted(path.parent.name for path in root.glob("*/card.yaml"))
    if name not in known:
        remedy = f"choose one of {', '.join(known)}, or give a run's folder"
        raise ConfigError(f"{run}: unknown{did_you_mean(name, known)}", remedy)
    return root / name


def available(kind: str = "") -> list[str]:
    """Names that `conf=` (kind ""), `algorithm=` or `preset=` (kinds of the same name) accept."""
    return sorted(path.stem for path in (conf_root() / kind).glob("*.yaml"))


def read_yaml(path: Path, label: str, problems: list[str]) -> dict[str, Any]:
    """The mapping in a YAML file, empty where there is none."""
    try:
        if not path.is_file() or path.stat().st_size > LARGEST:
            raise FileNotFoundError("not a file of settings")
        refuse_nesting(path.read_text(encoding="utf-8"))
        tree = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        if isinstance(tree, dict):
            return {str(key): value for key, value in tree.items()}
        problems.append(f"{label}: a mapping of keys to values is expected")
    except Exception as error:  # readers of YAML let out many kinds, see words.yaml_values
        problems.append(f"{label}: not readable as YAML: {short(' '.join(str(error).split()))}")
    return {}


def read_named(kind: str, name: Any, problems: list[str]) -> dict[str, Any]:
    """A shipped file by its bare name; nothing outside the conf folder is ever opened."""
    word, root, known = kind or "conf", (conf_root() / kind).resolve(), available(kind)
    if not isinstance(name, str) or not re.fullmatch(NAME, name):
        snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[- ]", "_", str(name)[:60]).lower()
        hint = did_you_mean(snake, known) + ("; for a path use conf_file=" if not kind else "")
        problems.append(f"{word}={short(repr(name))}: not a name (lower-case letters, digits and _ only){hint}")
        return {}
    path = (root / f"{name}.yaml").resolve()
    if name in known and path.parent == root:
        return read_yaml(path, f"{path.parent.name}/{path.name}", problems)
    if kind == "algorithm" and name in registered("algorithms"):
        problems.append(f"algorithm={name}: its YAML is missing: write conf/algorithm/{name}.yaml")
    else:
        problems.append(f"{word}={short(name)}: unknown{likely(name[:60], known)}; known: {', '.join(known)}")
    return {}


def likely(name: str, known: list[str]) -> str:
    """A name that contains the given one, else the nearest by spelling."""
    longer = [other for other in known if name in other.split("_")]
    return did_you_mean(longer[0], longer) if len(longer) == 1 else did_you_mean(name, known)


def chain(kind: str, name: Any, problems: list[str]) -> dict[str, dict[str, Any]]:
    """A file's tree, after those of the files that it is like: by name, the furthest first."""
    tree = read_named(kind, name, problems)
    other = tree.pop("like", None)
    return (chain(kind, other, problems) if other else {}) | {str(name): tree}


def merged(low: Any, high: Any) -> Any:
    """A tree on top of another."""
    if not (isinstance(low, dict) and isinstance(high, dict)):
        return high
    return low | {key: merged(low.get(key), value) for key, value in high.items()}


def method(name: Any, file: str | None, problems: list[str]) -> dict[str, dict[str, Any]]:
    """The trees of an algorithm: of a shipped one by name, of a user's the one beside its file; see `chain`."""
    if file is None:
        return chain("algorithm", name, problems)
    path = Path(file).with_suffix(".yaml")
    if not path.is_file():
        problems.append(
            f"algorithm_file={short(file)}: its YAML is missing: write {path} with the keys that it `reads:`"
        )
        return {}
    tree = read_yaml(path, str(path), problems)
    other = tree.pop("like", None)
    if other is None and "reads" not in tree:
        problems.append(
            f"algorithm_file={short(file)}: {path} does not say what it `reads:`, e.g. reads: {{search: [lr]}}"
        )
    return (chain("algorithm", other, problems) if other else {}) | {str(name): tree}


def reads_of(algorithm: Any, file: str | None = None) -> frozenset[str]:
    """The keys that an algorithm, and every run, reads, by its YAML and those that it is like; all, where none says.

    `-name` takes away what a file it is like reads, and a section without any name all of it.
    """
    if file is None and algorithm not in available("algorithm"):
        return frozenset(FIELDS)
    keys, trees = set(EVERY), method(algorithm, file, []).values()
    if not any("reads" in tree for tree in trees):
        return frozenset(FIELDS)
    for tree in trees:
        for section, names in tree.get("reads", {}).items():
            whole = {key for key in FIELDS if key.startswith(section + ".")}
            keys = keys | whole if names == "all" else keys if names else keys - whole
            for name in names if names != "all" else ():
                (keys.discard if name.startswith("-") else keys.add)(f"{section}.{name.removeprefix('-')}")
    return frozenset(keys)


def readers(key: str) -> list[str]:
    """The algorithms that read a key."""
    return [name for name in available("algorithm") if key in reads_of(name)]
