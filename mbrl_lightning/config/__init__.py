"""From names and `key=value` words to one checked `Config`, in well under a second: no PyTorch here.

Layers, later wins: the defaults of the schema, `env` and `loop` of `conf/<conf>.yaml`, `conf/algorithm/<algorithm>.yaml`,
the conf's own `algorithms: {<algorithm>: {...}}` block, the algorithm's block in `conf/preset/<preset>.yaml`, the command
line. A file that says `like: <other>` begins with all that the other one has. `reads` in an algorithm's file names the keys
that it reads, beside those that every run reads; any other key is refused. All problems are reported together.
"""

import dataclasses
import functools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from mbrl_lightning.config.console import log
from mbrl_lightning.config.draft import Draft
from mbrl_lightning.config.files import (
    available,
    chain,
    likely,
    located,
    merged,
    method,
    read_named,
    read_yaml,
    reads_of,
)
from mbrl_lightning.config.files import conf_root as conf_root
from mbrl_lightning.config.schema import FIELDS, OPEN, SECTIONS, Config, get, short
from mbrl_lightning.config.words import Words, number_list, read, yaml_values
from mbrl_lightning.errors import ConfigError

COMMAND_LINE = "command line"


def flattened(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values of nested sections by dotted keys."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        key = prefix + str(name)
        if isinstance(value, Mapping) and (key in SECTIONS or key == OPEN):
            flat |= flattened(value, key + ".")
        else:
            flat[key] = os.fspath(value) if isinstance(value, os.PathLike) else value
    return flat


def compose(overrides: Mapping[str, Any], problems: Sequence[str] = ()) -> Config:
    """Put the layers together and check the result; a ConfigError names everything that is wrong, `problems` too.

    `overrides` are dotted keys, or sections as nested mappings, with their values; `conf_file` may name a YAML file anywhere
    in place of `conf`, and where `env.file` is given neither is needed. With `resume` the run's own configuration takes the
    place of the files.
    """
    draft, flat = Draft(problems), flattened(overrides)
    if isinstance(flat.get("resume"), str):
        return _compose_resumed(flat, draft)
    _put_files(draft, flat)
    for key, value in flat.items():
        draft.put(key, value, COMMAND_LINE)
    config = draft.finish()
    if config.init_from is not None:
        _refuse_other_architecture(config, config.init_from)
    return config


def _put_files(draft: Draft, flat: dict[str, Any]) -> None:
    """The layers below the command line. Fills in flat["conf"] when the file was given by path."""
    conf, known, problems = _conf(flat, draft.problems), available("algorithm"), draft.problems
    label, file = f"conf {flat.get('conf', '')}", _own_method(flat, known, problems)
    algorithm = flat.get("algorithm", conf.get("algorithm", Config.algorithm))
    blocks = conf.pop("algorithms", None) or {}
    if not isinstance(blocks, dict):
        problems.append(f"{label}: 'algorithms' maps names of algorithms to sections")
        blocks = {}
    problems += [
        f"{label}: algorithms.{name}: unknown{likely(str(name), known)}" for name in blocks.keys() - {*known, algorithm}
    ]
    for section in sorted(conf.keys() & (SECTIONS - {"env", "loop"})):
        problems.append(f"{label}: {section} belongs to a method: put it below algorithms: <name>:")
        del conf[section]
    files = method(algorithm, file, problems)
    draft.limit(algorithm, file)
    draft.put("", conf, label, lenient=True)
    for name, tree in files.items():  # what it is like may read more than it does
        own = {key: value for key, value in tree.items() if key != "reads"}
        draft.put("", own, f"algorithm {name}", lenient=name != algorithm)
        draft.put("", blocks.get(name), f"{label}, {name}", lenient=name != algorithm)
    if flat.get("preset") is not None:
        preset, label = read_named("preset", flat["preset"], problems), f"preset {flat['preset']}"
        if preset and not files.keys() & preset.keys():
            text = f"has nothing for algorithm={algorithm}; it has {', '.join(sorted(preset))}"
            problems.append(f"preset={flat['preset']}: {text}")
        for name in (name for name in files if name in preset):
            block, lenient = dict(preset[name]), name != algorithm
            own = block.pop("conf", {})
            draft.put("", block, label, lenient)
            draft.put("", own.get(flat.get("conf")), f"{label}, {flat.get('conf')}", lenient)


def _conf(flat: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    """The tree of the task family's file, with those that it is like below it."""
    path, trees = flat.pop("conf_file", None), list[dict[str, Any]]()
    if path is not None and "conf" in flat:
        problems.append("conf= and conf_file= exclude each other")
    elif path is not None:
        path = os.path.expanduser(str(path))
        tree = read_yaml(Path(path), short(path), problems)
        flat["conf"] = _name_of(path)
        env, other = tree.get("env"), tree.pop("like", None)
        if isinstance(env, dict) and os.path.isfile(
            beside := os.path.join(os.path.dirname(path), str(env.get("file")))
        ):
            env["file"] = beside  # so that the two work from any folder
        trees = [*(chain("", other, problems) if other else {}).values(), tree]
    elif "conf" in flat:
        trees = list(chain("", flat["conf"], problems).values())
        if not trees[-1]:  # reported above; its name must not be reported a second time
            flat.pop("conf")
    elif flat.get("env.file"):
        flat["conf"] = _name_of(flat["env.file"])
    else:
        problems.append(f"conf=NAME is missing; known: {', '.join(available())}")
    return functools.reduce(merged, trees, dict[str, Any]())


def _own_method(flat: dict[str, Any], known: Sequence[str], problems: list[str]) -> str | None:
    """The file of a user's own method, after which it is called; what is wrong with that is a problem."""
    file = flat.get("algorithm_file")
    if file is None:
        return None
    file, name = os.path.abspath(os.path.expanduser(str(file))), _name_of(file)
    if "algorithm" in flat:
        problems.append("algorithm= and algorithm_file= exclude each other")
    elif name in known:
        problems.append(f"algorithm_file={short(file)}: algorithm={name} is a shipped one: give the file another name")
    elif not os.path.isfile(file):
        problems.append(f"algorithm_file={short(file)}: no such file")
    else:
        flat |= {"algorithm": name, "algorithm_file": file}
        return file
    del flat["algorithm_file"]
    return None


def _name_of(path: Any) -> str:
    return re.sub(r"[^a-z0-9_]+", "_", Path(str(path)).stem.lower())


def _compose_resumed(flat: dict[str, Any], draft: Draft) -> Config:
    folder = flat["resume"] = os.path.expanduser(flat["resume"])
    for key in ("init_from", "overwrite", "seeds"):
        if flat.get(key):
            draft.problems.append(f"resume= and {key}= exclude each other")
    before = read_run_config(folder, flat.get("env.file"))
    draft.limit(before.algorithm, before.algorithm_file)
    draft.put("", _read_by(before), f"{folder}/config.yaml")
    for key, value in flat.items():
        if key == "env.file" and before.env.file:
            value = before.env.file
        elif key == "algorithm_file":
            value = os.path.abspath(os.path.expanduser(str(value)))
        draft.put(key, value, COMMAND_LINE)
    config = draft.finish()
    if any(get(before, key) != get(config, key) for key in ("accelerator", "devices", "num_nodes")):
        log.warning("resuming on other devices: the run goes on, but not bit for bit as it would have")
    if changed := differences(before, config):
        raise ConfigError(
            "resume= continues a run as it was configured; changed:\n  - " + "\n  - ".join(changed),
            "leave these out, or start anew from the weights with init_from=",
        )
    return config


def read_run_config(folder: str | os.PathLike[str], env_file: str | None = None) -> Config:
    """Configuration of an existing run, or a ConfigError; `env_file`: where its `env.file`, if it has one, is now."""
    path, draft = located(folder) / "config.yaml", Draft()
    if not path.is_file():
        below = sorted(path.parent for path in path.parent.glob("*/config.yaml")) if path.parent.is_dir() else []
        remedy = f"give the folder that a run wrote, e.g. {below[0] if below else 'runs/cartpole/gssm_aps/seed0'}"
        raise ConfigError(f"{folder}: not a run folder (no config.yaml)", remedy)
    tree = read_yaml(path, str(path), draft.problems)
    env = tree.get("env")
    if not isinstance(env, dict):
        draft.problems.append(f"{path}: no whole configuration of a run: put it back, or give another folder")
    elif env_file and not env.get("file"):
        raise ConfigError(f"{folder}: its task family comes from no file", "leave env_file= away")
    if isinstance(env, dict) and env.get("file"):
        env["file"] = os.path.abspath(env_file or str(env["file"]))
        if not os.path.isfile(env["file"]):
            raise ConfigError(
                f"{folder}: the file of its task family is not at {env['file']}",
                "say where it is now: env.file=PATH with resume=, env_file=PATH with evaluate",
            )
    file = tree.get("algorithm_file")
    if file and not os.path.isfile(file):
        raise ConfigError(f"{folder}: the file of its method is not at {file}", "put it back there, with its YAML")
    draft.limit(tree.get("algorithm"), file)
    draft.put("", tree, str(path), lenient=True)
    return draft.finish()


def differences(old: Config, new: Config) -> list[str]:
    """What differs between a run and what is asked of it now, one line each, apart from `free` keys and more iterations."""
    return [
        f"{key}: {before} in the run, {after} asked for"
        for key, before, after, facts in _changed(old, new)
        if not facts.get("free") and not (key == "loop.iterations" and after > before)
    ]


def _changed(old: Config, new: Config) -> Iterator[tuple[str, Any, Any, Mapping[str, Any]]]:
    """Key, both values and what is known of the key, where they differ."""
    for key, entry in FIELDS.items():
        if get(old, key) != get(new, key):
            yield key, get(old, key), get(new, key), entry.metadata


def _refuse_other_architecture(config: Config, init_from: str) -> None:
    changed = _changed(read_run_config(init_from, config.env.file), config)
    rows = [f"{key:<24} {old!s:<16} {new}" for key, old, new, facts in changed if facts.get("architecture")]
    if rows:
        table = "\n  ".join([f"{'key':<24} {'init_from':<16} this run", *rows])
        cause = f"the weights of {init_from} do not fit this run:\n  {table}"
        raise ConfigError(cause, "give these keys the values of init_from")


def _read_by(config: Config) -> dict[str, Any]:
    """What the run reads, as a tree of plain values."""
    tree: dict[str, Any] = {}
    reads = reads_of(config.algorithm, config.algorithm_file)
    for key in (key for key in FIELDS if key in reads):
        section, _, name = key.rpartition(".")
        (tree.setdefault(section, {}) if section else tree)[name] = get(config, key)
    return tree


def to_yaml(config: Config) -> str:
    """The configuration, as far as its algorithm reads it, as YAML that `read_run_config` reads back to an equal one."""
    return OmegaConf.to_yaml(OmegaConf.create(_read_by(config)))


def load_config(argv: Sequence[str]) -> Config:
    """Configuration from `key=value` words: YAML, but text as it stands, later words win; a ConfigError names all faults."""
    return config_of(read(argv))


def config_of(words: Words, **fixed: Any) -> Config:
    """Configuration from words of which a command has taken its own options; `fixed` are keys that it sets itself."""
    values = yaml_values(words)
    for key in values.keys() & FIELDS.keys():
        if FIELDS[key].type in (str, str | None) and isinstance(values[key], (bool, int, float)):
            values[key] = words.pairs[key]  # out=on, out=1e3
    return compose(values | fixed, words.problems)


def each_seed(config: Config) -> list[Config]:
    """The configuration of every seed of `seeds=`, or of the one."""
    seeds = number_list(config.seeds) if config.seeds else [config.seed]
    return [dataclasses.replace(config, seed=seed, seeds=None) for seed in seeds]
