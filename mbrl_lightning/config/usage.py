"""Text of `--help`, made from the schema so that it cannot be out of date."""

from collections.abc import Sequence

from mbrl_lightning.config import available, reads_of
from mbrl_lightning.config.option import help_line
from mbrl_lightning.config.schema import FIELDS, SECTIONS, Config, get

_HEAD = """\
usage: python -m mbrl_lightning.fit conf=NAME [algorithm=NAME] [key=value ...]

Meta-trains and meta-tests one algorithm on one task family. Values are YAML; later words win.

  conf       {confs}
  algorithm  {algorithms}
  preset     {presets}

  conf_file=PATH      a YAML file anywhere in place of conf=NAME (its env.file may lie beside it); env.file=PATH alone does, too
  algorithm_file=PATH  a Python file with a method of your own, in place of algorithm=NAME, its YAML beside it
  seeds=0..4          several seeds, jobs=N at a time; finished ones are skipped, then a report is made
  resume=RUN          continue a run where it stopped; init_from=RUN starts a new one from its weights
  --print-config      show the whole configuration and stop
  --help              this text; with algorithm=NAME the keys that it reads, and no others

exit status: 0 done, 2 usage, 3 environment, 4 diverged, 5 storage, 75 preempted (resumable), 130 interrupted

keys with their defaults (conf and algorithm may set others; --print-config tells):
"""


def help_text(words: Sequence[str] = ()) -> str:
    """The whole help: commands, names, keys with default, meaning and range; of one algorithm if `words` name one."""
    named = [word.removeprefix("algorithm=") for word in words if word.startswith("algorithm=")]
    reads = reads_of(named[-1]) if named and named[-1] in available("algorithm") else FIELDS.keys()
    names = {"confs": "", "algorithms": "algorithm", "presets": "preset"}
    head = _HEAD.format(**{word: " ".join(available(kind)) for word, kind in names.items()})
    defaults = Config()
    lines = []
    for section in ("", *sorted(SECTIONS, key=[key.rpartition(".")[0] for key in FIELDS].index)):
        own = {key: entry for key, entry in FIELDS.items() if key.rpartition(".")[0] == section and key in reads}
        lines += [""] * bool(own)
        lines += [help_line(key, get(defaults, key), entry.metadata) for key, entry in own.items()]
    return head + "\n".join(lines[1:]) + "\n"
