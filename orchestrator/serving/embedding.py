"""Encoding items in this process: queries, samples for certificates. Galleries are embedded by workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection

from models.errors import ItemError
from orchestrator.core.metrics import Relevance
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.rows import QueryRow, QuerySetRow

if TYPE_CHECKING:
    from models.encoders import Encoder

Progress = Callable[[int, int], None]
CHUNK = 512


def no_progress(done: int, total: int) -> None:
    """A progress callback for callers that show nothing."""


def encode_uris(
    encoder: Encoder, uris: Sequence[str], progress: Progress = no_progress
) -> tuple[npt.NDArray[np.float32], dict[int, str]]:
    """Vectors of items, (n, dim) float32, zero where an item cannot be read; and those items' reasons by place."""
    from models.datasets import read_item

    vectors = np.zeros((len(uris), encoder.dim), np.float32)
    failed: dict[int, str] = {}
    for at in range(0, len(uris), CHUNK):
        prepared, places = [], []
        for place, uri in enumerate(uris[at : at + CHUNK], at):
            try:
                prepared.append(encoder.preprocess(read_item(uri)))
                places.append(place)
            except ItemError as error:
                failed[place] = f"{error.reason}: {error}"
        if prepared:
            vectors[places] = encoder.encode(prepared)
        progress(min(at + CHUNK, len(uris)), len(uris))
    return vectors, failed


@dataclass(frozen=True)
class QuerySet:
    """A query set ready for evaluation: its queries in order and what is relevant to each."""

    row: QuerySetRow
    queries: tuple[QueryRow, ...]
    relevance: Relevance

    @property
    def uris(self) -> list[str]:
        return [query.uri for query in self.queries]


def load_query_set(connection: Connection, row: QuerySetRow) -> QuerySet:
    """Read a query set out of the ledger."""
    queries = gallery_queries.queries_of_set(connection, row.id)
    pairs = gallery_queries.relevant_pairs(connection, row.id)
    query_nos = np.fromiter((q for q, _ in pairs), np.int64, len(pairs))
    rows = np.fromiter((r for _, r in pairs), np.int64, len(pairs))
    return QuerySet(row, tuple(queries), Relevance.from_pairs(len(queries), query_nos, rows))
