"""What a search returns, and what it may be asked with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from orchestrator.errors import StalePathError, UsageError
from orchestrator.ledger.rows import ItemRow, ModelRow
from orchestrator.serving.filters import Picked
from orchestrator.serving.queries import QueryPath

# How far from 1 the length of a query's vector may be.
LENGTH_WITHIN = 1e-2


@dataclass(frozen=True)
class Hit:
    """One answer: which item, how near, and in which version it is stored.

    `attributes`: of the content that this vector was made of; none where the replica has not loaded them.
    `matches`, `verified`: of a search that matches (`serving.matching`); else None. `matches` is None of a hit not compared.
    """

    row: int
    key: str
    uri: str
    label: str | None
    score: float
    rollout_id: int
    attributes: Mapping[str, str] = field(default_factory=dict)
    matches: int | None = None
    verified: bool | None = None


@dataclass(frozen=True)
class Answer:
    """What a search returns: the hits, the model that encoded the query, the place of the log it was answered at.

    `guarded`: the query was at risk, and the old system's answer was merged in (`core.guard`).
    `items`: rows that were searched among, those without a vector too.
    `seqs`: of an answer merged from shards at several places of the log, each shard's; `seq` is the lowest then.
    """

    hits: tuple[Hit, ...]
    model: str
    seq: int
    coverage_ratio: float
    rollout_id: int | None
    guarded: bool = False
    items: int = 0
    seqs: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Found:
    """Answers of one mixture: scores, rows and versions (q, k), their attributes where they are loaded, which are guarded
    (q,), and the mixture's place and how many rows it has."""

    scores: npt.NDArray[np.float32]
    rows: npt.NDArray[np.int64]
    versions: npt.NDArray[np.int64]
    guarded: npt.NDArray[np.bool_]
    seq: int
    coverage: float
    rollout_id: int | None
    items: int
    picked: Picked | None

    def attributes(self, query: int, place: int) -> dict[str, str]:
        """Of one hit."""
        return {} if self.picked is None else self.picked.of((query, place))

    def answers(self, model: str, items: Mapping[int, ItemRow]) -> list[Answer]:
        """With the names of `items`, by row: a row that is not among them is no hit."""
        return [
            Answer(
                tuple(
                    Hit(i.row, i.key, i.uri, i.label, float(s), int(v), self.attributes(q, place))
                    for place, (s, v, i) in enumerate(
                        zip(self.scores[q], self.versions[q], map(items.get, rows), strict=True)
                    )
                    if v > 0 and i is not None
                ),
                model,
                self.seq,
                self.coverage,
                self.rollout_id,
                bool(self.guarded[q]),
                self.items,
            )
            for q, rows in enumerate(self.rows.tolist())
        ]


def stale(path: QueryPath) -> StalePathError:
    through = "" if path.adapter is None else f" through adapter {path.adapter.name!r}"
    return StalePathError(f"queries are embedded by {path.model.name!r}{through} by now; embed them again.")


def checked_queries(vectors: npt.NDArray[np.float32], model: ModelRow) -> npt.NDArray[np.float32]:
    """Vectors of queries, if they can be a model's.

    Raises:
        UsageError: another shape, or a vector that is not finite and of length 1.
    """
    if vectors.ndim != 2 or vectors.shape[1] != model.dim:
        shape = " × ".join(map(str, vectors.shape))
        raise UsageError(f"the queries' vectors are {shape}; {model.name!r} makes n × {model.dim}.")
    vectors = np.ascontiguousarray(vectors, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # that is what is looked for
        lengths = np.linalg.norm(vectors, axis=1)
    bad = np.flatnonzero(~(np.abs(lengths - 1) < LENGTH_WITHIN))
    if len(bad):
        raise UsageError(
            f"query {int(bad[0])} has length {lengths[bad[0]]}; a query's vector must be finite and L2-normalised."
        )
    return vectors
