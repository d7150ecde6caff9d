"""The file of result rows, and the record beside the checkpoints that it is compared with. Standard library only."""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mbrl_lightning.config.console import log
from mbrl_lightning.errors import StorageError
from mbrl_lightning.runs.storage import read_file, replace_file


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


def encode(rows: Sequence[Row]) -> bytes:
    """Rows as lines of the CSV."""
    text = io.StringIO()
    # csv writes floats with repr, which reads back to the same bits.
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def record_of(path: Path) -> Path:
    """Where the record of a CSV is."""
    return path.parent / "checkpoints" / "rows"


class Found(NamedTuple):
    """What stands in a CSV; `fault`: what is wrong with it if the rows are those on record in its place."""

    rows: list[Row]
    size: int
    torn: bool
    fault: str


def load_rows(path: Path) -> Found:
    """Reads a CSV and compares it with its record.

    Raises:
        StorageError: the file is damaged, or not one of ours, and there is no record of it.
    """
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
        return Found(_parse(recorded, path), -1, False, error.cause)
    return Found(rows, len(data), len(whole) < len(data), "")


def _recorded(path: Path) -> bytes:
    """The rows on record for a CSV, none if there is no whole record."""
    if not record_of(path).exists():
        return b""
    digest, _, data = read_file(record_of(path)).partition(b"\n")
    if hashlib.sha256(data).hexdigest().encode() == digest:
        return data
    log.warning("%s is damaged: %s cannot be compared with it", record_of(path), path)
    return b""


def put_on_record(path: Path, rows: Sequence[Row]) -> None:
    """Copies rows to where the CSV at `path` is compared with them later, in one step.

    Raises:
        StorageError: they cannot be written; the record is as before.
    """
    data = HEADER + encode(rows)
    replace_file(record_of(path), hashlib.sha256(data).hexdigest().encode() + b"\n" + data)


def has_rows(path: Path) -> bool:
    """Whether anything that was measured is in a CSV or on record for it."""
    return record_of(path).exists() or (path.is_file() and path.stat().st_size > len(HEADER))


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
