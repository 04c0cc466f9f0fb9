"""Clips of videos: (T, H, W, C) uint8 frames of a folder of pictures, an animated GIF, or an MP4.

Frames of a folder come by name, a GIF's by Pillow, as they are shown one after another; an MP4 needs PyAV, which brings its own
FFmpeg: `pip install 'hotrefresh[video]'`. Everything is decoded once, in order, and counted meanwhile: what a file says of itself
is not believed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageSequence, UnidentifiedImageError

from models.datasets import folder
from models.errors import ItemError, UsageError
from models.plain_file import NotPlainError, TooLargeError, open_plain, size_of

U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]

GIF, MP4 = frozenset({".gif"}), frozenset({".mp4", ".m4v", ".mov"})


@dataclass(frozen=True)
class Limits:
    """What a clip may be; beyond it is an ItemError "too_large". Frames count as held, 3 bytes a pixel of RGB.

    Attributes:
        kept_frames: hold no more: every second frame is let go whenever there are more; None: all.
        kept_edge: frames are held with their longer edge made no longer than this; None: as they are.
    """

    file_bytes: int = 512 * 2**20
    frames: int = 20_000
    frame_pixels: int = 4096 * 2304
    seconds: float = 1800.0
    decoded_bytes: int = 2**30
    kept_frames: int | None = None
    kept_edge: int | None = None


LIMITS = Limits()


@dataclass(frozen=True)
class Clip:
    """`frames`: (T, H, W, 3) uint8 RGB, T at least 1. `seconds`: how long it is shown; None: nothing says so."""

    frames: U8
    seconds: float | None = None


def read_clip(path: Path, limits: Limits = LIMITS) -> Clip:
    """Decode a whole clip.

    Args:
        path: a folder of pictures (all of one size), a .gif, or an .mp4, .m4v or .mov.

    Raises:
        ItemError: missing, empty (no frame), unsupported, too_large, or corrupt (cut off, sizes that change).
        UsageError: PyAV is not installed, for an MP4.
    """
    if path.is_dir():
        return _of_folder(path, limits)
    suffix = path.suffix.lower()
    if suffix not in GIF | MP4:
        known = ", ".join(sorted(GIF | MP4))
        raise ItemError("unsupported", f"{path} is no folder of frames and none of {known}.")
    decode = _of_gif if suffix in GIF else _of_mp4
    try:
        with open_plain(path, limits.file_bytes) as file:
            if size_of(file) == 0:
                raise ItemError("empty", f"{path} has no bytes.")
            return decode(path, file, limits)
    except NotPlainError as error:
        raise ItemError("unsupported", f"{path} is no file.") from error
    except TooLargeError as error:
        raise ItemError("too_large", f"{path} has {error.strerror}.") from error
    except OSError as error:
        raise ItemError("missing", f"{path} cannot be read: {error.strerror or error}.") from error


def frames_at(clip: Clip, indices: npt.ArrayLike) -> U8:
    """(n, H, W, 3) uint8: the frames with these indices, in their order. Raises ValueError for one that is not there."""
    wanted = np.asarray(indices, np.int64)
    if wanted.ndim != 1 or wanted.min(initial=0) < 0 or wanted.max(initial=0) >= len(clip.frames):
        raise ValueError(f"there are {len(clip.frames)} frames; asked for {wanted.tolist()[:10]}")
    return np.asarray(clip.frames[wanted])


def spread(frames: int, picked: int) -> I64:
    """(picked,) int64: the middles of `picked` equal bins of a clip, never falling; a short clip repeats frames."""
    if frames < 1 or picked < 1:
        raise ValueError(f"cannot pick {picked} of {frames} frames")
    return np.floor((np.arange(picked) + 0.5) * frames / picked).astype(np.int64)


def write_gif(path: Path, frames: U8, *, milliseconds: int = 100) -> None:
    """Write (T, H, W, 3) or (T, H, W, 1) uint8 frames as an endless GIF; 256 colours a frame, so grey comes back as it was."""
    if not len(frames):
        raise ValueError("a GIF needs a frame")
    pictures = [Image.fromarray(f[..., 0] if f.shape[-1] == 1 else f) for f in frames]
    pictures[0].save(
        path,
        "GIF",
        save_all=True,
        append_images=pictures[1:],
        duration=milliseconds,
        loop=0,
        optimize=False,
        disposal=2,
    )


def _of_folder(path: Path, limits: Limits) -> Clip:
    files = sorted(p for p in path.iterdir() if p.suffix.lower() in folder.SUFFIXES)
    if not files:
        raise ItemError("empty", f"{path} holds no picture: there is no frame.")
    if len(files) > limits.frames:
        raise ItemError("too_large", f"{path} has {len(files)} frames; the limit is {limits.frames}.")
    decoded = (np.asarray(folder.read(folder.uri_of(file)).convert("RGB")) for file in files)
    return Clip(_stacked(path, decoded, limits))


def _of_gif(path: Path, file: BufferedReader, limits: Limits) -> Clip:
    try:
        with Image.open(file, formats=("GIF",)) as picture:
            _check_size(path, *picture.size, limits)
            shown_ms: list[float] = []
            frames = _stacked(path, _shown(path, picture, shown_ms, limits), limits)
            return Clip(frames, sum(shown_ms) / 1000 or None)
    except UnidentifiedImageError as error:
        raise ItemError("unsupported", f"{path} is no GIF.") from error
    except Image.DecompressionBombError as error:
        raise ItemError("too_large", f"{path}: {error}.") from error
    except (ItemError, MemoryError):  # a full memory is no fault of the clip
        raise
    except Exception as error:
        raise _corrupt(path, error) from error


def _shown(path: Path, picture: Image.Image, shown_ms: list[float], limits: Limits) -> Iterator[U8]:
    for frame in ImageSequence.Iterator(picture):
        shown_ms.append(float(frame.info.get("duration", 0)))
        _check_seconds(path, sum(shown_ms) / 1000, limits)
        yield np.asarray(frame.convert("RGB"))


def _of_mp4(path: Path, file: BufferedReader, limits: Limits) -> Clip:
    av = _pyav()
    try:
        with av.open(
            file, mode="r", format="mov"
        ) as container:  # the format by name: others would follow links and playlists
            if not container.streams.video:
                raise ItemError("empty", f"{path} has no picture track.")
            stream = container.streams.video[0]
            stream.thread_type = "NONE"  # decoding items is done in threads already
            _check_size(path, stream.width, stream.height, limits)
            times: list[float] = []
            frames = _stacked(path, _decoded(path, container, stream, times, limits), limits)
            return Clip(frames, _lasting(times, stream))
    except (ItemError, MemoryError):
        raise
    except Exception as error:  # FFmpeg's own, and what PyAV makes of fields that lack
        raise _corrupt(path, error) from error


def _decoded(path: Path, container: Any, stream: Any, times: list[float], limits: Limits) -> Iterator[U8]:
    for frame in container.decode(stream):
        _check_size(path, frame.width, frame.height, limits)
        times.append(times[-1] if frame.time is None and times else float(frame.time or 0))
        _check_seconds(path, times[-1] - times[0], limits)
        yield frame.to_ndarray(format="rgb24")


def _lasting(times: Sequence[float], stream: Any) -> float | None:
    """From the first frame to the end of the last, which is shown as long as the others are on average."""
    if len(times) > 1 and times[-1] > times[0]:
        return (times[-1] - times[0]) * len(times) / (len(times) - 1)
    return 1 / float(stream.average_rate) if stream.average_rate else None


def _stacked(path: Path, frames: Iterable[U8], limits: Limits) -> U8:
    """Frames as one array, stopped at the first that is too many."""
    kept: list[U8] = []
    shape: tuple[int, ...] | None = None
    held, every = 0, 1
    for number, frame in enumerate(frames):
        shape = shape or frame.shape
        if frame.shape != shape:
            raise ItemError("corrupt", f"{path}: frame {number} is {frame.shape[:2]}, the first {shape[:2]}.")
        _check_size(path, frame.shape[1], frame.shape[0], limits)
        if number % every:
            continue
        held_frame = _shrunk(frame, limits.kept_edge)
        held += held_frame.nbytes
        if number >= limits.frames or held > limits.decoded_bytes:
            raise ItemError(
                "too_large",
                f"{path} has more than {limits.frames} frames or {limits.decoded_bytes} bytes of them decoded.",
            )
        kept.append(held_frame)
        if limits.kept_frames is not None and len(kept) > limits.kept_frames:
            kept, every = kept[::2], 2 * every
            held = sum(each.nbytes for each in kept)
    if not kept:
        raise ItemError("empty", f"{path} has no frame.")
    return np.stack(kept)


def _shrunk(frame: U8, edge: int | None) -> U8:
    height, width = frame.shape[:2]
    if edge is None or max(height, width) <= edge:
        return frame
    scale = edge / max(height, width)
    smaller = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(frame).resize(smaller, Image.Resampling.BILINEAR, reducing_gap=2.0))


def _check_size(path: Path, width: int, height: int, limits: Limits) -> None:
    if width * height > limits.frame_pixels:
        raise ItemError(
            "too_large", f"{path} is {width} × {height}; the limit is {limits.frame_pixels} pixels a frame."
        )


def _check_seconds(path: Path, seconds: float, limits: Limits) -> None:
    if seconds > limits.seconds:
        raise ItemError("too_large", f"{path} lasts more than {limits.seconds:g} s.")


def _pyav() -> Any:
    try:
        import av
    except ImportError as missing:
        raise UsageError(f"an MP4 needs PyAV ({missing}): pip install 'hotrefresh[video]'.") from missing
    av.logging.set_level(None)  # FFmpeg would write what it thinks of a file beside our own errors
    return av


def _corrupt(path: Path, error: Exception) -> ItemError:
    return ItemError("corrupt", f"{path} cannot be decoded: {type(error).__name__}: {str(error)[:300]}.")
