"""What makes a query's vector: the model that serves and, under a query adapter, the adapter to the stored embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection

from orchestrator.context import Context
from orchestrator.errors import ConflictError
from orchestrator.ledger.queries import models as model_queries
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.queries import towers as tower_queries
from orchestrator.ledger.rows import AdapterRow, ModelRow, RolloutRow, ServingRow
from orchestrator.serving.coded import joint_of
from orchestrator.serving.embedding import encode_uris

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class QueryPath:
    """The model that embeds queries, and the adapter that then maps them to the stored embeddings; None: they stay.

    Attributes:
        base: where the model is a codec, the model that embeds queries before they are encoded: vectors of queries are
            its floats everywhere, and codes beside them only where they are compared with rows (`mapped`).
    """

    model: ModelRow
    adapter: AdapterRow | None
    base: ModelRow | None = None
    tower: ModelRow | None = None
    """Embeds queries of another modality into the space of `spatial`; None: they are of the model's."""

    @property
    def spatial(self) -> ModelRow:
        """The model in whose space queries' vectors are before they are mapped."""
        return self.model if self.base is None else self.base

    @property
    def embedder(self) -> ModelRow:
        """The model whose encoder embeds queries."""
        return self.spatial if self.tower is None else self.tower

    @property
    def codes(self) -> int:
        """Of the columns of a mapped query, the first ones, which are of codes."""
        return self.model.codes

    @property
    def ids(self) -> tuple[int, int | None]:
        """Equal for paths that make the same vectors."""
        return self.model.id, None if self.adapter is None else self.adapter.id


def query_path(connection: Connection, model_id: int, rollout: RolloutRow | None) -> QueryPath:
    """How queries are embedded by a model while a rollout serves."""
    adapter = None
    if rollout is not None and rollout.how.maps_queries:
        assert rollout.adapter_id is not None, "the ledger holds no query-adapter rollout without an adapter"
        adapter = model_queries.adapter_by_id(connection, rollout.adapter_id)
    model = model_queries.model_by_id(connection, model_id)
    base = None if model.base_model_id is None else model_queries.model_by_id(connection, model.base_model_id)
    return QueryPath(model, adapter, base)


def towered(connection: Connection, path: QueryPath, modality: str) -> QueryPath:
    """The path for queries of a modality; of the model's own the path as it is.

    Raises:
        ConflictError: the path's model has no tower for them.
    """
    if modality == path.spatial.modality:
        return path
    tower = tower_queries.tower_of(connection, path.spatial.id, modality)
    if tower is None:
        raise ConflictError(
            f"{path.spatial.name!r} embeds {path.spatial.modality}s and has no tower for {modality}s; register one by "
            f"`hotrefresh model tower add {path.spatial.name} TOWER`."
        )
    return replace(path, tower=tower)


def serving_path(connection: Connection, serving: ServingRow) -> QueryPath:
    """How queries are embedded at this moment."""
    rollout = (
        None if serving.rollout_id is None else rollout_queries.rollout_by_id(connection, serving.rollout_id)
    )
    return query_path(connection, serving.model_id, rollout)


def load(context: Context, path: QueryPath) -> None:
    """Load and verify what the path needs.

    Raises:
        ArtifactError: it is not what was registered.
    """
    context.encoder(path.embedder)
    if path.base is not None:
        context.codec(path.model)
    if path.adapter is not None:
        context.adapter(path.adapter)


def mapped(context: Context, path: QueryPath, vectors: Vectors) -> Vectors:
    """Vectors of the path's embedder, (n, d) float32, where the stored embeddings are: (n, d_stored) float32.

    Of a codec they are codes and floats, (n, m + d); an index of codes alone is asked for the first m (`fitting`).
    """
    if path.adapter is not None:
        vectors = context.adapter(path.adapter).transform(vectors)[0]
    if path.base is not None:
        return joint_of(context.codec(path.model), vectors)
    return vectors


def encode_queries(context: Context, path: QueryPath, uris: Sequence[str]) -> tuple[Vectors, dict[int, str]]:
    """As `encode_uris`, through the path; what cannot be read stays zero."""
    vectors, failed = encode_uris(context.encoder(path.embedder), uris)
    vectors = mapped(context, path, vectors)
    vectors[list(failed)] = 0
    return vectors, failed
