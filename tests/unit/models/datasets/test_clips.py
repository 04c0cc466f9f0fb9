"""Clips out of folders, GIFs and MP4s: the frames that were written, limits that are errors, broken files refused."""

from __future__ import annotations

import sys

import av
import numpy as np
import pytest
from PIL import Image

from models.datasets import clips
from models.datasets.clips import Limits, frames_at, read_clip, spread, write_gif
from models.errors import ItemError, UsageError

GREY = np.arange(6 * 20 * 30, dtype=np.int64).reshape(6, 20, 30, 1)
FRAMES = ((GREY * 7) % 256).astype(np.uint8)


def write_mp4(path, values=range(0, 240, 20), size=(64, 48), rate=10):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for value in values:
            frame = av.VideoFrame.from_ndarray(
                np.full((size[1], size[0], 3), value, np.uint8), format="rgb24"
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_folder(path, frames=FRAMES):
    path.mkdir()
    for at, frame in enumerate(frames):
        Image.fromarray(frame[..., 0]).save(path / f"frame-{at:03}.png")
    (path / "notes.txt").write_text("no frame")
    return path


def reason(path, limits=clips.LIMITS):
    with pytest.raises(ItemError) as refused:
        read_clip(path, limits)
    return refused.value.reason


def test_a_folder_of_frames_is_read_in_order_of_name(tmp_path):
    clip = read_clip(write_folder(tmp_path / "frames"))
    assert (clip.frames.dtype, clip.frames.shape, clip.seconds) == (np.uint8, (6, 20, 30, 3), None)
    np.testing.assert_array_equal(clip.frames, np.repeat(FRAMES, 3, axis=3))


def test_a_gif_comes_back_pixel_by_pixel_with_its_length(tmp_path):
    write_gif(tmp_path / "a.gif", FRAMES, milliseconds=50)
    clip = read_clip(tmp_path / "a.gif")
    np.testing.assert_array_equal(clip.frames, np.repeat(FRAMES, 3, axis=3))
    assert clip.seconds == pytest.approx(0.3)
    coloured = np.zeros((3, 8, 8, 3), np.uint8)
    coloured[1, :, :, 0], coloured[2, :4, :, 2] = 255, 200
    write_gif(tmp_path / "b.GIF", coloured)
    np.testing.assert_array_equal(read_clip(tmp_path / "b.GIF").frames, coloured)


def test_an_mp4_has_its_frames_in_order_and_lasts_as_long_as_it_is_shown(tmp_path):
    clip = read_clip(write_mp4(tmp_path / "a.mp4"))
    assert (clip.frames.dtype, clip.frames.shape) == (np.uint8, (12, 48, 64, 3))
    assert clip.seconds == pytest.approx(1.2)
    # Compressed with loss: near what was written, and rising.
    np.testing.assert_allclose(clip.frames.mean(axis=(1, 2, 3)), np.arange(0, 240, 20), atol=4)
    one = read_clip(write_mp4(tmp_path / "one.mp4", [100]))
    assert len(one.frames) == 1
    assert one.seconds == pytest.approx(0.1)


def test_without_pyav_an_mp4_says_what_to_install_and_a_gif_is_read(tmp_path, monkeypatch):
    write_gif(tmp_path / "a.gif", FRAMES)
    write_mp4(tmp_path / "a.mp4")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UsageError, match=r"hotrefresh\[video\]"):
        read_clip(tmp_path / "a.mp4")
    assert len(read_clip(tmp_path / "a.gif").frames) == 6


