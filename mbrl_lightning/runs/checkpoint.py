"""Checkpoints that survive crashes: a folder published as a whole, its manifest says what belongs in it.

`<folder>/step_<number>/` holds `state.pt` and `manifest.json` (size and SHA-256 of the state). A checkpoint
is complete when its manifest is there and matches. The newest complete one is loaded; none is overwritten,
and pickled code is never run. PyTorch is imported inside functions: which steps there are is known without it.
"""

import hashlib
import io
import json
import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mbrl_lightning.config.console import log
from mbrl_lightning.errors import ConfigError, StorageError
from mbrl_lightning.runs.storage import publish, read_file, remove

FORMAT = 1
_ATTEMPTS = 3


def save(folder: Path, step: int, state: Mapping[str, Any], keep: int) -> Path:
    """Write the checkpoint of one step, then prune older ones.

    Args:
        folder: where the checkpoints of a run are; made if missing.
        step: outer iteration, at least 0. A complete checkpoint of the same step is left as it is.
        state: plain containers (dict, list, tuple, numbers, text) and tensors.
        keep: how many checkpoints to keep, at least 1.

    Returns:
        Folder of the checkpoint.

    Raises:
        StorageError: if it cannot be written, even after older ones made room. The newest of those is then intact.
        TypeError: if the state holds an object that could not be loaded without executing code.
    """
    import torch

    target = folder / f"step_{step:08d}"
    if _fault(target) == "":
        return target
    _refuse_foreign(state, "state")
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    data = buffer.getvalue()
    files = {"state.pt": {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}}
    manifest = {"format": FORMAT, "step": step, "torch": torch.__version__, "files": files}
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            publish(target, {"state.pt": data, "manifest.json": json.dumps(manifest, indent=1).encode()})
            break
        except StorageError as error:
            if not error.full or attempt == _ATTEMPTS:
                raise
            log.warning("disk full while saving %s; pruning older checkpoints, then trying again", target)
            _prune(folder, keep=1)
    _prune(folder, keep)
    return target


def load(folder: Path, last: int | None = None) -> tuple[int, dict[str, Any]]:
    """The newest complete checkpoint, on the CPU. Damaged newer ones are skipped with a warning.

    Args:
        folder: where the checkpoints of a run are, which may be in training: what it prunes meanwhile is looked for anew.
        last: step of the newest to look at; None: all.

    Returns:
        Its step and state.

    Raises:
        StorageError: if there is none, or the newest complete one is of another format or holds anything
            but plain data.
    """
    found: list[int] | None = None
    faults: list[str] = []
    while found != (found := steps(folder)):
        faults = []
        for step in found:
            path = folder / f"step_{step:08d}"
            if last is not None and step > last:
                continue
            fault = _fault(path)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # about pickle protocols that no file of ours has
                state = None if fault else _read(path)
            if state is not None:
                if faults:
                    log.warning("skipped damaged checkpoints (%s); using %s", "; ".join(faults), path)
                return step, state
            faults.append(f"{path}: {fault or 'gone'}")
    what = "; ".join(faults) or "no checkpoint in it"
    raise StorageError(f"{folder}: {what}", "no step can be loaded: start the run anew with overwrite=true")


