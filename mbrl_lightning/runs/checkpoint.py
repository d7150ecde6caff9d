"""Checkpoints that survive crashes: a folder published as a whole, its manifest says what belongs in it.

`<folder>/step_<number>/` holds `state.pt` and `manifest.json` (size and SHA-256 of the state). What only grows, the
transitions, is in `<folder>/segments/`, files named by their SHA-256 that checkpoints share: each is written once, and goes
with the last checkpoint whose manifest names it. A checkpoint is complete when its manifest is there and all that it names
matches. The newest complete one is loaded; none is overwritten, and pickled code is never run. PyTorch is imported inside
functions: which steps there are is known without it.
"""

import hashlib
import io
import json
import pickle
import re
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from mbrl_lightning.config.console import log
from mbrl_lightning.errors import ConfigError, StorageError
from mbrl_lightning.runs.storage import publish, read_file, remove, replace_file

FORMAT = 2
READ = (1, FORMAT)  # 1 had all transitions in `state.pt`
SEGMENTS = "segments"
_ATTEMPTS = 3


class Segment(dict[str, Any]):
    """Columns of rows, tensors, that have a file of their own: where a state has a list of them under the key `segments`."""

    file: tuple[str, int] = ("", -1)  # name and size once it was written


def save(folder: Path, step: int, state: Mapping[str, Any], keep: int) -> Path:
    """Write the checkpoint of one step, then keep the newest `keep`; a complete one of that step is left as it is.

    Args:
        folder: where the checkpoints of a run are; made if missing.
        step: outer iteration, at least 0.
        state: plain containers (dict, list, tuple, numbers, text) and tensors; a TypeError names anything else.
        keep: at least 1.

    Raises:
        StorageError: if it cannot be written, even after older ones made room. The newest of those is then intact.
    """
    target = folder / f"step_{step:08d}"
    if not _look(target).fault:
        return target
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            _write(target, step, state)
            break
        except StorageError as error:
            if not error.full or attempt == _ATTEMPTS:
                raise
            log.warning("disk full while saving %s; pruning older checkpoints, then trying again", target)
            _prune(folder, keep=1)
    _prune(folder, keep)
    return target


def _write(target: Path, step: int, state: Mapping[str, Any]) -> None:
    import torch

    names: dict[str, int] = {}
    data = _bytes(_exchanged(state, lambda segment: _kept(target.with_name(SEGMENTS), segment, names)))
    if foreign := torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(data)):
        raise TypeError(f"the state holds {', '.join(foreign)}: checkpoints hold plain containers and tensors only")
    files = {"state.pt": {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}}
    manifest = {"format": FORMAT, "step": step, "torch": torch.__version__, "files": files, "segments": names}
    publish(target, {"state.pt": data, "manifest.json": json.dumps(manifest, indent=1).encode()})


def _kept(folder: Path, segment: Segment, names: dict[str, int]) -> str:
    """Name of the file of a segment, which is written if it is not there; a note of its size is put into `names`."""
    name, size = segment.file
    if not _there(folder / name, size):
        # in one order, so that equal rows are equal bytes; not all of what a view looks at
        data = _bytes({column: value.clone() for column, value in sorted(segment.items())})
        name, size = hashlib.sha256(data).hexdigest(), len(data)
        if not _there(folder / name, size, name):
            remove(folder / name)
            replace_file(folder / name, data)
        segment.file = name, size
    names[name] = size
    return name


def _bytes(value: Any) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _exchanged(value: Any, change: Callable[[Any], Any]) -> Any:
    """Nested mappings with `change` of each segment."""
    if not isinstance(value, Mapping):
        return value
    lists = {key: [change(one) for one in value[key]] for key in (SEGMENTS,) if isinstance(value.get(key), list)}
    return {key: _exchanged(entry, change) for key, entry in value.items()} | lists


def load(folder: Path, last: int | None = None, rows: bool = True) -> tuple[int, dict[str, Any]]:
    """The newest complete checkpoint up to step `last`, on the CPU. Damaged newer ones are skipped with a warning.

    Without `rows` segments are neither read nor looked at. The run may be in training: what it prunes meanwhile is looked for
    anew. A StorageError if there is none, or the newest complete one is of another format or holds anything but plain data.
    """
    found: list[int] | None = None
    faults: list[str] = []
    while found != (found := steps(folder)):
        faults = []
        for step in (step for step in found if last is None or step <= last):
            path = folder / f"step_{step:08d}"
            content = _look(path, rows=rows)
            if not content.fault:
                if faults:
                    log.warning("skipped damaged checkpoints (%s); using %s", "; ".join(faults), path)
                return step, _state(path, content)
            faults.append(f"{path}: {content.fault}")
    what = "; ".join(faults) or "no checkpoint in it"
    raise StorageError(f"{folder}: {what}", "no step can be loaded: start the run anew with overwrite=true")


