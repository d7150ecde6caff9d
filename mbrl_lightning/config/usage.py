"""Text of `--help`, made from the schema so that it cannot be out of date."""

from typing import Any

from mbrl_lightning.config import available
from mbrl_lightning.config.schema import FIELDS, SECTIONS, Config, get

_HEAD = """\
usage: python -m mbrl_lightning.fit conf=NAME [algorithm=NAME] [key=value ...]

Meta-trains and meta-tests one algorithm on one task family. Values are YAML; later words win.

  conf       {confs}
  algorithm  {algorithms}
  preset     {presets}

  conf_file=PATH     a YAML file anywhere in place of conf=NAME
  seeds=0..4         several seeds, jobs=N at a time; finished ones are skipped, then a report is made
  resume=RUN         continue a run where it stopped; init_from=RUN starts a new one from its weights
  --print-config     show the whole configuration and stop
  --help             this text

exit status: 0 done, 2 usage, 3 environment, 4 diverged, 5 storage, 75 preempted (resumable), 130 interrupted

keys with their defaults (conf and algorithm may set others; --print-config tells):
"""


def help_text() -> str:
    """The whole help: commands, names, every key with default, meaning and range."""
    names = {"confs": "", "algorithms": "algorithm", "presets": "preset"}
    head = _HEAD.format(**{word: " ".join(available(kind)) for word, kind in names.items()})
    defaults = Config()
    lines = []
    for section in ("", *sorted(SECTIONS, key=[key.rpartition(".")[0] for key in FIELDS].index)):
        lines.append("")
        for key, entry in FIELDS.items():
            if key.rpartition(".")[0] == section:
                limits = _limits(entry.metadata)
                lines.append(f"  {f'{key}={_yaml(get(defaults, key))}':<38} {entry.metadata['help']}{limits}")
    return head + "\n".join(lines[1:]) + "\n"


def _yaml(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value).replace(" ", "")


def _limits(metadata: Any) -> str:
    words = {"minimum": ">=", "maximum": "<=", "above": ">", "below": "<"}
    texts = [f"{sign} {metadata[name]}" for name, sign in words.items() if name in metadata]
    texts += [" | ".join(metadata["choices"])] if "choices" in metadata else []
    return f" [{', '.join(texts)}]" if texts else ""
