"""What a replica serves at one place of the log: the index, and what is known of each row. The replica's lock is around it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from orchestrator.index import Mask, Rows, VectorIndex
from orchestrator.serving.filters import Columns
from orchestrator.serving.floats import StoredFloats
from orchestrator.serving.guard import RolloutGuard
from orchestrator.serving.queries import QueryPath


@dataclass
class Served:
    """One mixture.

    Attributes:
        index: as wide as the vectors, and one wider where scores are calibrated.
        version: (n,) int64, the rollout each row's vector comes from; 0 where it has none. Written by `mark` only.
        path: what makes a query's vector.
        rollout_id: the rollout that serves.
        guard: what answers queries at risk by two models; None: nothing does.
        refused: why no search may be answered, None where all may: a pair of models without a certificate (`certified`).
        columns: the items' attributes; None until somebody filters by them.
        floats: what answers of codes are compared again by; None: nothing.
        counts: how many rows there are of each version, so that no search counts them.
        written: rows written since somebody began to copy, None while nobody does (`snapshots`).
    """

    index: VectorIndex
    version: Rows
    path: QueryPath
    rollout_id: int | None
    guard: RolloutGuard | None = None
    refused: str | None = None
    columns: Columns | None = None
    floats: StoredFloats | None = None
    counts: dict[int, int] = field(default_factory=dict)
    written: list[Rows] | None = None

    def __post_init__(self) -> None:
        found, counts = np.unique(self.version, return_counts=True)
        self.counts = dict(zip(found.tolist(), counts.tolist(), strict=True))

    @property
    def versions(self) -> frozenset[int]:
        """The rollouts that some row's vector comes from."""
        return frozenset(version for version, count in self.counts.items() if version and count)

    @property
    def coverage_ratio(self) -> float:
        """The share of rows whose vector comes from the rollout that serves."""
        if self.rollout_id is None or not len(self.version):
            return 0.0
        return self.counts.get(self.rollout_id, 0) / len(self.version)

    def mark(self, rows: Rows, rollout_id: int) -> None:
        """The vectors of these rows, each named once, come from this rollout (0: they have none)."""
        self.count(rows, -1)
        self.version[rows] = rollout_id
        self.count(rows, 1)
        if self.written is not None:
            self.written.append(np.array(rows))

    def count(self, rows: Rows, by: int) -> None:
        found, counts = np.unique(self.version[rows], return_counts=True)
        for version, count in zip(found.tolist(), counts.tolist(), strict=True):
            self.counts[version] = self.counts.get(version, 0) + by * count

    def grow(self, n: int) -> None:
        """Make room for rows that came late; they have no vector until they are replaced."""
        more = n - len(self.version)
        if more > 0:
            self.index.grow(n)
            self.version = np.append(self.version, np.zeros(more, np.int64))
            self.counts[0] = self.counts.get(0, 0) + more
            if self.written is not None:
                self.written.append(np.arange(n - more, n))
        if self.columns is not None:
            self.columns.grow(n)

    def empty(self, rows: Rows) -> None:
        """These rows have no vector from now on."""
        self.index.replace(rows, np.zeros((len(rows), self.index.dim), np.float32))
        self.mark(rows, 0)
        if self.columns is not None:
            self.columns.drop(rows)

    def allowed(self, where: dict[str, tuple[str, ...]] | None) -> Mask | None:
        """(n,) bool: the rows that may be answered; None where all may.

        Raises:
            UsageError: an attribute that no item has.
        """
        some: npt.NDArray[np.bool_] | None = self.version > 0 if self.counts.get(0) else None
        if not where:
            return some
        assert self.columns is not None, "whoever filters loads the attributes first"
        mask = self.columns.mask(where)
        return mask if some is None else mask & some