def steps(folder: Path) -> list[int]:
    """Steps that have a checkpoint, newest first, complete or not."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    found = (int(name.removeprefix("step_")) for name in names if re.fullmatch(r"step_\d{8,}", name))
    return sorted(found, reverse=True)


def newest(folder: Path, first: int = 0) -> int:
    """Step of the newest complete checkpoint, -1 if there is none from step `first` on."""
    found = (step for step in steps(folder) if step >= first)
    return next((step for step in found if not _look(folder / f"step_{step:08d}").fault), -1)


def refuse_other_family(saved: Mapping[str, Any] | None, present: Mapping[str, Any], source: str) -> None:
    """A ConfigError where a task family is not what it was when a checkpoint was made: a table.

    `saved` and `present` are what `TaskFamily.described` gives; None: the checkpoint is from before that was kept.
    """
    if saved is not None and (table := _differences("task family", saved, present, str)):
        raise ConfigError(
            f"the task family of {source} is another one now:\n  {table}",
            "take its file and env.options as they were when that run began, or train anew",
        )


def refuse_mismatch(saved: Mapping[str, Any], present: Mapping[str, Any], source: str) -> None:
    """A ConfigError, before any is copied, where shapes of a checkpoint, `saved`, and a module, `present`, differ: a table."""

    def shape(value: Any) -> str:
        return str(list(value.shape)) if hasattr(value, "shape") else value if value == "absent" else "other"

    if table := _differences("tensor", saved, present, shape):
        raise ConfigError(
            f"the weights of {source} do not fit:\n  {table}",
            "give env, algorithm, dynamics and policy the values of that run; one of another version has to be trained anew",
        )


def _differences(what: str, saved: Mapping[str, Any], present: Mapping[str, Any], show: Callable[[Any], str]) -> str:
    names = sorted(saved.keys() | present.keys())
    rows = [(name, *(show(state.get(name, "absent")) for state in (saved, present))) for name in names]
    lines = [f"{name:<48} {old:<16} {new}" for name, old, new in rows if old != new]
    more = [f"and {len(lines) - 12} more"] if len(lines) > 12 else []
    return "\n  ".join([f"{what:<48} {'checkpoint':<16} this run", *lines[:12], *more]) if lines else ""


def _prune(folder: Path, keep: int) -> None:
    """Remove the oldest complete checkpoints beyond `keep`, damaged ones, and segments that no other names."""
    found = {step: _look(folder / f"step_{step:08d}", quick=True) for step in steps(folder)}
    kept = [step for step, content in found.items() if not content.fault][: max(keep, 1)]
    for step in found.keys() - set(kept):
        remove(folder / f"step_{step:08d}")
    named = {name for step in kept for name in found[step].segments}
    for path in folder.glob(f"{SEGMENTS}/*"):
        if path.name not in named:
            remove(path)


class _Content(NamedTuple):
    """Why a checkpoint is not complete, or nothing; of one that is, format and files as bytes, and the names of its segments."""

    fault: str
    format: Any = None
    data: bytes = b""
    segments: Mapping[str, bytes] = {}


def _look(path: Path, quick: bool = False, rows: bool = True) -> _Content:
    """What is there; `quick` compares sizes only, and reads no state; without `rows` no segment is asked for."""
    try:
        manifest = json.loads(read_file(path / "manifest.json", most=2**20))
        expected, folder = manifest["files"]["state.pt"], path.with_name(SEGMENTS)
        data = _read(path / "state.pt", expected["bytes"], "" if quick else expected["sha256"])
        names = manifest.get("segments", {}).items() if rows else ()
        segments = {name: _read(folder / name, size, "" if quick else name) for name, size in names}
        return _Content("", manifest.get("format"), data, segments)
    except FileNotFoundError as error:
        return _Content(f"{Path(str(error.filename)).name} is missing")
    except StorageError as error:
        return _Content(error.cause)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return _Content(f"manifest unreadable ({type(error).__name__})")


def _read(file: Path, size: int, sha256: str = "") -> bytes:
    """The content of a file of this size and SHA-256, not read if that is not told. A StorageError where it is another one."""
    if file.stat().st_size != size:
        raise StorageError(f"{file.name} has another size than its manifest says", "")
    data = read_file(file, size) if sha256 else b""
    if sha256 and hashlib.sha256(data).hexdigest() != sha256:
        raise StorageError(f"{file.name} differs from its checksum", "")
    return data


def _there(file: Path, size: int, sha256: str = "") -> bool:
    try:
        _read(file, size, sha256)
        return True
    except (OSError, StorageError):
        return False


def _state(path: Path, content: _Content) -> dict[str, Any]:
    import torch

    if content.format not in READ:
        raise StorageError(
            f"{path}: format {content.format}, this version reads {FORMAT}",
            "use the version of mbrl_lightning that wrote it (see manifest.json of the run)",
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about pickle protocols that no file of ours has
            plain = partial(torch.load, map_location="cpu", weights_only=True)
            state = plain(io.BytesIO(content.data))
            if content.segments:
                state = _exchanged(state, lambda name: plain(io.BytesIO(content.segments[name])))
        reason = "" if isinstance(state, dict) else "not a state"
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, TypeError) as error:
        forbidden = re.search(r"GLOBAL (\S+)", str(error))  # PyTorch's text advises to load it unsafely
        what = f"it asks for {forbidden[1]}" if forbidden else type(error).__name__
        reason = f"not plain data, refused without executing it ({what})"
    if reason:
        raise StorageError(f"{path / 'state.pt'}: {reason}", "use only checkpoints that this library wrote")
    return state
