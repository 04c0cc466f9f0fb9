"""PTVD as a source of items: `ptvd:FOLDER` its plot segments, `ptvd-texts:FOLDER` their sentences, `ptvd-comments:FOLDER`
what viewers wrote over them.

A segment and its sentence have the same key, VID_3, and it is their label too: by label a query's own segment is right and
no other. Splits are by whole episodes: those of the file FOLDER/split.csv where there is one, else `train` and `test`, a fifth
of the episodes by a hash of their names.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote, unquote

from models.datasets import Item, ItemListing, Rejected, inline
from models.datasets.ptvd import Episode, Ptvd, Segment, Track, read_track
from models.datasets.ptvd_tasks import overlap, read_split, split_by_episode, weak_queries
from models.errors import ItemError, UsageError

MODALITIES = {"ptvd": ("video", "text"), "ptvd-texts": ("text",), "ptvd-comments": ("text",)}
SPLIT_FILE = "split.csv"
TEST_SHARE = 5  # one in so many


@dataclass(frozen=True)
class PlotSegment:
    """What an item of PTVD is: a part of an episode of which there are features, and no picture."""

    folder: Path
    segment: Segment

    @property
    def sentence(self) -> str:
        """What happens in it."""
        return self.segment.sentence

    def tobytes(self) -> bytes:
        """What its digest is of: the part that is shown and the words for it."""
        return repr((self.segment.start_s, self.segment.end_s, self.segment.sentence)).encode(
            "utf-8", "surrogatepass"
        )


def is_source(source: str) -> bool:
    """Whether a source's name is one of this module's."""
    return source.partition(":")[0] in MODALITIES and ":" in source


def modalities_of(source: str) -> tuple[str, ...]:
    """Segments are videos, and texts too: their sentences."""
    return MODALITIES[source.partition(":")[0]]


def list_items(source: str, split: str | None = None) -> ItemListing:
    """Segments, sentences or comments of a folder, or of a split of it. Episodes that cannot be read are refused whole.

    Raises:
        UsageError: no PTVD, no such split, or a split file with an episode on two sides.
    """
    kind, _, folder = source.partition(":")
    dataset = Ptvd(Path(folder).absolute())
    chosen = None if split is None else _keys_of(dataset, split)
    genres = _genres(dataset)
    items: list[Item] = []
    rejected: list[Rejected] = []
    for name in dataset.episode_names():
        try:
            episode = dataset.episode(name)
        except ItemError as error:
            rejected.append(Rejected(name, f"{kind}:{folder}", error.reason))
            continue
        known = {"episode": name} | ({"genre": genres[name]} if name in genres else {})
        found = _comments(episode, chosen) if kind == "ptvd-comments" else []
        if kind != "ptvd-comments":
            for segment in episode.segments:
                if chosen is not None and segment.key not in chosen:
                    continue
                text = inline.uri_of(segment.sentence) if segment.sentence.strip() else None
                if kind == "ptvd":
                    uri = uri_of(dataset.folder, segment)
                    others = {} if text is None else {"text": text}
                    found.append(Item(segment.key, uri, segment.key, known, others))
                elif text is not None:
                    found.append(Item(segment.key, text, segment.key, known))
                else:
                    rejected.append(Rejected(segment.key, "", "no text"))
        items += found
    if not items and not rejected:
        raise UsageError(f"{source!r} holds nothing{f' in split {split}' if split else ''}.")
    return ItemListing(items, rejected)


def episodes_of(source: str, split: str | None) -> list[str]:
    """Names of the episodes of a split, all without one. Raises UsageError as `list_items`."""
    dataset = Ptvd(Path(source.partition(":")[2]).absolute())
    if split is None:
        return dataset.episode_names()
    return sorted({key.rpartition("_")[0] for key in _keys_of(dataset, split)})


def overlapping_keys(source: str, queries: Collection[str], least: float) -> list[tuple[str, str]]:
    """(query key, segment key) of every segment of the source's folder that overlaps a query's own by `least` or more.

    Raises:
        UsageError: no PTVD, comments, or a `least` outside (0, 1].
    """
    if not is_source(source) or source.startswith("ptvd-comments:"):
        raise UsageError(
            "an overlap is one of plot segments: import them, or their sentences, from ptvd:FOLDER or ptvd-texts:FOLDER."
        )
    if not 0 < least <= 1:
        raise UsageError(f"an overlap to ask for lies in (0, 1], not {least:g}.")
    dataset = Ptvd(Path(source.partition(":")[2]).absolute())
    asked = set(queries)
    pairs = []
    for name in sorted({key.rpartition("_")[0] for key in asked}):
        segments = dataset.episode(name).segments
        pairs += [
            (query.key, other.key)
            for query in segments
            if query.key in asked
            for other in segments
            if overlap(query, other) >= least
        ]
    return pairs


def uri_of(folder: Path, segment: Segment) -> str:
    """ptvd: URI of a segment of a folder."""
    return f"ptvd:{quote(os.fsencode(str(folder)))}#{segment.key}"


def read(uri: str) -> PlotSegment:
    """The segment of a `ptvd:` URI.

    Raises:
        ItemError: there is none, or its episode's plot cannot be read.
    """
    place, mark, key = uri.partition(":")[2].rpartition("#")
    name, _, index = key.rpartition("_")
    if not mark or not (index.isascii() and index.isdecimal() and len(index) <= 9) or "/" in name:
        raise ItemError("missing", f"{uri[:200]!r} names no plot segment.")
    folder = Path(unquote(place, errors="surrogateescape"))
    path = folder / "plot" / f"{name}.json"
    try:
        state = path.stat()
    except (OSError, ValueError) as error:
        raise ItemError("missing", f"there is no plot of episode {name[:80]!r} in {folder}.") from error
    rows = _plot(path, state.st_mtime_ns, state.st_size).rows
    if int(index) >= len(rows):
        raise ItemError("missing", f"the plot of episode {name} has {len(rows)} segments, and no {key}.")
    row = rows[int(index)]
    return PlotSegment(folder, Segment(name, int(index), row.start_s, row.end_s, row.text))


@lru_cache(maxsize=256)
def _plot(path: Path, changed_ns: int, size_bytes: int) -> Track:
    """An episode's plot, read once while its file stays as it is: its segments come one after the other."""
    del changed_ns, size_bytes
    return read_track(path)


