"""What is known of the right answers to a query set's queries, and what may be said because of it."""

from __future__ import annotations

from enum import StrEnum


class RelevanceKind(StrEnum):
    """Where a query set's relevance comes from.

    A flip is a right answer that was lost, so it takes relevance that is known. Clicks are weak relevance: people click what
    they are shown, and the old system chose that. Their losses are counted alike and never called flips.
    """

    LABEL = "label"
    PAIRS = "pairs"
    CLICKS = "clicks"
    NONE = "none"

    @property
    def known(self) -> bool:
        """Whether it says what is right: flips are counted, pairs of models certified on nothing else."""
        return self in (RelevanceKind.LABEL, RelevanceKind.PAIRS)
