"""Tidy result rows: one number per row, in a CSV that a crash cannot spoil.

A row says whose number it is (algorithm, env, seed), when it was measured (iteration, real environment steps
taken so far), on what (split, task, shot) and what it is (metric, value, unit). `task` and `shot` are -1
where they have no meaning; `shot` is the number of real transitions of context the belief was made from.

Each checkpoint is preceded by a record of the rows so far (`checkpoints/rows`, with its SHA-256): what happens to the CSV
afterwards is noticed and mended from it. Only the standard library is used, so reading results is quick anywhere.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from mbrl_lightning.config.console import log
from mbrl_lightning.errors import StorageError
from mbrl_lightning.runs.storage import MARK, append, move, read_file, replace_file

PathLike = str | os.PathLike[str]


class Row(NamedTuple):
    """One number. Field order is the column order of the CSV."""

    algorithm: str
    env: str
    seed: int
    iteration: int
    real_steps: int
    split: str
    task: int
    shot: int
    metric: str
    value: float
    unit: str


COLUMNS = Row._fields
HEADER = (",".join(COLUMNS) + "\n").encode()


def return_unit(unit: str, horizon: int) -> str:
    """Words for `Row.unit` of a return: `unit` is "step" (mean reward per step) or "episode" (sum), as in `EnvSpec`."""
    words = {"step": "mean reward per step", "episode": "sum of rewards"}
    return f"{words[unit]}, {horizon} steps"


class Results:
    """The rows of one run, in memory and (with a path) in a CSV of whole rows.

    `add` only buffers; `flush` appends. A line torn by a crash is cut off when the file is opened again, a write that
    fails half-way (full disk) is taken back, and a file that is not as it was left is written anew.

    Args:
        path: the CSV, made with its folder when missing, continued when there; None: rows in memory only. The others are
            written into every row.

    Attributes:
        rows: every row, buffered ones included, oldest first.

    Raises:
        StorageError: the file cannot be read or written, or is not one of ours; a method that raises has changed nothing.
    """

    def __init__(self, path: PathLike | None, algorithm: str, env: str, seed: int) -> None:
        self.path = None if path is None else Path(path)
        self.algorithm, self.env, self.seed = _word(algorithm), _word(env), int(seed)
        self.rows: list[Row] = []
        self._size = self._flushed = 0  # bytes and rows of the file
        if self.path is not None:
            found = _load(self.path)
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
        """Appends the buffered rows to the CSV and waits until they are on the disk."""
        pending = self.rows[self._flushed :]
        if self.path is None or not pending:
            return
        if not self.path.is_file() or self.path.stat().st_size != self._size:
            log.warning("%s was changed or removed meanwhile; written anew", self.path)
            self._write(self.path, self.rows)
            return
        data = _lines(pending)
        append(self.path, data)
        self._size, self._flushed = self._size + len(data), len(self.rows)

    def record(self) -> None:
        """Puts a copy of all rows beside the checkpoints, before one is written."""
        self.flush()
        if self.path is not None:
            _put_on_record(self.path, self.rows)

    def truncate(self, iteration: int) -> None:
        """Keeps only rows up to and including `iteration`, as resuming from its checkpoint needs, in one step."""
        self._rewrite([row for row in self.rows if row.iteration <= iteration])

    def put_in_place(self, rows: Sequence[Row]) -> int:
        """Puts rows in place of all those of the same iterations and splits, in one step; how many went."""
        places = {(row.iteration, row.split) for row in rows}
        kept = [row for row in self.rows if (row.iteration, row.split) not in places]
        gone = len(self.rows) - len(kept)
        self._rewrite([*kept, *rows])
        return gone

    def save_as(self, path: Path) -> None:
        """Writes all rows into a CSV of their own, in place of what it held."""
        replace_file(path, HEADER + _lines(self.rows))

    def _rewrite(self, rows: list[Row]) -> None:
        if self.path is not None:
            if record_of(self.path).exists():
                _put_on_record(self.path, rows)
            self._write(self.path, rows)
        self.rows, self._flushed = rows, len(rows)

    def _write(self, path: Path, rows: list[Row]) -> None:
        data = HEADER + _lines(rows)
        replace_file(path, data)
        self._size, self._flushed = len(data), len(rows)


def read_results(paths: PathLike | Iterable[PathLike]) -> list[Row]:
    """Reads result rows from CSVs, run folders, or folders above them.

    In a folder every `results.csv` below it is read; a folder without any (such as committed results, one
    named CSV per seed) gives all its CSVs that start with our header. A torn last line is left out with a
    warning. A StorageError where nothing is found, a file is damaged, or two files hold one run.
    """
    owner: dict[tuple[str, str, int], Path] = {}
    rows: list[Row] = []
    for file in _find_files([paths] if isinstance(paths, (str, os.PathLike)) else list(paths)):
        found = _load(file)
        if found.fault:
            log.warning("%s; read from the record of the last checkpoint, which resume= puts back", found.fault)
        elif not found.size:
            raise StorageError(f"{file} is missing or empty", "restore it from a copy")
        elif found.torn:
            log.warning("%s: its last line has no end (a crash, or a run still writing) and is left out", file)
        for run in {(row.algorithm, row.env, row.seed) for row in found.rows}:
            if run in owner:
                cause = f"{owner[run]} and {file} both hold {run[1]} {run[0]} seed {run[2]}"
                raise StorageError(cause, "name only one of the two, or give one run another seed")
            owner[run] = file
        rows += found.rows
    return rows


def has_rows(path: Path) -> bool:
    """Whether anything that was measured is in a CSV or on record for it."""
    return record_of(path).exists() or (path.is_file() and path.stat().st_size > len(HEADER))


def record_of(path: Path) -> Path:
    """Where the record of a CSV is."""
    return path.parent / "checkpoints" / "rows"


def _put_on_record(path: Path, rows: Sequence[Row]) -> None:
    data = HEADER + _lines(rows)
    replace_file(record_of(path), hashlib.sha256(data).hexdigest().encode() + b"\n" + data)


def _recorded(path: Path) -> bytes:
    """The rows on record for a CSV, none if there is no whole record."""
    if not record_of(path).exists():
        return b""
    digest, _, data = read_file(record_of(path)).partition(b"\n")
    if hashlib.sha256(data).hexdigest().encode() == digest:
        return data
    log.warning("%s is damaged: %s cannot be compared with it", record_of(path), path)
    return b""


class _Found(NamedTuple):
    """What stands in a CSV; `fault`: what is wrong with it if the rows are those on record in its place."""

    rows: list[Row]
    size: int
    torn: bool
    fault: str


def _load(path: Path) -> _Found:
    """Reads a CSV and compares it with its record; an error where there is none and the file is damaged or not one of ours."""
    recorded = _recorded(path)
    lines = recorded.count(b"\n")
    try:
        data = read_file(path) if os.path.lexists(path) else b""
        whole = data[: data.rfind(b"\n") + 1]
        if not whole and not HEADER.startswith(data):
            raise StorageError(f"{path} is not a file of result rows", "move it away")
        rows = _parse(whole, path) if whole else []
        last = max((row.iteration for row in rows[: lines - 1]), default=-1)
        if not whole.startswith(recorded):
            raise StorageError(f"{path} does not hold the {lines - 1} rows that it had", "")
        if recorded and any(row.iteration <= last for row in rows[lines - 1 :]):
            raise StorageError(f"{path} holds rows twice", "")
    except StorageError as error:
        if not recorded:
            raise
        return _Found(_parse(recorded, path), -1, False, error.cause)
    return _Found(rows, len(data), len(whole) < len(data), "")


def _lines(rows: Sequence[Row]) -> bytes:
    """Rows as lines of the CSV, whose floats read back to the same bits."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def _parse(data: bytes, path: Path) -> list[Row]:
    """Whole lines to rows; the line number of a damaged one goes into the error."""
    rows, number = [], 1
    try:
        lines = csv.reader(io.StringIO(data.decode(), newline=""))
        if tuple(next(lines, ())) != COLUMNS:
            raise StorageError(f"{path} does not start with our header", "give a CSV written by this library")
        for number, cells in enumerate(lines, start=2):  # noqa: B007  (read by the handler below)
            name, env, seed, iteration, steps, split, task, shot, metric, value, unit = cells
            when = (int(seed), int(iteration), int(steps))
            rows.append(Row(name, env, *when, split, int(task), int(shot), metric, float(value), unit))
    except (ValueError, csv.Error) as error:  # UnicodeDecodeError is a ValueError
        remedy = "restore it from a copy, or delete the damaged line"
        raise StorageError(f"{path}, line {number} is damaged: {error}", remedy) from error
    return rows


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
            raise StorageError(f"no results at {path}: {where}", "name a run folder, a folder above runs, or a CSV")
        files.update((Path(os.path.realpath(file)), None) for file in found)
    return list(files)


def _is_ours(path: Path) -> bool:
    if path.is_file():
        with suppress(OSError), path.open("rb") as file:
            return file.readline(len(HEADER)) == HEADER
    return False