def steps(folder: Path) -> list[int]:
    """Steps that have a checkpoint, newest first, complete or not."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(
        (int(name.removeprefix("step_")) for name in names if re.fullmatch(r"step_\d{8,}", name)), reverse=True
    )


def newest(folder: Path) -> int:
    """Step of the newest complete checkpoint, -1 if there is none."""
    return next((step for step in steps(folder) if not _fault(folder / f"step_{step:08d}")), -1)


def refuse_mismatch(saved: Mapping[str, Any], present: Mapping[str, Any], source: str) -> None:
    """Compare the tensors of a checkpoint with those of a model before any is copied.

    Args:
        saved: state of a module, from a checkpoint.
        present: state of the module it is meant for.
        source: where the checkpoint is from, for the message.

    Raises:
        ConfigError: with one line per name whose shape differs: name, shape saved, shape here.
    """

    def shape(state: Mapping[str, Any], name: str) -> str:
        if name not in state:
            return "absent"
        return str(list(state[name].shape)) if hasattr(state[name], "shape") else "other"

    names = sorted(saved.keys() | present.keys())
    rows = [(name, shape(saved, name), shape(present, name)) for name in names]
    lines = [f"{name:<48} {old:<16} {new}" for name, old, new in rows if old != new]
    if lines:
        table = "\n  ".join([f"{'tensor':<48} {'checkpoint':<16} this run", *lines[:12]])
        more = f"\n  and {len(lines) - 12} more" if len(lines) > 12 else ""
        raise ConfigError(
            f"the weights of {source} do not fit:\n  {table}{more}",
            "give env, algorithm, dynamics and policy the values of that run; one of another version has to be trained anew",
        )


def _prune(folder: Path, keep: int) -> None:
    """Remove the oldest complete checkpoints beyond `keep`, and damaged ones."""
    found = steps(folder)
    complete = [step for step in found if _fault(folder / f"step_{step:08d}", quick=True) == ""]
    for step in set(found) - set(complete[: max(keep, 1)]):
        remove(folder / f"step_{step:08d}")


def _fault(path: Path, quick: bool = False) -> str:
    """Why a checkpoint is not complete, or nothing. `quick` compares sizes only."""
    try:
        files = json.loads(read_file(path / "manifest.json", most=2**20))["files"]
        for name, expected in files.items():
            file = path / name
            if Path(name).name != name or file.stat().st_size != expected["bytes"]:
                return f"{name} has another size than its manifest says"
            if not quick and hashlib.sha256(read_file(file, expected["bytes"])).hexdigest() != expected["sha256"]:
                return f"{name} differs from its checksum"
        return "" if "state.pt" in files else "manifest names no state"
    except FileNotFoundError as error:
        return f"{Path(str(error.filename)).name} is missing"
    except StorageError as error:
        return error.cause
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"manifest unreadable ({type(error).__name__})"


def _read(path: Path) -> dict[str, Any] | None:
    """The state, or None where it is gone meanwhile."""
    import torch

    try:
        manifest = json.loads((path / "manifest.json").read_bytes())
        data = (path / "state.pt").read_bytes()
    except FileNotFoundError:
        return None
    if manifest.get("format") != FORMAT:
        raise StorageError(
            f"{path}: format {manifest.get('format')}, this version reads {FORMAT}",
            "use the version of mbrl_lightning that wrote it (see manifest.json of the run)",
        )
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        forbidden = re.search(r"GLOBAL (\S+)", str(error))  # PyTorch's text advises to load it unsafely
        reason = f"it asks for {forbidden[1]}" if forbidden else type(error).__name__
        raise StorageError(
            f"{path / 'state.pt'}: not plain data, refused without executing it ({reason})",
            "use only checkpoints that this library wrote",
        ) from error
    if not isinstance(state, dict):
        raise StorageError(f"{path / 'state.pt'}: not a state", "use only checkpoints that this library wrote")
    return state


def _refuse_foreign(value: Any, where: str) -> None:
    import torch

    plain = (int, float, bool, str, bytes, type(None), torch.Tensor, torch.nn.Parameter)
    if type(value) in (dict, OrderedDict):
        for name, entry in value.items():
            _refuse_foreign(name, f"{where} (key)")
            _refuse_foreign(entry, f"{where}[{name!r}]")
    elif type(value) in (list, tuple):
        for index, entry in enumerate(value):
            _refuse_foreign(entry, f"{where}[{index}]")
    elif type(value) not in plain:
        raise TypeError(f"{where} is a {type(value).__name__}: checkpoints hold plain containers and tensors only")
