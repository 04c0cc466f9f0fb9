"""PTVD, the plot-oriented data set of TV episodes (arXiv 2306.14644): its files, read with their oddities. No data is ours.

    plot/VID.json, BSC/VID.json, subtitle/VID.json      a track: `duration` (s), `timestamps` ([[start, end], …] s), `sentences`
    frames/VID/VID-INDEX.jpg                            frames of an episode
    metadata/SERIES/meta_txsp.json                      a *printed Python dict*, whatever its name says
    metadata/SERIES/long_video_vids.txt                 a printed Python list of the series' episodes
    metadata/SERIES/abstract.txt                        a synopsis
    features/ENCODER/VID.npy                            our own layout: `models.datasets.ptvd_features`

What a reader must expect: plot segments overlap and nest; rows are in no order; a segment may have no length, or end after
the episode does; comments repeat by the hundred; **the tracks of one episode may run on different clocks** (their durations
differ), which is flagged and never repaired. Printed Python is read as literals, never run.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from models.errors import ItemError, UsageError
from models.plain_file import NotPlainError, TooLargeError, open_plain, read_capped

MAX_TRACK_BYTES = 256 * 2**20
MAX_ROWS = 2_000_000
MAX_PRINTED_BYTES = 2**20
MAX_SYNOPSIS_BYTES = 2**20
CLOCK_TOLERANCE_S = 0.5
"""Durations that differ by more are those of different clocks."""

_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}")
_FRAME = re.compile(r"-(\d{1,9})\.jpe?g", re.IGNORECASE)


@dataclass(frozen=True)
class Row:
    """What was said, or shown, from `start_s` to `end_s` of its track's clock; both may be equal, or past the end."""

    start_s: float
    end_s: float
    text: str


@dataclass(frozen=True)
class Track:
    """One file of an episode; rows in the file's order."""

    duration_s: float
    rows: tuple[Row, ...]

    def document(self) -> dict[str, Any]:
        """The track as its file's JSON: what `read_track` reads into an equal track."""
        return {
            "duration": self.duration_s,
            "timestamps": [[row.start_s, row.end_s] for row in self.rows],
            "sentences": [row.text for row in self.rows],
        }


@dataclass(frozen=True)
class Segment:
    """One row of the plot: a part of an episode, described by a sentence. `index`: its place in the file, which names it."""

    episode: str
    index: int
    start_s: float
    end_s: float
    sentence: str

    @property
    def key(self) -> str:
        """VID_segment, as the published lists write it."""
        return f"{self.episode}_{self.index}"


@dataclass(frozen=True)
class Comment:
    """A bullet comment: `count` viewers wrote just this at this very time."""

    start_s: float
    end_s: float
    text: str
    count: int


@dataclass(frozen=True)
class Episode:
    """An episode: its plot, and what else there is of it.

    Attributes:
        segments: in the file's order; segment `index` stands at place `index`.
        comments: collapsed by (time, text), by time and then text.
        subtitles: by time.
        durations_s: of each track there is: "plot", "comments", "subtitles".
        frames: how many frames there are; 0: none.
    """

    name: str
    segments: tuple[Segment, ...]
    comments: tuple[Comment, ...]
    subtitles: tuple[Row, ...]
    durations_s: dict[str, float]
    frames: int = 0

    @property
    def duration_s(self) -> float:
        """By the plot's clock."""
        return self.durations_s["plot"]

    @property
    def unaligned(self) -> tuple[str, ...]:
        """Tracks that run on another clock than the plot: their times must not be compared with its segments."""
        return tuple(
            name
            for name, duration in self.durations_s.items()
            if abs(duration - self.duration_s) > CLOCK_TOLERANCE_S
        )

    @property
    def past_the_end(self) -> tuple[Segment, ...]:
        """Segments that end after the episode does."""
        return tuple(s for s in self.segments if s.end_s > self.duration_s)


@dataclass(frozen=True)
class Series:
    """A series and what is known of all its episodes; `genres` may be empty, for nothing says that a series has one."""

    name: str
    title: str
    regions: tuple[str, ...]
    cast: tuple[str, ...]
    published: str
    description: str
    genres: tuple[str, ...]
    genre_ids: tuple[str, ...]
    episodes: tuple[str, ...]
    synopsis: str


