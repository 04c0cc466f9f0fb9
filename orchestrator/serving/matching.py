"""The stage of copy detection behind a search: the index proposes, local matching verifies. docs/MATCHING.md.

Local features know nothing of versions of an embedding model: what is verified, and how it is ranked among what was proposed,
is the same before, during and after a refresh. Only who is proposed depends on the mixture.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from models.errors import ItemError
from orchestrator.errors import ConflictError
from orchestrator.ledger.rows import GalleryRow
from orchestrator.serving.answers import Answer, Hit

if TYPE_CHECKING:
    from PIL.Image import Image

    from models.matching import Query
    from models.matching.local import Features

CANDIDATES = 20
"""Hits of the index that are looked at, for each view of the query."""
CONFIDENCE = 0.5
"""Over which a rectangle in a query is believed to be a picture pasted into it, as in `bench matching`."""
LEAST_MATCHES = 10
"""A candidate that won the votes is verified with so many matches: of the copies' queries 95 % were right then."""
_at_once = threading.BoundedSemaphore(2)  # each holds a few pictures, decoded


@dataclass(frozen=True)
class Match:
    """A candidate compared with the query.

    Attributes:
        matches: points that match, of the query or of what is pasted into it, as it is or mirrored, whichever are most.
        verified: most points of one of these two voted for it, so many and so near that the rule of the votes accepts it, and at
            least LEAST_MATCHES of them match. At most one candidate is for each of the two.
        merged: what it is ranked by: its matches, and once more those of each of the two whose votes proposed it.
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


def views_of(picture: Image) -> list[Image]:
    """What of a query the index is asked with, and what is compared: the picture, and what seems to be pasted into it."""
    from models.matching.overlay import RectangleFinder, overlay_of

    crop = overlay_of(picture, RectangleFinder(), CONFIDENCE)
    return [picture] if crop is None else [picture, crop]


def matched(answers: Sequence[Answer], views: Sequence[Image], k: int) -> Answer:
    """The first CANDIDATES hits of each view in the order of their merged scores, equal ones as the index has them; k in all.

    Scores stay those of the index, of the view that is nearer. Hits that could not be read, and those behind, come after, without
    a number of matches.

    Args:
        answers: of one state of the gallery, one for each view; what is returned says of itself what the first one does.
        views: `views_of` the query.
    """
    hits = _nearest(hit for answer in answers for hit in answer.hits)
    proposed = {hit.key for answer in answers for hit in answer.hits[:CANDIDATES]}
    with _at_once:
        found = _compared(views, {hit.key: hit.uri for hit in hits if hit.key in proposed})
    compared = sorted((hit for hit in hits if hit.key in found), key=lambda hit: -found[hit.key].merged)
    told = [
        replace(hit, matches=found[hit.key].matches, verified=found[hit.key].verified) for hit in compared
    ]
    rest = [replace(hit, verified=False) for hit in hits if hit.key not in found]
    return replace(answers[0], hits=tuple([*told, *rest][:k]))


def _nearest(hits: Iterable[Hit]) -> list[Hit]:
    """Each item once, by its higher score, highest first; equal ones in the order they are given in."""
    best: dict[str, Hit] = {}
    for hit in hits:
        if hit.key not in best or hit.score > best[hit.key].score:
            best[hit.key] = hit
    return sorted(best.values(), key=lambda hit: -hit.score)


def compare_pictures(query_uri: str, uris: Mapping[str, str]) -> dict[str, Match]:
    """Pictures by key, each compared with a query; those that cannot be read are left out, all where the query is one."""
    try:
        picture = _picture(query_uri)
    except ItemError:
        return {}
    return _compared(views_of(picture), uris)


def _compared(views: Sequence[Image], uris: Mapping[str, str]) -> dict[str, Match]:
    """Those that can be read."""
    from models.matching import Query
    from models.matching.local import Sift

    sift, references = Sift(), {}
    for key, uri in uris.items():
        try:
            references[key] = sift(_picture(uri))
        except ItemError:  # it is gone since it was embedded: callers tell it from one that does not match
            continue
    whole, crop = sift(views[0]), sift(views[1]) if len(views) > 1 else None
    return compare(Query("query", whole, crop), references)


def _picture(uri: str) -> Image:
    from PIL.Image import Image as Picture

    from models.datasets import read_item

    found = read_item(uri)
    assert isinstance(found, Picture), "only galleries of pictures are matched"
    return found


def compare(query: Query, references: Mapping[str, Features]) -> dict[str, Match]:
    """Every reference compared with a query, by key."""
    from models.matching import CROP, WHOLE, Pair, ScoredPair
    from models.matching.branches import LocalBranch
    from models.matching.matcher import MatchVerifier
    from models.matching.merge import SumMerger
    from models.matching.search import LocalIndex

    verifier, index = MatchVerifier(references, {query.key: query}), LocalIndex(references)
    most = dict.fromkeys(references, 0.0)
    elected: list[ScoredPair] = []
    for view in [WHOLE] if query.crop is None else [WHOLE, CROP]:
        counts = {key: verifier.score(Pair(query.key, key, view)) for key in references}
        most = {key: max(most[key], counts[key]) for key in references}
        winners = LocalBranch(index, view, mirrored=True).candidates([query])
        elected += [ScoredPair(query.key, pair.reference, counts[pair.reference]) for pair in winners]
    verified = {pair.reference for pair in elected if pair.score >= LEAST_MATCHES}
    proposed = [ScoredPair(query.key, key, count) for key, count in most.items()]
    merged = SumMerger().merge([proposed, elected])
    return {
        pair.reference: Match(int(most[pair.reference]), pair.reference in verified, pair.score)
        for pair in merged
    }
