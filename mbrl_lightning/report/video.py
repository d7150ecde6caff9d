"""Short clips of episodes. A clip is nice to have: whatever goes wrong, training goes on with one warning."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mbrl_lightning.runs.results import PathLike
from mbrl_lightning.runs.storage import replace_file

Frames = NDArray[np.uint8]


def write_video(frames: Iterable[Frames], path: PathLike, fps: float = 30.0) -> Path | None:
    """Writes a clip: mp4 through imageio-ffmpeg, or a GIF beside it where that fails. One there is replaced by a whole one.

    `frames`: T pictures `[h, w, 3]` of one size; an error in rendering them while they are iterated counts as one of this
    function's. Returns the path of what was written; None, after a warning, if nothing could be.
    """
    try:
        pictures = np.stack(list(frames))
        if pictures.ndim != 4 or pictures.shape[3] != 3 or pictures.dtype != np.uint8:
            raise ValueError(f"want uint8 [T, h, w, 3], got {pictures.dtype} {list(pictures.shape)}")
        # mp4's usual pixel format halves the colour resolution: sides must be even.
        pictures = np.ascontiguousarray(pictures[:, : pictures.shape[1] // 2 * 2, : pictures.shape[2] // 2 * 2])
        try:
            return _written(_mp4, pictures, Path(path).with_suffix(".mp4"), fps)
        except Exception as error:
            clip = _written(_gif, pictures, Path(path).with_suffix(".gif"), fps)
            warnings.warn(f"no mp4 ({_reason(error)}): wrote a GIF instead", stacklevel=2)
            return clip
    except Exception as error:
        warnings.warn(f"no video: {_reason(error)}", stacklevel=2)
        return None


def _written(write: Callable[[Frames, Path, float], None], pictures: Frames, path: Path, fps: float) -> Path:
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / path.name
        write(pictures, clip, fps)
        replace_file(path, clip.read_bytes())
    return path


def _mp4(pictures: Frames, path: Path, fps: float) -> None:
    import imageio_ffmpeg

    size = (pictures.shape[2], pictures.shape[1])
    writer = imageio_ffmpeg.write_frames(str(path), size, fps=fps, macro_block_size=2, ffmpeg_log_level="error")
    try:
        writer.send(None)  # starts ffmpeg
        for picture in pictures:
            writer.send(picture)
    finally:
        writer.close()
    if not path.is_file() or path.stat().st_size == 0:
        raise RuntimeError("ffmpeg wrote nothing")


def _gif(pictures: Frames, path: Path, fps: float) -> None:
    from PIL import Image

    first, *rest = [Image.fromarray(picture) for picture in pictures]
    first.save(path, save_all=True, append_images=rest, duration=max(round(1000 / fps), 20), loop=0)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}".removesuffix(": ")