class Ptvd:
    """A folder in PTVD's layout.

    Raises:
        UsageError: it is no folder, or has no plot.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / "plot").is_dir():
            raise UsageError(f"{folder} has no folder plot/ with a .json file an episode: it is no PTVD.")

    def episode_names(self) -> list[str]:
        """Every episode with a plot, by name. Raises UsageError when there is none."""
        names = sorted(path.stem for path in (self.folder / "plot").glob("*.json"))
        if not names:
            raise UsageError(f"{self.folder / 'plot'} holds no .json file: there is no episode.")
        return names

    def episode(self, name: str) -> Episode:
        """One episode. Comments, subtitles and frames may be missing, its plot may not.

        Raises:
            ItemError: no such episode, or one of its files cannot be read.
        """
        _checked_name(name, "an episode")
        tracks = {"plot": read_track(self._track("plot", name))}
        for what, kind in (("comments", "BSC"), ("subtitles", "subtitle")):
            if self._track(kind, name).exists():
                tracks[what] = read_track(self._track(kind, name))
        plot = tracks["plot"].rows
        comments = tracks["comments"].rows if "comments" in tracks else ()
        subtitles = tracks["subtitles"].rows if "subtitles" in tracks else ()
        return Episode(
            name,
            tuple(Segment(name, at, row.start_s, row.end_s, row.text) for at, row in enumerate(plot)),
            collapsed(comments),
            tuple(sorted(subtitles, key=lambda row: (row.start_s, row.end_s, row.text))),
            {what: track.duration_s for what, track in tracks.items()},
            len(self.frames(name)),
        )

    def episodes(self) -> Iterator[Episode]:
        """All episodes, one at a time, by name. Raises as `episode`."""
        return (self.episode(name) for name in self.episode_names())

    def frames(self, name: str) -> list[Path]:
        """The frames of an episode by their number, which need not begin at 0 nor have no gap; empty when there are none."""
        _checked_name(name, "an episode")
        numbered = []
        for path in (self.folder / "frames" / name).glob(f"{name}-*"):
            found = _FRAME.fullmatch(path.name[len(name) :])
            if found:
                numbered.append((int(found[1]), path))
        return [path for _, path in sorted(numbered)]

    def series_names(self) -> list[str]:
        """Every series with metadata, by name."""
        return sorted(path.parent.name for path in (self.folder / "metadata").glob("*/meta_txsp.json"))

    def series(self, name: str) -> Series:
        """One series.

        Raises:
            ItemError: no such series, or one of its files cannot be read.
        """
        _checked_name(name, "a series")
        place = self.folder / "metadata" / name
        fields = _fields(place / "meta_txsp.json")
        episodes, synopsis = place / "long_video_vids.txt", place / "abstract.txt"
        return Series(
            name,
            _word(fields.get("title")),
            _words(fields.get("region_name")),
            _words(fields.get("protagonist_name")),
            _word(fields.get("publish_date")),
            _word(fields.get("description")),
            _words(fields.get("detailed_division_type_name")),
            _words(fields.get("detailed_division_type_id")),
            read_names(episodes) if episodes.exists() else (),
            _text(synopsis, MAX_SYNOPSIS_BYTES).strip() if synopsis.exists() else "",
        )

    def _track(self, kind: str, name: str) -> Path:
        return self.folder / kind / f"{name}.json"


def read_track(path: Path) -> Track:
    """A track's file.

    Raises:
        ItemError: missing, unsupported (no plain file), too_large, or corrupt: no JSON, another schema, lists of different
            lengths, times that are no finite numbers, negative, or end before they begin.
    """
    try:
        document = json.loads(_text(path, MAX_TRACK_BYTES), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise _corrupt(path, f"it is no JSON ({str(error)[:200]})") from error
    if not isinstance(document, dict) or not {"duration", "timestamps", "sentences"} <= document.keys():
        raise _corrupt(path, "it is no object with duration, timestamps and sentences")
    times, texts = document["timestamps"], document["sentences"]
    if not isinstance(times, list) or not isinstance(texts, list) or len(times) != len(texts):
        raise _corrupt(path, "timestamps and sentences must be two lists of the same length")
    if len(texts) > MAX_ROWS:
        raise ItemError("too_large", f"{path} has {len(texts)} rows; the limit is {MAX_ROWS}.")
    duration = _seconds(document["duration"])
    if not duration:
        raise _corrupt(
            path, f"its duration is {str(document['duration'])[:50]!r}, not a number of seconds above 0"
        )
    return Track(duration, tuple(_row(path, *pair) for pair in enumerate(zip(times, texts, strict=True))))


def collapsed(rows: tuple[Row, ...]) -> tuple[Comment, ...]:
    """Each distinct (start, end, text) once with how often it came, by time and then text."""
    counts = Counter((row.start_s, row.end_s, row.text) for row in rows)
    return tuple(Comment(*said, count) for said, count in sorted(counts.items()))


def read_printed(path: Path, cap_bytes: int = MAX_PRINTED_BYTES) -> Any:
    """A printed Python literal (dict, list, str, number …). Nothing in the file is run.

    Raises:
        ItemError: missing, unsupported, too_large, or corrupt (no literal, nested too deeply).
    """
    text = _text(path, cap_bytes)
    try:
        return ast.literal_eval(text.strip())
    # MemoryError is what the parser says of brackets nested too deeply; the file is no larger than the cap.
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        raise _corrupt(path, f"it is no printed Python value ({type(error).__name__})") from error


def read_names(path: Path) -> tuple[str, ...]:
    """A printed list of episodes' names. Raises ItemError as `read_printed`, and for anything but names in it."""
    names = read_printed(path)
    if not isinstance(names, list | tuple) or not all(
        isinstance(n, str) and _NAME.fullmatch(n) for n in names
    ):
        raise _corrupt(path, "it is no list of names of episodes")
    return tuple(names)


