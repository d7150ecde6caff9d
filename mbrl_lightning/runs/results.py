"""Tidy result rows: one number per row, in a CSV that a crash cannot spoil.

A row says whose number it is (algorithm, env, seed), when it was measured (iteration, real environment steps
taken so far), on what (split, task, shot) and what it is (metric, value, unit). `task` and `shot` are -1
where they have no meaning; `shot` is the number of real transitions of context the belief was made from.

Each checkpoint is preceded by a record of the rows so far (`checkpoints/rows`, with its SHA-256): what happens to the CSV
afterwards is noticed and mended from it. Only the standard library is used, so reading results is quick anywhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from mbrl_lightning.config.console import log
from mbrl_lightning.errors import StorageError
from mbrl_lightning.runs.rows import COLUMNS, HEADER, Row, encode, load_rows, put_on_record, record_of
from mbrl_lightning.runs.storage import MARK, append, move, replace_file

__all__ = ["COLUMNS", "PathLike", "Results", "Row", "read_results", "return_unit"]


PathLike = str | os.PathLike[str]


def return_unit(unit: str, horizon: int) -> str:
    """Words for the unit of a return, horizon included, to be stored in `Row.unit`.

    Args:
        unit: "step" (mean reward per step) or "episode" (sum of rewards), as in `EnvSpec.unit`.
        horizon: steps of one episode.
    """
    if unit not in ("step", "episode"):
        raise ValueError(f"unit is 'step' or 'episode', not {unit!r}")
    return f"mean reward per step, {horizon} steps" if unit == "step" else f"sum of rewards, {horizon} steps"


class Results:
    """The rows of one run, in memory and (with a path) in a CSV of whole rows.

    `add` only buffers; `flush` appends. A line torn by a crash is cut off when the file is opened again, a write that
    fails half-way (full disk) is taken back, and a file that is not as it was left is written anew.

    Args:
        path: the CSV, made with its folder when missing, continued when there; None: rows in memory only.
        algorithm: name written into every row.
        env: name of the task family, written into every row.
        seed: root seed of the run, written into every row.

    Attributes:
        rows: every row, buffered ones included, oldest first.

    Raises:
        StorageError: the file cannot be read or written, or is not one of ours.
    """

    def __init__(self, path: PathLike | None, algorithm: str, env: str, seed: int) -> None:
        self.path = None if path is None else Path(path)
        self.algorithm, self.env, self.seed = _word(algorithm), _word(env), int(seed)
        self.rows: list[Row] = []
        self._size = self._flushed = 0  # bytes and rows of the file
        if self.path is not None:
            found = load_rows(self.path)
            if found.fault:
                log.warning("%s; restored from the record of the last checkpoint", found.fault)
                if os.path.lexists(self.path):
                    move(self.path, self.path.with_name(f"{self.path.name}.damaged"))
            self.rows, self._size, self._flushed = found.rows, found.size, len(found.rows)
            if found.fault or found.torn or not found.size:
                self._write(self.path, self.rows)

    def add(
        self,
        metric: str,
        value: float,
        *,
        iteration: int,
        real_steps: int,
        split: str = "",
        task: int = -1,
        shot: int = -1,
        unit: str = "",
    ) -> None:
        """Buffers one row. `value` is anything `float()` takes; NaN and infinities are kept, not hidden."""
        run = (self.algorithm, self.env, self.seed, int(iteration), int(real_steps))
        self.rows.append(Row(*run, _word(split), int(task), int(shot), _word(metric), float(value), _word(unit)))

    def flush(self) -> None:
        """Appends the buffered rows to the CSV and waits until they are on the disk.

        Raises:
            StorageError: the write failed; the file is as before and the rows stay buffered for another try.
        """
        pending = self.rows[self._flushed :]
        if self.path is None or not pending:
            return
        if not self.path.is_file() or self.path.stat().st_size != self._size:
            log.warning("%s was changed or removed meanwhile; written anew", self.path)
            self._write(self.path, self.rows)
            return
        data = encode(pending)
        append(self.path, data)
        self._size, self._flushed = self._size + len(data), len(self.rows)

    def record(self) -> None:
        """Puts a copy of all rows beside the checkpoints, before one is written; errors as in `flush`."""
        self.flush()
        if self.path is not None:
            put_on_record(self.path, self.rows)

    def truncate(self, iteration: int) -> None:
        """Keeps only rows up to and including `iteration`, as resuming from its checkpoint needs.

        The file is replaced in one step: a crash leaves either the old rows or the new ones. Buffered rows
        that are kept are written too.

        Raises:
            StorageError: the file cannot be written; nothing has changed.
        """
        self._rewrite([row for row in self.rows if row.iteration <= iteration])

    def put_in_place(self, rows: Sequence[Row]) -> int:
        """Puts rows in place of all those of the same iterations and splits, as measuring again needs.

        The file is replaced in one step; errors as in `truncate`. Returns how many rows went.
        """
        places = {(row.iteration, row.split) for row in rows}
        kept = [row for row in self.rows if (row.iteration, row.split) not in places]
        gone = len(self.rows) - len(kept)
        self._rewrite([*kept, *rows])
        return gone

    def save_as(self, path: Path) -> None:
        """Writes all rows into a CSV of their own, in place of what it held; errors as in `truncate`."""
        replace_file(path, HEADER + encode(self.rows))

    def _rewrite(self, rows: list[Row]) -> None:
        if self.path is not None:
            if record_of(self.path).exists():
                put_on_record(self.path, rows)
            self._write(self.path, rows)
        self.rows, self._flushed = rows, len(rows)

    def _write(self, path: Path, rows: list[Row]) -> None:
        data = HEADER + encode(rows)
        replace_file(path, data)
        self._size, self._flushed = len(data), len(rows)


def read_results(paths: PathLike | Iterable[PathLike]) -> list[Row]:
    """Reads result rows from CSVs, run folders, or folders above them.

    In a folder every `results.csv` below it is read; a folder without any (such as committed results, one
    named CSV per seed) gives all its CSVs that start with our header. A torn last line is left out with a
    warning.

    Raises:
        StorageError: nothing found, an unreadable or damaged file, or one run (algorithm, env, seed) found in
            two files, which would be counted twice.
    """
    owner: dict[tuple[str, str, int], Path] = {}
    rows: list[Row] = []
    for file in _find_files([paths] if isinstance(paths, (str, os.PathLike)) else list(paths)):
        found = _read_file(file)
        for run in {(row.algorithm, row.env, row.seed) for row in found}:
            if run in owner:
                name = "{1} {0} seed {2}".format(*run)
                raise StorageError(
                    f"{owner[run]} and {file} both hold {name}",
                    "name only one of the two, or give one run another seed",
                )
            owner[run] = file
        rows += found
    return rows


def _read_file(path: Path) -> list[Row]:
    found = load_rows(path)
    if found.fault:
        log.warning("%s; read from the record of the last checkpoint, which resume= puts back", found.fault)
    elif not found.size:
        raise StorageError(f"{path} is missing or empty", "restore it from a copy")
    elif found.torn:
        log.warning("%s: its last line has no end (a crash, or a run still writing) and is left out", path)
    return found.rows


def _word(text: str) -> str:
    """Refuses line breaks, by which a torn row is known."""
    if "\n" in text or "\r" in text or "\0" in text:
        raise ValueError(f"no line break or NUL in a result row: {text!r}")
    return text


def _find_files(paths: Sequence[PathLike]) -> list[Path]:
    files: dict[Path, None] = {}  # in order, each once
    for path in map(Path, paths):
        runs = {
            *path.rglob("results.csv"),
            *(file.parents[1] / "results.csv" for file in path.rglob("checkpoints/rows")),
        }
        found = [path] if path.is_file() else sorted(file for file in runs if MARK not in str(file.relative_to(path)))
        if not found:
            found = [file for file in sorted(path.rglob("*.csv")) if _is_ours(file)]
        if not found:
            where = "no results.csv in or below it" if path.exists() else "no such file or folder"
            remedy = "name a run folder, a folder above runs, or a CSV"
            raise StorageError(f"no results at {path}: {where}", remedy)
        files.update((Path(os.path.realpath(file)), None) for file in found)
    return list(files)


def _is_ours(path: Path) -> bool:
    if path.is_file():
        with suppress(OSError), path.open("rb") as file:
            return file.readline(len(HEADER)) == HEADER
    return False