def _comments(episode: Episode, chosen: Collection[str] | None) -> list[Item]:
    return [
        Item(query.key, inline.uri_of(query.text), None, {"episode": episode.name})
        for query in weak_queries(episode)
        if chosen is None or any(key in chosen for key in query.segments)
    ]


def _keys_of(dataset: Ptvd, split: str) -> frozenset[str]:
    parts = _parts(dataset)
    if split not in parts or not parts[split]:
        there = ", ".join(sorted(name for name in parts if parts[name]))
        raise UsageError(f"{dataset.folder} has no split {split[:80]!r}; there are {there}.")
    return frozenset(parts[split])


def _parts(dataset: Ptvd) -> Mapping[str, list[str]]:
    if (dataset.folder / SPLIT_FILE).exists():
        return read_split(dataset.folder / SPLIT_FILE)
    names = dataset.episode_names()
    parts = split_by_episode(names, test=max(1, len(names) // TEST_SHARE))
    return {
        part: [segment.key for name in episodes for segment in dataset.episode(name).segments]
        for part, episodes in parts.items()
    }


def _genres(dataset: Ptvd) -> dict[str, str]:
    """Episode -> the first genre of its series."""
    found: dict[str, str] = {}
    for name in dataset.series_names():
        series = dataset.series(name)
        if series.genres:
            found |= dict.fromkeys(series.episodes, series.genres[0])
    return found