@pytest.mark.parametrize("kind", ["folder", "gif", "mp4"])
@pytest.mark.parametrize("limit", ["frames", "frame_pixels", "decoded_bytes", "file_bytes", "seconds"])
def test_every_limit_holds_for_every_kind(tmp_path, kind, limit):
    if kind == "folder":
        path = write_folder(tmp_path / "frames")
    elif kind == "gif":
        write_gif(path := tmp_path / "a.gif", FRAMES)
    else:
        path = write_mp4(tmp_path / "a.mp4")
    clip = read_clip(path)
    size = clip.frames.nbytes if limit == "decoded_bytes" else path.stat().st_size
    exact = {
        "frames": len(clip.frames), "frame_pixels": clip.frames[0, ..., 0].size, "decoded_bytes": size, "file_bytes": size,
        "seconds": clip.seconds or 0,
    }[limit]  # fmt: skip
    if kind == "folder" and limit in ("file_bytes", "seconds"):
        return  # each picture has its own limit, and nothing says how long it is shown
    assert len(read_clip(path, Limits(**{limit: exact})).frames) == len(clip.frames)
    assert reason(path, Limits(**{limit: exact * 0.8 if limit == "seconds" else exact - 1})) == "too_large"


def test_a_gif_that_unpacks_to_more_than_it_may_is_stopped_while_it_is_decoded(tmp_path, monkeypatch):
    write_gif(tmp_path / "a.gif", FRAMES)
    seen = []
    real = clips._shown

    def counted(*args):
        for frame in real(*args):
            seen.append(1)
            yield frame

    monkeypatch.setattr(clips, "_shown", counted)
    assert reason(tmp_path / "a.gif", Limits(frames=2)) == "too_large"
    assert len(seen) == 3


def test_broken_files_have_reasons(tmp_path):
    mp4, gif = write_mp4(tmp_path / "a.mp4").read_bytes(), tmp_path / "a.gif"
    write_gif(gif, FRAMES)
    for name, content, wanted in (
        ("cut.mp4", mp4[:100], "corrupt"),
        ("text.mp4", b"#EXTM3U\n/etc/passwd\n", "corrupt"),
        ("none.mp4", b"", "empty"),
        ("half.gif", gif.read_bytes()[:-3000], "corrupt"),
        ("picture.gif", b"\x89PNG\r\n\x1a\n", "unsupported"),
        ("a.avi", b"RIFF", "unsupported"),
    ):
        (tmp_path / name).write_bytes(content)
        assert (name, reason(tmp_path / name)) == (name, wanted)
    assert reason(tmp_path / "absent.gif") == "missing"
    (tmp_path / "empty").mkdir()
    assert reason(tmp_path / "empty") == "empty"
    folder = write_folder(tmp_path / "frames")
    Image.new("L", (5, 5)).save(folder / "frame-099.png")
    assert reason(folder) == "corrupt"


def outcome(path):
    try:
        read_clip(path)
    except ItemError as error:
        return error.reason
    return "read"


def test_every_cut_of_an_mp4_is_read_or_refused_and_nothing_else(tmp_path):
    whole = write_mp4(tmp_path / "a.mp4").read_bytes()
    path = tmp_path / "b.mp4"
    rng = np.random.default_rng(0)
    outcomes = set()
    for _ in range(60):
        changed = bytearray(whole)
        for place in rng.integers(0, len(whole), 20):
            changed[place] = rng.integers(256)
        path.write_bytes(changed[: rng.integers(1, len(whole))] if rng.random() < 0.5 else changed)
        outcomes.add(outcome(path))
    assert {"read", "corrupt"} <= outcomes <= {"read", "corrupt", "empty", "too_large"}


def test_frames_are_taken_by_index_and_spread_over_bins(tmp_path):
    clip = clips.Clip(FRAMES)
    np.testing.assert_array_equal(frames_at(clip, [5, 0, 0]), FRAMES[[5, 0, 0]])
    for wrong in ([6], [-1], [[0]]):
        with pytest.raises(ValueError, match="there are 6 frames"):
            frames_at(clip, wrong)
    assert spread(8, 4).tolist() == [1, 3, 5, 7]
    assert spread(2, 4).tolist() == [0, 0, 1, 1]
    with pytest.raises(ValueError, match="cannot pick"):
        spread(0, 1)
    with pytest.raises(ValueError, match="needs a frame"):
        write_gif(tmp_path / "a.gif", FRAMES[:0])
