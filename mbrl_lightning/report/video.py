"""Short clips of episodes. A clip is nice to have: whatever goes wrong, training goes on with one warning."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mbrl_lightning.runs.results import PathLike
from mbrl_lightning.runs.storage import replace_file

Frames = NDArray[np.uint8]


GIF_WIDTH, GIF_RATE = 480, 12.5  # pixels and frames a second: a GIF is to be looked at in a README


def captioned(frame: Frames, text: str) -> Frames:
    """The picture `[h, w, 3]` below a line of text, as tall again as that line."""
    from PIL import Image, ImageDraw, ImageFont

    size = max(frame.shape[1] // 32, 12)
    strip = Image.new("RGB", (frame.shape[1], 2 * size), "white")
    ImageDraw.Draw(strip).text((size // 2, size // 3), text, "black", ImageFont.load_default(size))
    return np.concatenate([np.asarray(strip, dtype=np.uint8), frame])


def side_by_side(clips: Sequence[Sequence[Frames]]) -> list[Frames]:
    """One clip of several of equal size and length."""
    return [np.concatenate(frames, axis=1) for frames in zip(*clips, strict=True)]


def write_video(frames: Iterable[Frames], path: PathLike, fps: float = 30.0) -> Path | None:
    """Writes a clip: mp4 through imageio-ffmpeg, and a smaller GIF beside it. One there is replaced by a whole one.

    `frames`: T pictures `[h, w, 3]` of one size; an error in rendering them while they are iterated counts as one of this
    function's. Returns the path of the mp4, or of the GIF where that fails; None, after a warning, if nothing could be written.
    """
    written, failed = list[Path](), dict[str, str]()
    try:
        pictures = np.stack(list(frames))
        if pictures.ndim != 4 or pictures.shape[3] != 3 or pictures.dtype != np.uint8:
            raise ValueError(f"want uint8 [T, h, w, 3], got {pictures.dtype} {list(pictures.shape)}")
    except Exception as error:
        failed["video"] = _reason(error)
    else:
        # mp4's usual pixel format halves the colour resolution: sides must be even.
        pictures = np.ascontiguousarray(pictures[:, : pictures.shape[1] // 2 * 2, : pictures.shape[2] // 2 * 2])
        for kind, write in (("mp4", _mp4), ("gif", _gif)):
            try:
                written.append(_written(write, pictures, Path(path).with_suffix(f".{kind}"), fps))
            except Exception as error:
                failed[kind] = _reason(error)
    if failed:
        what = f"no {' and no '.join(failed)}" if written else "no video"
        warnings.warn(f"{what}: {'; '.join(failed.values())}", stacklevel=2)
    return written[0] if written else None


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

    every, height, width = max(round(fps / GIF_RATE), 1), *pictures.shape[1:3]
    size = (min(width, GIF_WIDTH), round(height * min(width, GIF_WIDTH) / width))
    first, *rest = [Image.fromarray(picture).resize(size).quantize(64) for picture in pictures[::every]]
    first.save(path, save_all=True, append_images=rest, duration=max(round(1000 * every / fps), 20), loop=0)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}".removesuffix(": ")
