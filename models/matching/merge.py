"""One list of what several branches found."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from models.matching import Branch, Merger, Pair, Query, ScoredPair, Verifier


class SumMerger:
    """The union of all pairs; scores of the same pair are added up, so what several branches find counts several times."""

    def merge(self, branches: Sequence[Sequence[ScoredPair]]) -> list[ScoredPair]:
        """One row per (query, reference), best first; equal scores by query, then reference."""
        sums: defaultdict[tuple[str, str], float] = defaultdict(float)
        for branch in branches:
            for pair in branch:
                sums[pair.query, pair.reference] += pair.score
        merged = [ScoredPair(query, reference, score) for (query, reference), score in sums.items()]
        return sorted(merged, key=lambda pair: (-pair.score, pair.query, pair.reference))


def find_copies(
    branches: Sequence[Branch], verifier: Verifier, queries: Sequence[Query], merger: Merger | None = None
) -> list[ScoredPair]:
    """Every pair that a branch proposes, verified and merged, best first. A pair of the same view is scored once."""
    scores: dict[Pair, float] = {}
    scored = []
    for branch in branches:
        pairs = branch.candidates(queries)
        for pair in pairs:
            if pair not in scores:
                scores[pair] = verifier.score(pair)
        scored.append([ScoredPair(pair.query, pair.reference, scores[pair]) for pair in pairs])
    return (merger or SumMerger()).merge(scored)
