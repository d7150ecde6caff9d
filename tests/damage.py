"""What may happen to a file of a run."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path


def rewrite(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    """Its content is changed."""
    return lambda path: path.write_bytes(change(path.read_bytes()))


def instead(make: Callable[[Path], object]) -> Callable[[Path], None]:
    """Something else is in its place."""

    def damage(path: Path) -> None:
        path.unlink()
        make(path)

    return damage


def flip(data: bytes) -> bytes:
    place = random.Random(len(data)).randrange(max(len(data), 1))
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :] if data else data


DAMAGES: dict[str, Callable[[Path], object]] = {
    "emptied": rewrite(lambda data: b""),
    "halved": rewrite(lambda data: data[: len(data) // 2]),
    "last byte gone": rewrite(lambda data: data[:-1]),
    "doubled": rewrite(lambda data: data * 2),
    "one bit": rewrite(flip),
    "rubbish": rewrite(lambda data: random.Random(0).randbytes(len(data))),
    "zeros": rewrite(lambda data: bytes(len(data))),
    "brackets": rewrite(lambda data: b"[" * 100_000),
    "gone": Path.unlink,
    "a pipe": instead(os.mkfifo),
    "a folder": instead(Path.mkdir),
    "sparse": instead(lambda path: (path.touch(), os.truncate(path, 2**42))),
    "endless": instead(lambda path: path.symlink_to("/dev/zero")),
    "a loop": instead(lambda path: path.symlink_to(path.name)),
}
