"""The stage of copy detection behind a search: the index proposes, local matching verifies. docs/MATCHING.md.

Local features know nothing of versions of an embedding model: what is verified, and how it is ranked among what was proposed,
is the same before, during and after a refresh. Only who is proposed depends on the mixture.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
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
CONFIDENCE = 0.5
"""Of a picture pasted into the query that is believed; what the benchmark crops by."""
_at_once = threading.BoundedSemaphore(2)  # each holds a few pictures, decoded


@dataclass(frozen=True)
class Match:
    """A candidate compared with the query.

    Attributes:
        matches: points that match, of the picture as it is or mirrored, whichever are more; where only the picture pasted into
            the query voted for it, of that one.
        verified: most points of the query, or of the picture pasted into it, voted for it, so many and so near that the rule
            of the votes accepts it, and at least LEAST_MATCHES match. Where both vote, for two, it is the one of more matches.
        merged: what it is ranked by: its matches, and those of each view of the query that voted for it.
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
        found = _compared(picture, {hit.key: hit.uri for hit in first}, cropped=True)
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


def _compared(picture: Image, uris: Mapping[str, str], *, cropped: bool = False) -> dict[str, Match]:
    """Those that can be read. `cropped`: a picture pasted into the query is looked for, and looks too."""
    from models.matching.local import Sift
    from models.matching.overlay import RectangleFinder, overlay_of

    sift, references = Sift(), {}
    crop = overlay_of(picture, RectangleFinder(), CONFIDENCE) if cropped else None
    for key, uri in uris.items():
        try:
            references[key] = sift(_picture(uri))
        except ItemError:  # it is gone since it was embedded: callers tell it from one that does not match
            continue
    return compare(sift(picture), references, None if crop is None else sift(crop))


def _picture(uri: str) -> Image:
    from models.datasets import read_item

    found = read_item(uri)
    assert not isinstance(found, str), "only galleries of pictures are matched"
    return found


def compare(
    query: Features, references: Mapping[str, Features], crop: Features | None = None
) -> dict[str, Match]:
    """Every reference compared with a query, by key. `crop`: of the picture pasted into it, where there is one."""
    from models.matching import CROP, WHOLE, Pair, Query, ScoredPair
    from models.matching.branches import LocalBranch
    from models.matching.matcher import MatchVerifier
    from models.matching.merge import SumMerger
    from models.matching.search import LocalIndex

    asked = Query("query", query, crop)
    verifier, index = MatchVerifier(references, {asked.key: asked}), LocalIndex(references)
    proposed = [Pair(asked.key, key) for key in references]
    elected = [
        pair for view in (WHOLE, CROP) for pair in LocalBranch(index, view, mirrored=True).candidates([asked])
    ]
    counts = {pair: int(verifier.score(pair)) for pair in {*proposed, *elected}}
    matches = {pair.reference: counts[pair] for pair in proposed}
    matches |= {pair.reference: max(counts[pair], matches[pair.reference]) for pair in elected}
    merged = SumMerger().merge(
        [
            [ScoredPair(pair.query, pair.reference, counts[pair]) for pair in branch]
            for branch in (proposed, elected)
        ]
    )
    winner = max(elected, key=lambda pair: counts[pair], default=None)
    verified = winner.reference if winner is not None and counts[winner] >= LEAST_MATCHES else None
    return {
        pair.reference: Match(matches[pair.reference], pair.reference == verified, pair.score)
        for pair in merged
    }
