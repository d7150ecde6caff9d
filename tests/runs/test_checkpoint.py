"""Checkpoints under faults: kill at every file operation, full disk, damage, unsafe pickles, signals.

Faults 1 to 5, 18 to 21 and 26 of the reliability list.
"""

import errno
import hashlib
import json
import os
import pickle
import shutil
import signal

import pytest
import torch
from damage import DAMAGES
from soak.harness import KILLED, at_operation, child

from mbrl_lightning.errors import ConfigError, StorageError
from mbrl_lightning.runs import checkpoint, storage
from mbrl_lightning.runs.signals import StopFlag
from mbrl_lightning.runs.storage import sweep


def state(number):
    weights, nested = torch.full((64,), float(number)), {"a": [1, (2.0, None, "x", True)]}
    return {"weights": weights, "iteration": number, "nested": nested}


def grown(number):
    """With rows in one block more than `number`; the first is another one from 3 on, as if it had been overwritten."""
    blocks = [
        checkpoint.Segment({"x": torch.full((64, 2), k + 100 * (number // 3) * (k == 0))[:5]})
        for k in range(number + 1)
    ]
    return state(number) | {"world": {"segments": blocks, "other": number}}


def rows(found):
    return [block["x"].tolist() for block in found["world"]["segments"]]


def named(folder):
    """Names of the segments of all checkpoints."""
    manifests = [json.loads(path.read_text()) for path in folder.glob("step_*/manifest.json")]
    return sorted(set().union(*(manifest["segments"] for manifest in manifests)))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_round_trip_with_optimizer_and_generators(tmp_path):
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.Adam(network.parameters(), fused=True)
    network(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    given = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()}
    checkpoint.save(tmp_path / "c", 3, given, keep=2)
    step, found = checkpoint.load(tmp_path / "c")
    assert step == 3
    assert torch.equal(found["rng"], given["rng"])
    network.load_state_dict(found["network"])
    optimizer.load_state_dict(found["optimizer"])
    assert str(found["optimizer"]) == str(given["optimizer"])


def test_newest_wins_and_old_ones_are_pruned(tmp_path):
    for number in (1, 2, 10):
        checkpoint.save(tmp_path, number, state(number), keep=2)
    assert names(tmp_path) == ["step_00000002", "step_00000010"]
    assert checkpoint.load(tmp_path)[0] == 10
    assert checkpoint.steps(tmp_path) == [10, 2]


@pytest.mark.parametrize(
    ("given", "first"), [(state, 1), (grown, 1), (grown, 2)], ids=["plain", "grown", "overwritten"]
)
def test_kill_at_every_file_operation_keeps_the_previous_checkpoint(tmp_path, monkeypatch, given, first):
    monkeypatch.chdir(tmp_path)

    def second(folder):
        checkpoint.save(folder, first, given(first), keep=1)
        return lambda: checkpoint.save(folder, first + 1, given(first + 1), keep=1) and 0

    assert child(at_operation(0, "kill", second(tmp_path / "dry")))[0] == 0
    seen, count = set(), int((tmp_path / "count").read_text())
    for kill_at in range(1, count + 2):
        folder = tmp_path / f"kill{kill_at}"
        status, _ = child(at_operation(kill_at, "kill", second(folder)))
        sweep(folder)
        step, found = checkpoint.load(folder)
        assert found["weights"].tolist() == [float(step)] * 64
        assert not [name for name in names(folder) if "tmp" in name]
        seen.add((status, step))
        if given is grown:
            assert rows(found) == rows(given(step))
            checkpoint.save(folder, 9, given(9), keep=2)  # takes away what the kill left
            assert names(folder / "segments") == named(folder)
    # killed before and after the rename, and not at all
    assert seen == {(KILLED, first), (KILLED, first + 1), (0, first + 1)}


def test_all_that_is_written_is_on_the_disk_before_it_is_renamed(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "rename"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, real=real, name=name: calls.append(name) or real(*args))
    checkpoint.save(tmp_path, 1, state(1), keep=1)
    assert calls == ["fsync", "fsync", "fsync", "rename", "fsync"]  # state, manifest, stage; parent


def test_staging_is_on_the_file_system_of_the_target(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", "/dev/shm")
    renamed = []
    rename = os.rename
    monkeypatch.setattr(os, "rename", lambda a, b: renamed.append((a, b)) or rename(a, b))
    target = checkpoint.save(tmp_path, 1, state(1), keep=1)
    ((source, destination),) = renamed
    assert destination == target
    assert source.parent == target.parent


def full_disk(monkeypatch, failures, code=errno.ENOSPC):
    """The first `failures` writes put down half of their bytes and fail."""
    left = [failures]
    write = storage._write

    def failing(path, data, how):
        if left[0] > 0:
            left[0] -= 1
            path.write_bytes(bytes(data[: len(data) // 2]))
            raise OSError(code, os.strerror(code))
        write(path, data, how)

    monkeypatch.setattr(storage, "_write", failing)


@pytest.mark.parametrize("given", [state, grown])
def test_full_disk_once_is_survived_by_pruning(tmp_path, monkeypatch, caplog, given):
    for number in (1, 2):
        checkpoint.save(tmp_path, number, given(number), keep=2)
    full_disk(monkeypatch, 1)
    checkpoint.save(tmp_path, 3, given(3), keep=3)
    assert [name for name in names(tmp_path) if name != "segments"] == ["step_00000002", "step_00000003"]
    assert str(checkpoint.load(tmp_path)[1]) == str(given(3))
    assert "disk full" in caplog.text


def test_full_disk_for_good_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, 1, state(1), keep=2)
    full_disk(monkeypatch, 3)
    with pytest.raises(StorageError, match="No space left") as caught:
        checkpoint.save(tmp_path, 2, state(2), keep=2)
    assert caught.value.exit_code == 5
    assert names(tmp_path) == ["step_00000001"]
    assert checkpoint.load(tmp_path)[1]["iteration"] == 1


def test_other_write_errors_are_not_tried_again(tmp_path, monkeypatch):
    full_disk(monkeypatch, 1, errno.EACCES)
    with pytest.raises(StorageError, match="Permission denied"):
        checkpoint.save(tmp_path, 1, state(1), keep=1)
    assert names(tmp_path) == []


@pytest.mark.parametrize("place", range(10))
@pytest.mark.parametrize("damage", ["flip", "truncate"])
def test_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, caplog, place, damage):
    for number in (1, 2):
        path = checkpoint.save(tmp_path, number, state(number), keep=2) / "state.pt"
    data = bytearray(path.read_bytes())
    offset = place * (len(data) - 1) // 9
    if damage == "flip":
        data[offset] ^= 1
        path.write_bytes(data)
    else:
        os.truncate(path, offset)
    step, found = checkpoint.load(tmp_path)
    assert (step, found["iteration"]) == (1, 1)
    assert "step_00000002" in caplog.text


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"files": 3}', '{"files": {}}', '{"files": {"../x": {}}}'])
def test_damaged_manifest_counts_as_incomplete(tmp_path, text):
    checkpoint.save(tmp_path, 1, state(1), keep=2)
    (checkpoint.save(tmp_path, 2, state(2), keep=2) / "manifest.json").write_text(text)
    assert checkpoint.load(tmp_path)[0] == 1


def test_nothing_to_load_is_an_error_that_names_the_file(tmp_path):
    with pytest.raises(StorageError, match="no checkpoint"):
        checkpoint.load(tmp_path / "absent")
    (checkpoint.save(tmp_path, 1, state(1), keep=1) / "state.pt").unlink()
    with pytest.raises(StorageError, match=r"step_00000001: state\.pt is missing"):
        checkpoint.load(tmp_path)


def test_a_checkpoint_that_is_rotated_away_while_it_is_loaded_is_looked_for_anew(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, 1, state(1), keep=1)
    look = checkpoint._look

    def slow(path, quick=False, **how):
        if path.name == "step_00000001" and not quick:
            checkpoint.save(tmp_path, 2, state(2), keep=1)
        return look(path, quick, **how)

    monkeypatch.setattr(checkpoint, "_look", slow)
    assert checkpoint.load(tmp_path)[0] == 2


@pytest.mark.parametrize("name", ["state.pt", "manifest.json"])
@pytest.mark.parametrize("kind", ["a pipe", "sparse", "endless", "a folder"])
def test_what_is_no_file_of_ours_is_passed_over_at_once(tmp_path, name, kind):
    for number in (1, 2):
        path = checkpoint.save(tmp_path, number, state(number), keep=2) / name
    DAMAGES[kind](path)
    assert checkpoint.load(tmp_path)[0] == 1


def test_complete_checkpoint_of_the_same_step_is_left_and_a_damaged_one_replaced(tmp_path):
    path = checkpoint.save(tmp_path, 1, state(1), keep=1) / "state.pt"
    inode = path.stat().st_ino
    checkpoint.save(tmp_path, 1, state(1), keep=1)
    assert path.stat().st_ino == inode
    path.write_bytes(b"damaged")
    checkpoint.save(tmp_path, 1, state(1), keep=1)
    assert checkpoint.load(tmp_path)[1]["iteration"] == 1
    assert names(tmp_path) == ["step_00000001"]


def test_segments_are_written_once_and_go_with_the_last_checkpoint_that_names_them(tmp_path, monkeypatch):
    written, write = [], storage._write
    monkeypatch.setattr(storage, "_write", lambda path, *rest: written.append(path.parent.name) or write(path, *rest))
    content = grown(1)
    checkpoint.save(tmp_path / "c", 1, content, keep=2)
    whole = named(tmp_path / "c")
    assert written.count("segments") == 2
    content["world"]["segments"].append(grown(2)["world"]["segments"][-1])
    checkpoint.save(tmp_path / "c", 2, content, keep=2)
    assert written.count("segments") == 3
    checkpoint.save(tmp_path / "c", 3, grown(3), keep=1)  # as in a process that resumed: but first and last are there
    assert written.count("segments") == 5
    assert len(set(whole) - set(names(tmp_path / "c" / "segments"))) == 1
    assert names(tmp_path / "c" / "segments") == named(tmp_path / "c")
    shutil.copytree(tmp_path / "c", tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "c")
    assert rows(checkpoint.load(tmp_path / "elsewhere")[1]) == rows(grown(3))
    shutil.rmtree(tmp_path / "elsewhere" / "segments")  # which agents do not need
    assert checkpoint.load(tmp_path / "elsewhere", rows=False)[1]["iteration"] == 3
    with pytest.raises(StorageError, match="is missing"):
        checkpoint.load(tmp_path / "elsewhere")


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_segment_damages_all_that_name_it_until_it_is_written_anew(tmp_path, kind):
    for number in (2, 3):
        checkpoint.save(tmp_path, number, grown(number), keep=2)
    last = set(json.loads((tmp_path / "step_00000003" / "manifest.json").read_text())["segments"])
    before = set(json.loads((tmp_path / "step_00000002" / "manifest.json").read_text())["segments"])
    DAMAGES[kind](tmp_path / "segments" / min(last - before))
    step, found = checkpoint.load(tmp_path)
    assert (step, rows(found)) == (2, rows(grown(2)))
    DAMAGES[kind](tmp_path / "segments" / min(last & before))
    with pytest.raises(StorageError, match="no step can be loaded"):
        checkpoint.load(tmp_path)
    checkpoint.save(tmp_path, 4, grown(4), keep=3)
    step, found = checkpoint.load(tmp_path)
    assert (step, rows(found)) == (4, rows(grown(4)))


def forge(folder, data, **manifest):
    """A checkpoint whose manifest is right, whatever its content."""
    path = folder / "step_00000009"
    path.mkdir(parents=True)
    (path / "state.pt").write_bytes(data)
    files = {"state.pt": {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}}
    (path / "manifest.json").write_text(json.dumps({"format": checkpoint.FORMAT, "step": 9, "files": files} | manifest))


class Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize(
    "dump", [lambda value, path: torch.save(value, path), lambda v, p: p.write_bytes(pickle.dumps(v))]
)
def test_unsafe_pickle_is_refused_and_not_executed(tmp_path, dump, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    dump({"x": Payload(tmp_path / "executed")}, tmp_path / "evil")
    forge(tmp_path / "c", (tmp_path / "evil").read_bytes())
    with pytest.raises(StorageError, match="refused without executing"):
        checkpoint.load(tmp_path / "c")
    assert not (tmp_path / "executed").exists()


def test_other_format_and_other_content_are_refused(tmp_path):
    torch.save([1], tmp_path / "list")
    data = (tmp_path / "list").read_bytes()
    forge(tmp_path / "a", data, format=99)
    with pytest.raises(StorageError, match="format 99, this version reads"):
        checkpoint.load(tmp_path / "a")
    forge(tmp_path / "b", data)
    with pytest.raises(StorageError, match="not a state"):
        checkpoint.load(tmp_path / "b")
    torch.save({"world": {"data": {"x": torch.ones(2)}}}, tmp_path / "before")  # there were segments
    forge(tmp_path / "d", (tmp_path / "before").read_bytes(), format=1)
    assert checkpoint.load(tmp_path / "d")[1]["world"]["data"]["x"].tolist() == [1, 1]


def test_objects_that_need_code_are_refused_when_saving(tmp_path):
    with pytest.raises(TypeError, match="the state holds numpy"):
        checkpoint.save(tmp_path, 1, {"a": [{"b": torch.zeros(1).double().numpy()[0]}]}, keep=1)
    assert names(tmp_path) == []


def test_weights_of_another_architecture_are_refused_with_both_shapes():
    saved, present = torch.nn.Linear(3, 4).state_dict(), torch.nn.Linear(3, 5).state_dict()
    checkpoint.refuse_mismatch(saved, saved, "x")
    with pytest.raises(ConfigError) as caught:
        checkpoint.refuse_mismatch(saved, present | {"extra": torch.zeros(2)}, "runs/x")
    rows = [line.split() for line in str(caught.value).splitlines()]
    assert ["bias", "[4]", "[5]"] in rows
    assert ["extra", "absent", "[2]"] in rows


@pytest.mark.parametrize("signals", [1, 2])
def test_signal_during_the_save(tmp_path, signals):
    """One signal lets the save complete; two discard it. Never half a checkpoint."""
    checkpoint.save(tmp_path, 1, state(1), keep=1)

    fsync, left = os.fsync, [signal.SIGTERM] * signals

    def interrupted(handle):
        if left:
            os.kill(os.getpid(), left.pop())
        fsync(handle)

    def work():
        os.fsync = interrupted
        with StopFlag() as stop:
            checkpoint.save(tmp_path, 2, state(2), keep=2)
            return 7 if stop.requested == signal.SIGTERM else 1

    assert child(work)[0] == (7 if signals == 1 else 75)
    assert names(tmp_path) == (["step_00000001", "step_00000002"] if signals == 1 else ["step_00000001"])
    assert checkpoint.load(tmp_path)[0] == (2 if signals == 1 else 1)
