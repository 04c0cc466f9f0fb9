"""Churn: how far a query's answers are from the old system's, for queries of which nobody knows what is right.

Two lists of k rows, best first, share X_d rows among the d first of both. `overlap@k` is X_k / k. Rank-biased overlap (Webber,
Moffat and Zobel, 2010) weighs the agreement X_d / d at every depth by p^d, so that what moves at the top counts most, and
extrapolates the agreement at k to all that is below:

    RBO_ext(p, k) = X_k / k * p^k + (1 - p) / p * sum_{d = 1..k} X_d / d * p^d

Both are linear in X. The whole numbers sum_q X_{q,d}, one a depth, therefore hold the mean of either over any number of
queries exactly, at every depth and for every p, and are all that is kept. Both lists come from exact searches with the same
rule for ties (the lower row first), so a tie alone is no churn. A gallery of fewer than k rows has lists of its size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]

WHOLE = "all"
"""The slice of all queries that are compared."""

_BLOCK_PAIRS = 2**24


@dataclass(frozen=True)
class Churn:
    """How `n` queries are answered, beside the old system.

    Attributes:
        n: queries compared.
        shared: at depth d = 1..k, the rows that the d first of both have in common, summed over the queries.
    """

    n: int
    shared: tuple[int, ...]

    @property
    def k(self) -> int:
        """The depth of the lists."""
        return len(self.shared)

    @property
    def first_changed(self) -> int:
        """Queries whose first answer is another one."""
        return self.n - self.shared[0]

    def churn(self, k: int) -> float | None:
        """1 - overlap@k, 0..1: the part of the k first answers that the old system did not give; None without queries.

        Raises ValueError for a `k` outside 1..self.k.
        """
        places = self._places(k)
        return (places - self.shared[k - 1]) / places if places else None

    def overlap(self, k: int) -> float | None:
        """overlap@k, 0..1; None without queries. Raises ValueError for a `k` outside 1..self.k."""
        places = self._places(k)
        return self.shared[k - 1] / places if places else None

    def rbo(self, p: float) -> float | None:
        """The mean of RBO_ext, 0..1; None without queries. Raises ValueError for a `p` outside 0..1.

        The weights sum to 1, so this is 1 less the weighted disagreement: nothing is lost near 1, and 1 is exactly 1.
        """
        if not 0 < p < 1:
            raise ValueError(f"p lies between 0 and 1, not {p}")
        if not self.n:
            return None
        missing = [self.n - shared / d for d, shared in enumerate(self.shared, 1)]
        lost = sum(each * p**d for d, each in enumerate(missing, 1)) * (1 - p) / p + missing[-1] * p**self.k
        return max(0.0, 1 - lost / self.n)

    def _places(self, k: int) -> int:
        if not 1 <= k <= self.k:
            raise ValueError(f"answers were compared to depth {self.k}, not {k}")
        return self.n * k


def shared_rows(old: I64, new: I64) -> I64:
    """(m, k) int64: X_d of each pair of lists at depth d = 1..k.

    `old`, `new`: (m, k) int64 rows, best first, none twice in a list. Raises ValueError when the shapes differ.
    """
    if old.shape != new.shape or old.ndim != 2:
        raise ValueError(f"lists of one shape (m, k) are compared, not {old.shape} with {new.shape}")
    m, k = old.shape
    joined = np.zeros((m, k), np.int64)
    block = max(1, _BLOCK_PAIRS // max(1, k * k))
    for at in range(0, m, block):
        same = old[at : at + block, :, None] == new[at : at + block, None, :]
        query, place, other = np.nonzero(same)
        # A row that both hold is shared from the deeper of its two places on.
        joined[at : at + block] = np.bincount(
            query * k + np.maximum(place, other), minlength=len(same) * k
        ).reshape(-1, k)
    return joined.cumsum(axis=1)


class ChurnTracker:
    """Follows the churn of every query against the old system, through the stages of a refresh.

    Args:
        old_rows: (Q, k) int64, the old system's answers, best first.
        compared: (n,) int64, the queries that count.
        slices: name -> (m,) int64, some of `compared`.

    Before the first `update` every query is answered as the old system answers it.
    """

    def __init__(self, old_rows: I64, compared: I64, slices: Mapping[str, I64]) -> None:
        self._old = old_rows
        depth = old_rows.shape[1]
        self._shared = np.broadcast_to(np.arange(1, depth + 1, dtype=np.int64), old_rows.shape).copy()
        self._members: dict[str, npt.NDArray[np.bool_]] = {}
        self._sums: dict[str, I64] = {}
        self._sizes: dict[str, int] = {}
        for name, queries in ((WHOLE, compared), *slices.items()):
            self._members[name] = np.zeros(len(old_rows), np.bool_)
            self._members[name][queries] = True
            self._sums[name] = self._shared[queries].sum(axis=0)
            self._sizes[name] = len(queries)

    def update(self, queries: I64, rows: I64) -> frozenset[str]:
        """One stage on: `queries` (m,), without doubles, now have the answers `rows` (m, k); the others keep theirs.

        Returns the slices whose sums moved.
        """
        shared = shared_rows(self._old[queries], rows)
        moved = shared - self._shared[queries]
        self._shared[queries] = shared
        touched = []
        for name, members in self._members.items():
            change = moved[members[queries]].sum(axis=0)
            if change.any():
                self._sums[name] = self._sums[name] + change
                touched.append(name)
        return frozenset(touched)

    def counts(self) -> dict[str, Churn]:
        """The churn of every slice now; WHOLE is all of them."""
        return {name: Churn(n, tuple(map(int, self._sums[name]))) for name, n in self._sizes.items()}
