"""Report on runs: tables as plain text and Markdown, curves as PNG, the paper's numbers beside ours.

`python -m mbrl_lightning.report RUN... [out=FOLDER]`, or `report(paths, out)` from a notebook.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from mbrl_lightning.errors import ConfigError, MBRLError, StorageError

USAGE = """usage: python -m mbrl_lightning.report RUN... [out=FOLDER]

Prints tables of the runs' results and writes them, with curves, into a folder.

  RUN         a run folder, a folder above several runs (runs/cartpole), or a CSV of results;
              runs of different algorithms and seeds are put side by side
  out=FOLDER  where report.md and the PNGs go (default: report)

exit codes: 0 done, 2 wrong usage, 5 results missing, damaged, or the folder cannot be written
"""
