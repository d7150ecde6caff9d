"""From names and `key=value` words to one checked `Config`, in well under a second: no PyTorch here.

Layers, later wins: `conf/default.yaml`, `conf/<conf>.yaml`, `conf/algorithm/<algorithm>.yaml`, the conf's own
`algorithms: {any: {...}, <algorithm>: {...}}` block, the algorithm's block in `conf/preset/<preset>.yaml`, the command line.
All problems are reported together.
"""

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mbrl_lightning.config.console import log
from mbrl_lightning.config.draft import Draft
from mbrl_lightning.config.schema import FIELDS, NAME, OPEN, SECTIONS, Config, get
from mbrl_lightning.config.sources import is_registered
from mbrl_lightning.config.words import Words, number_list, read, yaml_values
from mbrl_lightning.errors import ConfigError, did_you_mean

COMMAND_LINE = "command line"


def conf_root() -> Path:
    """Folder of the shipped YAML files: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def available(kind: str = "") -> list[str]:
    """Names that `conf=` (kind ""), `algorithm=` or `preset=` (kinds of the same name) accept."""
    return sorted(path.stem for path in (conf_root() / kind).glob("*.yaml") if path.stem != "default")


def _read_yaml(path: Path, label: str, draft: Draft) -> dict[str, Any]:
    if path.exists() and (not path.is_file() or path.stat().st_size > 2**20):  # a pipe or /dev/zero has no end
        draft.problems.append(f"{label}: not a file of settings")
        return {}
    try:
        tree = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException, RecursionError) as error:
        draft.problems.append(f"{label}: not readable as YAML: {' '.join(str(error).split())}")
        return {}
    if not isinstance(tree, dict):
        draft.problems.append(f"{label}: a mapping of keys to values is expected")
        return {}
    return {str(key): value for key, value in tree.items()}


def _read_named(kind: str, name: Any, draft: Draft) -> dict[str, Any]:
    """A shipped file by its bare name; nothing outside the conf folder is ever opened."""
    word = kind or "conf"
    root = (conf_root() / kind).resolve()
    if not isinstance(name, str) or not re.fullmatch(NAME, name):
        hint = "; for a path use conf_file=" if not kind else ""
        draft.problems.append(f"{word}={name!r}: not a name (lower-case letters, digits and _ only){hint}")
        return {}
    path = (root / f"{name}.yaml").resolve()
    if name not in available(kind) or path.parent != root:
        known = available(kind)
        if kind == "algorithm" and is_registered(name):
            draft.problems.append(f"algorithm={name}: its YAML is missing: write conf/algorithm/{name}.yaml")
            return {}
        draft.problems.append(f"{word}={name}: unknown{did_you_mean(name, known)}; known: {', '.join(known)}")
        return {}
    return _read_yaml(path, f"{path.parent.name}/{path.name}", draft)


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        key = prefix + str(name)
        if isinstance(value, Mapping) and (key in SECTIONS or key == OPEN):
            flat |= _flatten(value, key + ".")
        else:
            flat[key] = os.fspath(value) if isinstance(value, os.PathLike) else value
    return flat


def compose(overrides: Mapping[str, Any], problems: Sequence[str] = ()) -> Config:
    """Put the layers together and check the result.

    Args:
        overrides: dotted keys, or sections as nested mappings, with their values; `conf_file` may name a
            YAML file anywhere in place of `conf`. With `resume` the run's own configuration takes the place
            of the files.
        problems: what was wrong already, to be reported with the rest.

    Returns:
        The checked configuration.

    Raises:
        ConfigError: naming everything that is wrong.
    """
    draft = Draft()
    draft.problems.extend(problems)
    flat = _flatten(overrides)
    conf_file = flat.pop("conf_file", None)
    if isinstance(flat.get("resume"), str):
        return _compose_resumed(flat, draft)
    _put_files(draft, flat, conf_file)
    for key, value in flat.items():
        draft.put(key, value, COMMAND_LINE)
    config = draft.finish()
    if config.init_from is not None:
        _refuse_other_architecture(config)
    return config


def _put_files(draft: Draft, flat: dict[str, Any], conf_file: Any) -> None:
    """The layers below the command line. Fills in flat["conf"] when the file was given by path."""
    base = _read_yaml(conf_root() / "default.yaml", "conf/default.yaml", draft)
    if conf_file is not None and "conf" in flat:
        draft.problems.append("conf= and conf_file= exclude each other")
        return
    if conf_file is not None:
        conf = _read_yaml(Path(str(conf_file)), str(conf_file), draft)
        flat["conf"] = Path(str(conf_file)).stem
    elif "conf" in flat:
        conf = _read_named("", flat["conf"], draft)
        if not conf:  # reported above; its name must not be reported a second time
            flat.pop("conf")
    else:
        draft.problems.append(f"conf=NAME is missing; known: {', '.join(available())}")
        conf = {}
    algorithm = flat.get("algorithm", conf.get("algorithm", base.get("algorithm", Config.algorithm)))
    own = conf.pop("algorithms", None) or {}
    label = f"conf {flat.get('conf', '')}"
    if not isinstance(own, dict):
        draft.problems.append(f"{label}: 'algorithms' maps names of algorithms to sections")
        own = {}
    for name in own.keys() - {"any", *available("algorithm")}:
        draft.problems.append(f"{label}: algorithms.{name}: unknown{did_you_mean(str(name), available('algorithm'))}")
    draft.put("", base, "conf/default.yaml")
    draft.put("", conf, label)
    draft.put("", _read_named("algorithm", algorithm, draft), f"algorithm {algorithm}")
    draft.put("", own.get("any"), f"{label}, any algorithm")
    draft.put("", own.get(algorithm) if isinstance(algorithm, str) else None, f"{label}, {algorithm}")
    if flat.get("preset") is not None:
        draft.put("", _preset(flat["preset"], algorithm, draft), f"preset {flat['preset']}, {algorithm}")


def _preset(name: Any, algorithm: Any, draft: Draft) -> dict[str, Any]:
    blocks = _read_named("preset", name, draft)
    if not blocks or algorithm in blocks:
        return blocks.get(algorithm, {})
    draft.problems.append(f"preset={name}: has nothing for algorithm={algorithm}; it has {', '.join(sorted(blocks))}")
    return {}


def _compose_resumed(flat: dict[str, Any], draft: Draft) -> Config:
    folder = flat["resume"]
    for key in ("init_from", "overwrite", "seeds"):
        if flat.get(key):
            draft.problems.append(f"resume= and {key}= exclude each other")
    before = read_run_config(folder, flat.get("env.file"))
    draft.put("", OmegaConf.to_container(OmegaConf.structured(before)), f"{folder}/config.yaml")
    for key, value in flat.items():
        draft.put(key, before.env.file if key == "env.file" and before.env.file else value, COMMAND_LINE)
    config = draft.finish()
    if any(get(before, key) != get(config, key) for key in ("accelerator", "devices", "num_nodes")):
        log.warning("resuming on other devices: the run goes on, but not bit for bit as it would have")
    changed = differences(before, config)
    if changed:
        raise ConfigError(
            "resume= continues a run as it was configured; changed:\n  - " + "\n  - ".join(changed),
            "leave these out, or start anew from the weights with init_from=",
        )
    return config


def read_run_config(folder: str | os.PathLike[str], env_file: str | None = None) -> Config:
    """Configuration of an existing run.

    Args:
        folder: of the run.
        env_file: where its `env.file`, if it has one, is now.

    Raises:
        ConfigError: if the folder holds no run, or its config.yaml does not fit this version.
    """
    path = Path(folder) / "config.yaml"
    if not path.is_file():
        raise ConfigError(
            f"{folder}: not a run folder (no config.yaml)",
            "give the folder that a run wrote, e.g. runs/cartpole/gssm_aps/seed0",
        )
    draft = Draft()
    tree = _read_yaml(path, str(path), draft)
    env = tree.get("env")
    if isinstance(env, dict) and env.get("file"):
        env["file"] = os.path.abspath(env_file or str(env["file"]))
        if not os.path.isfile(env["file"]):
            raise ConfigError(
                f"{folder}: the file of its task family is not at {env['file']}",
                "say where it is now: env.file=PATH with resume=, env_file=PATH with evaluate",
            )
    draft.put("", tree, str(path))
    return draft.finish()


def differences(old: Config, new: Config) -> list[str]:
    """What differs between a run and what is asked of it now, one line each, apart from keys that may change.

    Those are the `free` ones of the schema, and more iterations than before.
    """
    lines = []
    for key, entry in FIELDS.items():
        before, after = get(old, key), get(new, key)
        longer = key == "loop.iterations" and after > before
        if before != after and not longer and not entry.metadata.get("free"):
            lines.append(f"{key}: {before} in the run, {after} asked for")
    return lines


def _refuse_other_architecture(config: Config) -> None:
    assert config.init_from is not None
    source = read_run_config(config.init_from, config.env.file)
    rows = [
        f"{key:<24} {get(source, key)!s:<16} {get(config, key)}"
        for key, entry in FIELDS.items()
        if entry.metadata.get("architecture") and get(source, key) != get(config, key)
    ]
    if rows:
        table = "\n  ".join([f"{'key':<24} {'init_from':<16} this run", *rows])
        raise ConfigError(
            f"the weights of {config.init_from} do not fit this run:\n  {table}",
            "give these keys the values of init_from",
        )


def to_yaml(config: Config) -> str:
    """The whole configuration as YAML that `read_run_config` reads back to an equal one."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def load_config(argv: Sequence[str]) -> Config:
    """Configuration from `key=value` words; values are YAML.

    Args:
        argv: the words after the program's name, later ones win.

    Returns:
        The checked configuration.

    Raises:
        ConfigError: naming everything that is wrong.
    """
    return config_of(read(argv))


def config_of(words: Words, **fixed: Any) -> Config:
    """Configuration from words of which a command has taken its own options.

    Args:
        words: the rest of them, and the problems found in those.
        **fixed: keys that the command sets itself.

    Raises:
        ConfigError: naming everything that is wrong.
    """
    values = yaml_values(words) | fixed
    return compose(values, words.problems)


def each_seed(config: Config) -> list[Config]:
    """The configuration of every seed of `seeds=`, or of the one."""
    seeds = number_list(config.seeds) if config.seeds else [config.seed]
    return [dataclasses.replace(config, seed=seed, seeds=None) for seed in seeds]
