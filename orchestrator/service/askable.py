"""Whether a gallery can be asked in a modality, now."""

from __future__ import annotations

from sqlalchemy import Connection

from orchestrator.core.states import ACTIVE, RolloutState
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.rows import GalleryRow
from orchestrator.serving.queries import query_path, towered


def check_askable(connection: Connection, gallery: GalleryRow, modality: str) -> None:
    """Whether queries of a modality may be imported now.

    A gallery without embeddings, or that stands still, takes any: a start asks for the towers. While a rollout runs they are
    evaluated at once.

    Raises:
        ConflictError: a model of the running rollout is of another modality, and has no tower for them.
    """
    latest = rollout_queries.latest_rollout(connection, gallery.id)
    if latest is None or latest.kind == "initial" or RolloutState(latest.state) not in ACTIVE:
        return
    for model_id in (latest.from_model_id, latest.to_model_id):
        if model_id is not None:
            towered(connection, query_path(connection, model_id, None), modality)
