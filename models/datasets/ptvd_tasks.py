"""What PTVD is asked: which segments answer which, which frames show a segment, genres, splits, comments as weak queries.

Pure: episodes in, arrays and lists out, ready for the metrics of the core. Intervals are open: segments that only touch share
nothing, and a segment without length shares nothing with any other.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
import numpy.typing as npt

from models.datasets.ptvd import Comment, Episode, Row, Segment, Series
from models.errors import UsageError
from models.plain_file import open_plain, read_capped

I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

MIN_OVERLAP = 0.5
FRAMES_A_SEGMENT = 4
MAX_SPLIT_BYTES = 64 * 2**20
PARTS = ("train", "validation", "test")


class Measure(StrEnum):
    """What an overlap is a share of.

    A parent that holds the whole of a short child covers it and has a small share of the union with it. UNION is the usual
    measure of moments in videos, and the default: by COVERED an episode-long segment would answer everything in it.
    """

    UNION = "of the union of both"
    COVERED = "of the true segment"


def shared_s(a: Segment | Row | Comment, b: Segment | Row | Comment) -> float:
    """Seconds that both last; 0 for those that only touch. Says nothing of their episodes or clocks."""
    return max(0.0, min(a.end_s, b.end_s) - max(a.start_s, b.start_s))


def overlap(true: Segment, other: Segment, measure: Measure = Measure.UNION) -> float:
    """0 to 1; 0 between episodes. A segment overlaps itself wholly, also one without length."""
    if true.episode != other.episode:
        return 0.0
    if true.index == other.index:
        return 1.0
    length, shared = true.end_s - true.start_s, shared_s(true, other)
    whole = length if measure is Measure.COVERED else length + other.end_s - other.start_s - shared
    return shared / whole if shared > 0 else 0.0


def exact_pairs(queries: Sequence[Segment], gallery: Sequence[Segment]) -> tuple[I64, I64]:
    """(query, gallery row) of each query's own segment, int64 (m,) each: what the published measure counts as right.

    The same for texts asking for videos and videos asking for texts: both sides of a segment have its key.
    """
    rows = {segment.key: row for row, segment in enumerate(gallery)}
    pairs = [(at, rows[segment.key]) for at, segment in enumerate(queries) if segment.key in rows]
    return _columns(pairs)


def overlapping_pairs(
    queries: Sequence[Segment],
    gallery: Sequence[Segment],
    *,
    least: float = MIN_OVERLAP,
    measure: Measure = Measure.UNION,
) -> tuple[I64, I64]:
    """As `exact_pairs`, and every segment that overlaps the query's own by `least` or more.

    Segments nest, so an answer that is the parent of the right one, or its child, is not plainly wrong: what is lost by the
    exact measure and kept by this one moved within the story.

    Raises ValueError for a `least` outside (0, 1].
    """
    if not 0 < least <= 1:
        raise ValueError(f"an overlap to ask for lies in (0, 1], not {least}")
    by_episode: dict[str, list[int]] = {}
    for row, segment in enumerate(gallery):
        by_episode.setdefault(segment.episode, []).append(row)
    return _columns(
        [
            (at, row)
            for at, segment in enumerate(queries)
            for row in by_episode.get(segment.episode, ())
            if overlap(segment, gallery[row], measure) >= least
        ]
    )


def frame_window(frames: int, duration_s: float, start_s: float, end_s: float) -> tuple[int, int]:
    """(first frame, number of frames) of a segment: round(frames · t / duration) for start and length, kept inside the episode.

    A segment without length has one frame, and one that begins past the end has the last.

    Raises ValueError where there is no frame, no duration, or the segment ends before it begins.
    """
    if frames < 1 or not duration_s > 0 or not 0 <= start_s <= end_s:
        raise ValueError(f"no frames for {start_s} to {end_s} s of {frames} frames in {duration_s} s")
    first = min(round(frames * start_s / duration_s), frames - 1)
    count = max(1, round(frames * (end_s - start_s) / duration_s))
    return first, min(count, frames - first)


def pick_frames(
    first: int, count: int, picked: int = FRAMES_A_SEGMENT, rng: np.random.Generator | None = None
) -> I64:
    """(picked,) int64 frames of a window, never falling: one of each of `picked` equal bins, its middle or, with `rng`, any.

    A window of fewer frames repeats some. Raises ValueError for an empty window or nothing to pick.
    """
    if count < 1 or picked < 1 or first < 0:
        raise ValueError(f"cannot pick {picked} of {count} frames from {first} on")
    bins = count / picked
    within = np.full(picked, 0.5) if rng is None else rng.random(picked)
    places = np.floor((np.arange(picked) + within) * bins).astype(np.int64)
    return first + np.minimum(places, count - 1)


def subtitles_of(episode: Episode, segment: Segment) -> str | None:
    """What is said during a segment, joined by blanks; None where subtitles run on another clock or there are none."""
    if "subtitles" not in episode.durations_s or "subtitles" in episode.unaligned:
        return None
    return " ".join(row.text for row in episode.subtitles if shared_s(row, segment) > 0)


@dataclass(frozen=True)
class WeakQuery:
    """A comment as a query for the segments it was written over.

    Weak: viewers write of anything, so what it loses in an upgrade is churn, never a flip (`RelevanceKind.CLICKS`).
    """

    key: str
    text: str
    count: int
    segments: tuple[str, ...]


def weak_queries(episode: Episode, *, least_count: int = 1) -> list[WeakQuery]:
    """Comments of `least_count` viewers or more that lie over a segment, by time. Empty where comments run on another clock."""
    if "comments" in episode.unaligned:
        return []
    found = []
    for at, comment in enumerate(episode.comments):
        over = tuple(s.key for s in episode.segments if shared_s(s, comment) > 0)
        if over and comment.count >= least_count and comment.text.strip():
            found.append(WeakQuery(f"{episode.name}_comment{at}", comment.text, comment.count, over))
    return found


def genre_matrix(
    series: Iterable[Series], genres: Sequence[str] | None = None
) -> tuple[list[str], list[str], Bools]:
    """Episodes (n), genres (g) and (n, g) bool: an episode has its series' genres. Series without any are left out.

    `genres`: the columns; those of the series by name unless given. Raises UsageError for an episode of two series.
    """
    known = [each for each in series if each.genres]
    columns = sorted({genre for each in known for genre in each.genres}) if genres is None else list(genres)
    place = {genre: at for at, genre in enumerate(columns)}
    rows = {}
    for each in known:
        for episode in each.episodes:
            if episode in rows:
                raise UsageError(f"episode {episode} belongs to two series; {each.name} is the second.")
            rows[episode] = [place[genre] for genre in each.genres if genre in place]
    episodes = sorted(rows)
    matrix = np.zeros((len(episodes), len(columns)), np.bool_)
    for at, episode in enumerate(episodes):
        matrix[at, rows[episode]] = True
    return episodes, columns, matrix


def write_manifest(segments: Iterable[Segment], path: Path) -> list[str]:
    """Write segments as the CSV that `gallery create` and `queryset import` read: the sentence as text, its times beside it.

    The label is the segment's own key, so a sentence answers for its segment alone; empty sentences are left out.
    Returns the keys written, in the order of the gallery.
    """
    keys = []
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["key", "text", "label", "episode", "start_s", "end_s"])
        for segment in segments:
            if segment.sentence.strip():
                table.writerow(
                    [
                        segment.key,
                        segment.sentence,
                        segment.key,
                        segment.episode,
                        segment.start_s,
                        segment.end_s,
                    ]
                )
                keys.append(segment.key)
    return keys


def split_by_episode(
    episodes: Iterable[str], *, test: int, validation: int = 0, seed: int = 0
) -> dict[str, list[str]]:
    """Whole episodes to each part, so no segment meets another of its episode on the other side.

    The order is that of a hash of seed and name: adding an episode moves few others. Raises UsageError where too few are
    left to train on, or a part would have a negative number.
    """
    names = sorted(set(episodes), key=lambda n: (hashlib.sha256(f"ptvd:{seed}:{n}".encode()).digest(), n))
    if test < 0 or validation < 0 or test + validation >= len(names):
        raise UsageError(f"{test} and {validation} of {len(names)} episodes leave none to train on.")
    cuts = {
        "test": names[:test],
        "validation": names[test : test + validation],
        "train": names[test + validation :],
    }
    return {part: sorted(cuts[part]) for part in PARTS}


def read_split(path: Path) -> Mapping[str, list[str]]:
    """A published split file (columns Name, segment_id, type): type → keys of segments, in the file's order.

    Raises:
        UsageError: it cannot be read, lacks a column, or **an episode has segments of two types**.
    """
    try:
        with open_plain(path, MAX_SPLIT_BYTES) as file:
            text = read_capped(file, MAX_SPLIT_BYTES).decode("utf-8-sig")
        rows = csv.DictReader(io.StringIO(text), strict=True)
        missing = {"Name", "segment_id", "type"} - set(rows.fieldnames or ())
        if missing:
            raise UsageError(
                f"{path} needs the columns Name, segment_id and type; {', '.join(sorted(missing))} lacks."
            )
        parts: dict[str, list[str]] = {}
        side: dict[str, str] = {}
        for row in rows:
            name, part = row["Name"] or "", row["type"] or ""
            if side.setdefault(name, part) != part:
                raise UsageError(
                    f"{path}: episode {name[:100]!r} is both {side[name][:50]!r} and {part[:50]!r}."
                )
            parts.setdefault(part, []).append(f"{name}_{row['segment_id']}")
        return parts
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} cannot be read as a split file: {str(error)[:300]}.") from error


def _columns(pairs: list[tuple[int, int]]) -> tuple[I64, I64]:
    both = np.array(pairs, np.int64).reshape(-1, 2)
    return both[:, 0], both[:, 1]
