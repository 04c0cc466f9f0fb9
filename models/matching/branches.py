"""The ways to find candidates: by one embedding a picture, and by votes of local descriptors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from models.matching import CROP, WHOLE, Pair, Query
from models.matching.local import F32, Features
from models.matching.search import LocalIndex, nearest_vectors
from models.matching.voting import Election, elect


class GlobalBranch:
    """The reference whose embedding is nearest: always one pair a query, right or wrong.

    Args:
        keys: of the references.
        vectors: (N, d) float32, L2-normalised, in the order of `keys`.
    """

    name = "global"

    def __init__(self, keys: Sequence[str], vectors: F32) -> None:
        if len(keys) != len(vectors):
            raise ValueError(f"{len(keys)} keys for {len(vectors)} vectors")
        self._keys, self._vectors = list(keys), vectors

    def candidates(self, queries: Sequence[Query]) -> list[Pair]:
        """One pair a query. Raises ValueError for a query that was not embedded."""
        if not queries or not self._keys:
            return []
        embedded = [query.embedding for query in queries if query.embedding is not None]
        if len(embedded) != len(queries):
            raise ValueError(f"{len(queries) - len(embedded)} queries have no embedding")
        rows, _ = nearest_vectors(np.stack(embedded), self._vectors)
        return [Pair(query.key, self._keys[row], CROP) for query, row in zip(queries, rows, strict=True)]


class LocalBranch:
    """The reference that most points of a view of the query vote for, where the rule of `voting` accepts it.

    Args:
        view: WHOLE, or CROP: then queries without a crop have no candidate.
        mirrored: points of the mirrored query vote too, in an election of their own; of two accepted winners the one with
            more votes is named, and of equals the one of the query as it is.
    """

    def __init__(self, index: LocalIndex, view: str = WHOLE, *, mirrored: bool = False) -> None:
        self.name = f"local {view}"
        self._index, self._view, self._mirrored = index, view, mirrored

    def candidates(self, queries: Sequence[Query]) -> list[Pair]:
        """At most one pair a query."""
        found = []
        for query in queries:
            features = query.crop if self._view == CROP else query.whole
            elected = self._elected(features) if features is not None and features.usable else None
            if elected is not None:
                found.append(Pair(query.key, self._index.keys[elected.reference], self._view))
        return found

    def _elected(self, features: Features) -> Election | None:
        as_it_is = elect(*self._index.nearest(features.descriptors))
        if not self._mirrored:
            return as_it_is
        turned = elect(*self._index.nearest(features.mirrored().descriptors))
        accepted = [each for each in (as_it_is, turned) if each is not None]
        return max(accepted, key=lambda each: each.votes, default=None)
