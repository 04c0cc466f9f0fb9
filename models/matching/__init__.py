"""Copy detection: which reference is this picture a copy of, edited or pasted into another one? docs/MATCHING.md.

Three kinds of parts, each behind one method. A `Branch` proposes pairs of a query and a reference, a `Verifier` scores one
pair, a `Merger` makes one list of what all branches proposed. Only the branch of global embeddings depends on the version
of an embedding model: local descriptors are the same before, during and after an upgrade.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from models.matching.local import Features

WHOLE, CROP = "whole", "crop"
"""What of a query is looked at: the picture, or what seems to be pasted into it."""


@dataclass(frozen=True, eq=False)
class Query:
    """A picture that may be a copy, as the parts see it.

    Attributes:
        whole: local features of the picture.
        crop: of the picture pasted into it; None where none was found.
        embedding: (d,) float32, L2-normalised, of the crop where there is one, else of the picture; None: not embedded.
    """

    key: str
    whole: Features
    crop: Features | None = None
    embedding: npt.NDArray[np.float32] | None = None

    def view(self, name: str) -> Features:
        """The features of a view; the whole picture stands in for a crop that was not found."""
        return self.crop if name == CROP and self.crop is not None else self.whole


@dataclass(frozen=True)
class Pair:
    """A query and the reference that it may be a copy of, with the view of the query that said so."""

    query: str
    reference: str
    view: str = WHOLE


@dataclass(frozen=True)
class ScoredPair:
    """A pair as it is reported: higher is more certainly a copy."""

    query: str
    reference: str
    score: float


class Branch(Protocol):
    """One way to find candidates. At most one pair a query."""

    name: str

    def candidates(self, queries: Sequence[Query]) -> list[Pair]:
        """Pairs worth verifying, in the order of the queries; a query without a candidate has none."""
        ...


class Verifier(Protocol):
    """How sure it is that a pair is one of a copy and its original."""

    def score(self, pair: Pair) -> float:
        """At least 0. Raises KeyError for a query or reference it does not know."""
        ...


class Merger(Protocol):
    """One list of what several branches found."""

    def merge(self, branches: Sequence[Sequence[ScoredPair]]) -> list[ScoredPair]:
        """One row per (query, reference), best first; equal scores by query, then reference."""
        ...
