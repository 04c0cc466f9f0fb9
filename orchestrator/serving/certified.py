"""Whether the model that embeds queries may meet the vectors that are stored, looked up in the ledger as `start` does.

Each rollout whose vectors are in the gallery needs a certificate of the pair: the model that serves × that rollout's model,
through the adapter that queries go through or that lifted those vectors. What a finalized rollout left of older ones was
accepted with it and counts as its own. Nothing is measured or looked up by a search: the answer changes with what serves, with
the rollouts that hold vectors, and with certificates.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection

from orchestrator.core.states import RolloutState
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries import models as model_queries
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.rows import RolloutRow
from orchestrator.serving.queries import QueryPath


def uncertified(
    connection: Connection, gallery_id: int, path: QueryPath, serving_id: int | None, versions: Iterable[int]
) -> str | None:
    """Why searches must be refused: the first pair without a valid certificate, in one sentence; None: they may be answered.

    Args:
        path: what makes queries' vectors; with a tower, its certificates are asked for.
        serving_id: the rollout that serves.
        versions: the rollouts that stored vectors come from.
    """
    versions = set(versions)
    pairs = _pairs(connection, gallery_id, path, serving_id, versions)
    for version in sorted(versions):
        found = _covering(pairs, version)
        if found is None:
            return (
                f"a stored vector comes from rollout {version}, which is none of those that {path.model.name!r} was "
                "certified against; `hotrefresh doctor --deep` says more."
            )
        reason = _missing(connection, gallery_id, path, *found)
        if reason is not None:
            return reason
    return None


def _pairs(
    connection: Connection,
    gallery_id: int,
    path: QueryPath,
    serving_id: int | None,
    versions: set[int],
) -> list[tuple[RolloutRow, int | None]]:
    """The rollouts that may hold vectors under what serves, newest first, each with the adapter of its certificate.

    It ends with the newest finalized one: what is left of older ones was accepted with it.
    """
    pairs = []
    adapter_id = None if path.adapter is None else path.adapter.id
    # Reclaimed ones too, and such as were taken back a moment ago: a replica may still hold what they were.
    for rollout in rollout_queries.list_rollouts(connection, gallery_id):
        if serving_id is None or rollout.id > serving_id:
            continue
        if rollout.state not in rollout_queries.EFFECTIVE and rollout.id not in {serving_id, *versions}:
            continue
        if rollout.how.holds_vectors:
            pairs.append((rollout, adapter_id))
            if rollout.id != serving_id and rollout.state == RolloutState.FINALIZED:
                break
            if adapter_id is None and rollout.how.lifts:
                adapter_id = rollout.adapter_id
    return pairs


def _covering(
    pairs: list[tuple[RolloutRow, int | None]], version: int
) -> tuple[RolloutRow, int | None] | None:
    """The pair that a rollout's vectors belong to: its own, or that of the finalized one behind which they were left."""
    own = next((pair for pair in pairs if pair[0].id == version), None)
    return own or (pairs[-1] if pairs and version < pairs[-1][0].id else None)


def _missing(
    connection: Connection, gallery_id: int, path: QueryPath, rollout: RolloutRow, adapter_id: int | None
) -> str | None:
    if adapter_id is None and rollout.to_model_id == path.model.id:
        return None
    newest = model_queries.newest_certificate(
        connection,
        gallery_id,
        path.model.id if path.tower is None else path.tower.id,
        rollout.to_model_id,
        adapter_id,
        decided=True,
        tower_of_model_id=None if path.tower is None else path.model.id,
    )
    if newest is not None and newest.verdict == "certified":
        return None
    stored = model_queries.model_by_id(connection, rollout.to_model_id)
    through = "" if adapter_id is None else model_queries.adapter_by_id(connection, adapter_id).name
    by = f" through adapter {through!r}" if through else ""
    option = f" --adapter {through}" if through else ""
    why = "no certificate allows it" if newest is None else f"it was refused: {newest.reason.rstrip('.')}"
    gallery = gallery_queries.gallery_by_id(connection, gallery_id).name
    if path.tower is not None:
        option += f" --queryset NAME (one of {path.tower.modality}s)"
    asking = path.model.name if path.tower is None else f"{path.tower.name} for {path.model.name}"
    return (
        f"{asking!r} may not search the stored embeddings of {stored.name!r} (rollout {rollout.id}){by}: {why}. Run "
        f"`hotrefresh model certify {stored.name} {path.model.name} --gallery {gallery}{option}`, or take the rollout back."
    )
