"""How many points of two pictures are the same: the score of a pair.

A point of the reference matches the nearest point of the query where that one is clearly nearest: `1.8 * d1^2 < d2^2`, squared
distances to the nearest and the second nearest (a ratio of distances of 0.745). So of two equally near ones none matches.

A place counts once. SIFT may find several points at one place, which would all match and say nothing new. Matches are taken in
the order of the reference's points. One whose rounded place, in either picture, is already that of an accepted match does not
count, but replaces every such match that is not nearer than it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from models.matching import Pair, Query
from models.matching.local import F32, U8, Features

I64 = npt.NDArray[np.int64]

RATIO = 1.8
"""Of squared distances."""
_BLOCK = 512


def matches(reference: Features, query: Features) -> I64:
    """(m, 2) int64: rows of matched points, of the reference and of the query, as many as count.

    A query with one point has no second nearest: its point matches whatever is nearest to it, as in the original.
    """
    if not len(reference) or not len(query):
        return np.zeros((0, 2), np.int64)
    nearest, first, second = _two_nearest(reference.descriptors, query.descriptors)
    clear = np.flatnonzero(RATIO * first < second)
    return _each_place_once(
        np.stack([clear, nearest[clear]], axis=1),
        first[clear],
        _places(reference.positions),
        _places(query.positions),
    )


def match_count(reference: Features, query: Features, *, mirrored: bool = False) -> int:
    """How many points match; with `mirrored` the larger count of the reference as it is and mirrored."""
    count = len(matches(reference, query))
    return max(count, len(matches(reference.mirrored(), query))) if mirrored else count


class MatchVerifier:
    """The number of matching points of a reference and the view of the query that proposed it.

    Args:
        references, queries: by key.
        mirrored: also compare the mirrored reference and take the larger count.
    """

    def __init__(
        self, references: Mapping[str, Features], queries: Mapping[str, Query], *, mirrored: bool = True
    ) -> None:
        self._references, self._queries, self._mirrored = references, queries, mirrored

    def score(self, pair: Pair) -> float:
        """The count; 0 where either picture has fewer than 10 points. Raises KeyError for an unknown key."""
        reference, query = self._references[pair.reference], self._queries[pair.query].view(pair.view)
        if not (reference.usable and query.usable):
            return 0.0
        return float(match_count(reference, query, mirrored=self._mirrored))


def _two_nearest(descriptors: U8, others: U8) -> tuple[I64, F32, F32]:
    """For each descriptor the row of the nearest other, and the squared distances to it and to the second nearest.

    Exact: products and sums of bytes stay under 2^24, where float32 holds every whole number.
    """
    ours, theirs = descriptors.astype(np.float32), others.astype(np.float32)
    squares = (theirs * theirs).sum(axis=1)
    nearest = np.empty(len(ours), np.int64)
    first = np.empty(len(ours), np.float32)
    second = np.full(len(ours), np.inf, np.float32)
    for start in range(0, len(ours), _BLOCK):
        part = ours[start : start + _BLOCK]
        distances = (part * part).sum(axis=1)[:, None] + squares - 2 * (part @ theirs.T)
        rows, here = np.arange(len(part)), slice(start, start + len(part))
        nearest[here] = distances.argmin(axis=1)
        first[here] = distances[rows, nearest[here]]
        distances[rows, nearest[here]] = np.inf
        second[here] = distances.min(axis=1)
    return nearest, first, second


def _places(positions: F32) -> I64:
    """One number a rounded position; halves to the even number, as C's rintf."""
    x, y = np.rint(positions).astype(np.int64).T
    return np.asarray(x * (1 << 20) + y, np.int64)


def _each_place_once(found: I64, distances: F32, in_reference: I64, in_query: I64) -> I64:
    kept = np.empty_like(found)
    places, best = np.empty_like(found), np.empty(len(found), np.float32)
    n = 0
    for pair, distance in zip(found, distances, strict=True):
        place = in_reference[pair[0]], in_query[pair[1]]
        taken = np.flatnonzero((places[:n] == place).any(axis=1))
        if not len(taken):
            taken, n = np.array([n]), n + 1
        else:
            taken = taken[distance <= best[taken]]
        kept[taken], places[taken], best[taken] = pair, place, distance
    return kept[:n]
