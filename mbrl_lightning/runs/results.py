"""Tidy result rows: one number per row, in a CSV that a crash cannot spoil.

A row says whose number it is (algorithm, env, seed), when it was measured (iteration, real environment steps
taken so far), on what (split, task, shot) and what it is (metric, value, unit). `task` and `shot` are -1
where they have no meaning; `shot` is the number of real transitions of context the belief was made from.

Only the standard library is used, so reading results is quick anywhere.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
import uuid
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from mbrl_lightning.errors import StorageError


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

    `add` only buffers; `flush` appends. A line torn by a crash is cut off when the file is opened again, and
    a write that fails half-way (full disk) is taken back, so the file always holds whole rows.

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
        if self.path is not None:
            self.rows = _open_repaired(self.path)
        self._flushed = len(self.rows)

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
        if self.path is not None and pending:
            try:
                _append(self.path, _encode(pending))
            except OSError as error:
                raise _storage_error(f"cannot append to {self.path}", error) from error
        self._flushed = len(self.rows)

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

    def _rewrite(self, rows: list[Row]) -> None:
        if self.path is not None:
            try:
                _replace(self.path, _header() + _encode(rows))
            except OSError as error:
                raise _storage_error(f"cannot rewrite {self.path}", error) from error
        self.rows, self._flushed = rows, len(rows)


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


def _word(text: str) -> str:
    """Refuses line breaks: a row must stay one line, or a torn one could not be told from a whole one."""
    if "\n" in text or "\r" in text or "\0" in text:
        raise ValueError(f"no line break or NUL in a result row: {text!r}")
    return text


def _storage_error(cause: str, error: OSError) -> StorageError:
    return StorageError(f"{cause}: {error.strerror or error}", "see that the folder is writable, the disk not full")


def _encode(rows: Sequence[Sequence[object]]) -> bytes:
    text = io.StringIO()
    # csv writes floats with repr, which reads back to the same bits.
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def _header() -> bytes:
    return _encode([COLUMNS])


def _append(path: Path, data: bytes) -> None:
    with open(path, "ab", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        except BaseException:  # also an interrupt: no half row stays behind
            with contextlib.suppress(OSError):
                file.truncate(size)
            raise


def _replace(path: Path, data: bytes) -> None:
    # Staged in the target's own folder: a rename is atomic only within one filesystem.
    staged = path.with_name(f".{path.name}.tmp-{uuid.uuid4().hex}")
    try:
        with open(staged, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(staged, path)
    finally:
        staged.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _open_repaired(path: Path) -> list[Row]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for stale in path.parent.glob(f".{path.name}.tmp-*"):
            stale.unlink(missing_ok=True)
        data = path.read_bytes() if path.exists() else b""
        whole = data.rfind(b"\n") + 1
        if whole == 0 and not _header().startswith(data):
            raise StorageError(f"{path} is not a file of result rows", "move it away")
        rows = _parse(data[:whole] or _header(), path)  # before cutting: nothing of a foreign file is touched
        if whole < len(data):
            os.truncate(path, whole)
        if whole == 0:
            _append(path, _header())
    except OSError as error:
        raise _storage_error(f"cannot open {path}", error) from error
    return rows


def _read_file(path: Path) -> list[Row]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}", "check its permissions") from error
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        reason = "its last line has no end (a crash, or a run still writing) and is left out"
        warnings.warn(f"{path}: {reason}", stacklevel=3)
    return _parse(data[:whole], path)


def _parse(data: bytes, path: Path) -> list[Row]:
    """Whole lines to rows; the line number of a damaged one goes into the error."""
    remedy = "restore it from a copy, or delete the damaged line"
    try:
        lines = csv.reader(io.StringIO(data.decode(), newline=""))
        if tuple(next(lines, ())) != COLUMNS:
            raise StorageError(f"{path} does not start with our header", "give a CSV written by this library")
    except (UnicodeDecodeError, csv.Error) as error:
        raise StorageError(f"{path} is damaged: {error}", remedy) from error
    rows, number = [], 1
    try:
        for number, cells in enumerate(lines, start=2):  # noqa: B007  (read by the handler below)
            name, env, seed, iteration, steps, split, task, shot, metric, value, unit = cells
            when = (int(seed), int(iteration), int(steps))
            rows.append(Row(name, env, *when, split, int(task), int(shot), metric, float(value), unit))
    except (ValueError, csv.Error) as error:
        raise StorageError(f"{path}, line {number} is damaged: {error}", remedy) from error
    return rows


def _find_files(paths: Sequence[PathLike]) -> list[Path]:
    files: dict[Path, None] = {}  # in order, each once
    for path in map(Path, paths):
        found = [path] if path.is_file() else sorted(path.rglob("results.csv"))
        if not found:
            found = [file for file in sorted(path.rglob("*.csv")) if _is_ours(file)]
        if not found:
            where = "no results.csv in or below it" if path.exists() else "no such file or folder"
            remedy = "name a run folder, a folder above runs, or a CSV"
            raise StorageError(f"no results at {path}: {where}", remedy)
        files.update(dict.fromkeys(file.resolve() for file in found))
    return list(files)


def _is_ours(path: Path) -> bool:
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return file.readline() == _header()
    return False
