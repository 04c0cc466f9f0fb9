"""Searches in another modality than the gallery's: by the tower of the model that answers, under its own certificates."""

from __future__ import annotations

from orchestrator.context import Context
from orchestrator.errors import NotCertifiedError
from orchestrator.ledger.database import snapshot
from orchestrator.serving.certified import uncertified
from orchestrator.serving.queries import QueryPath, towered
from orchestrator.serving.replica import Replica


def tower_path(context: Context, replica: Replica, modality: str) -> QueryPath:
    """What embeds queries of a modality for the system that a replica serves.

    The ledger is asked at each search: towers and their certificates come and go without the log.

    Raises:
        ConflictError: the model that serves has no tower for it.
        NotCertifiedError: vectors are stored that its tower may not search; the pair is named.
    """
    path, rollout_id, versions = replica.asked
    with snapshot(context.engine) as connection:
        path = towered(connection, path, modality)
        refused = uncertified(connection, replica.gallery.id, path, rollout_id, versions)
    if refused is not None:
        raise NotCertifiedError(refused)
    return path
