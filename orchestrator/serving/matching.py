"""The stage of copy detection behind a search: the index proposes, local matching verifies. docs/MATCHING.md.

Local features know nothing of versions of an embedding model: what is verified, and how it is ranked among what was proposed,
is the same before, during and after a refresh. Only who is proposed depends on the mixture.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from models.errors import ItemError
from orchestrator.errors import ConflictError
from orchestrator.ledger.rows import GalleryRow
from orchestrator.serving.answers import Answer

if TYPE_CHECKING:
    from PIL.Image import Image

    from models.matching.local import Features

CANDIDATES = 20
"""Hits of the index that are looked at."""
LEAST_MATCHES = 10
"""A candidate that won the votes is verified with so many matches: of the copies' queries 95 % were right then."""
_at_once = threading.BoundedSemaphore(2)  # each holds a few pictures, decoded


@dataclass(frozen=True)
class Match:
    """A candidate compared with the query.

    Attributes:
        matches: points that match, of the picture as it is or mirrored, whichever are more.
        verified: most points of the query voted for it, so many and so near that the rule of the votes accepts it, and at least
            LEAST_MATCHES match. At most one candidate a query is.
        merged: what it is ranked by: its matches, twice where the votes proposed it as the index did.
    """

    matches: int
    verified: bool
    merged: float


def check_matchable(gallery: GalleryRow) -> None:
    """Raises ConflictError for a gallery of texts, UsageError naming the extra where OpenCV is not installed."""
    if gallery.modality != "image":
        raise ConflictError(
            f"gallery {gallery.name!r} holds {gallery.modality}s; only pictures can be matched."
        )
    from models.matching.local import opencv

    opencv()


def deep(k: int) -> int:
    """How many hits to ask the index for, where `k` are wanted of those that match."""
    return max(k, CANDIDATES)


def matched(answer: Answer, picture: Any, k: int) -> Answer:
    """The answer's first CANDIDATES hits in the order of their merged scores, equal ones as the index has them; k in all.

    Scores stay those of the index. Hits that could not be read, and those behind, come after, without a number of matches.

    Args:
        picture: the query, decoded.
    """
    first, behind = answer.hits[:CANDIDATES], answer.hits[CANDIDATES:]
    with _at_once:
        found = _compared(picture, {hit.key: hit.uri for hit in first})
    compared = sorted((hit for hit in first if hit.key in found), key=lambda hit: -found[hit.key].merged)
    told = [
        replace(hit, matches=found[hit.key].matches, verified=found[hit.key].verified) for hit in compared
    ]
    rest = [replace(hit, verified=False) for hit in (*first, *behind) if hit.key not in found]
    return replace(answer, hits=tuple([*told, *rest][:k]))


def compare_pictures(query_uri: str, uris: Mapping[str, str]) -> dict[str, Match]:
    """Pictures by key, each compared with a query; those that cannot be read are left out, all where the query is one."""
    try:
        picture = _picture(query_uri)
    except ItemError:
        return {}
    return _compared(picture, uris)


def _compared(picture: Image, uris: Mapping[str, str]) -> dict[str, Match]:
    """Those that can be read."""
    from models.matching.local import Sift

    sift, references = Sift(), {}
    for key, uri in uris.items():
        try:
            references[key] = sift(_picture(uri))
        except ItemError:  # it is gone since it was embedded: callers tell it from one that does not match
            continue
    return compare(sift(picture), references)


def _picture(uri: str) -> Image:
    from PIL.Image import Image as Picture

    from models.datasets import read_item

    found = read_item(uri)
    assert isinstance(found, Picture), "only galleries of pictures are matched"
    return found


def compare(query: Features, references: Mapping[str, Features]) -> dict[str, Match]:
    """Every reference compared with a query, by key."""
    from models.matching import Pair, Query, ScoredPair
    from models.matching.branches import LocalBranch
    from models.matching.matcher import MatchVerifier
    from models.matching.merge import SumMerger
    from models.matching.search import LocalIndex

    asked = Query("query", query)
    verifier = MatchVerifier(references, {asked.key: asked})
    counts = {key: verifier.score(Pair(asked.key, key)) for key in references}
    elected = [
        pair.reference for pair in LocalBranch(LocalIndex(references), mirrored=True).candidates([asked])
    ]

    def scored(keys: Sequence[str]) -> list[ScoredPair]:
        return [ScoredPair(asked.key, key, counts[key]) for key in keys]

    merged = SumMerger().merge([scored(list(references)), scored(elected)])
    return {
        pair.reference: Match(
            int(counts[pair.reference]),
            pair.reference in elected and counts[pair.reference] >= LEAST_MATCHES,
            pair.score,
        )
        for pair in merged
    }