def _fields(path: Path) -> dict[str, Any]:
    """The fields inside the answer of a server that the file is: {"results": [{"fields": {…}}]}."""
    answer = read_printed(path)
    try:
        fields = answer["results"][0]["fields"]
    except (KeyError, IndexError, TypeError) as error:
        raise _corrupt(path, 'it has no {"results": [{"fields": …}]}') from error
    if not isinstance(fields, dict):
        raise _corrupt(path, "its fields are no dict")
    return fields


def _row(path: Path, number: int, pair: tuple[Any, Any]) -> Row:
    times, text = pair
    if not isinstance(times, list) or len(times) != 2 or not isinstance(text, str):
        raise _corrupt(path, f"row {number} is no [start, end] with a sentence")
    start, end = (_seconds(each) for each in times)
    if start is None or end is None or end < start:
        raise _corrupt(path, f"row {number} lasts from {str(times[0])[:50]} to {str(times[1])[:50]}")
    return Row(start, end, text)


def _seconds(value: Any) -> float | None:
    """A finite number that is not negative, as float; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        seconds = float(value)
    except OverflowError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _word(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _words(value: Any) -> tuple[str, ...]:
    """Each once, in their order. A field may be None, one word, or a list of them."""
    several = value if isinstance(value, list | tuple) else [value]
    return tuple(dict.fromkeys(word for word in map(_word, several) if word))


def _checked_name(name: str, what: str) -> None:
    if not _NAME.fullmatch(name):
        raise ItemError("missing", f"{name[:80]!r} is no name of {what}: letters, digits, - and _.")


def _text(path: Path, cap_bytes: int) -> str:
    try:
        with open_plain(path, cap_bytes) as file:
            return read_capped(file, cap_bytes).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _corrupt(path, "it is no UTF-8") from error
    except NotPlainError as error:
        raise ItemError("unsupported", f"{path} is no file.") from error
    except TooLargeError as error:
        raise ItemError("too_large", f"{path} has {error.strerror}.") from error
    except OSError as error:
        raise ItemError("missing", f"{path} cannot be read: {error.strerror}.") from error


def _corrupt(path: Path, said: str) -> ItemError:
    return ItemError("corrupt", f"{path} cannot be used: {said}.")
