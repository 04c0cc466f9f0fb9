"""What there is: registered models, adapters, galleries, query sets, and the reporting views, for whoever shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection

from orchestrator.context import Context
from orchestrator.core.relevance import RelevanceKind
from orchestrator.errors import ArtifactError, NotFoundError
from orchestrator.ledger.database import current, snapshot, transaction
from orchestrator.ledger.queries import downstream as downstream_queries
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries import log as log_queries
from orchestrator.ledger.queries import models as model_queries
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.queries.reporting import read_view
from orchestrator.ledger.rows import QuerySetRow, RolloutRow
from orchestrator.service.names import (
    find_codec,
    find_gallery,
    find_item,
    find_model,
    find_module,
    find_query_set,
    find_rollout,
)
from orchestrator.serving.filters import attributes_of
from orchestrator.store.row_format import RowFormat

Row = dict[str, Any]
_COUNTED_IN = {
    "flip_summary": {kind for kind in RelevanceKind if kind.known},
    "click_summary": {RelevanceKind.CLICKS},
}


def models(context: Context) -> list[Row]:
    """Registered models and adapters, oldest first."""
    with transaction(context.engine) as connection:
        encoders = model_queries.list_models(connection)
        adapters = model_queries.list_adapters(connection)
    names = {model.id: model for model in encoders}
    rows = [{"kind": "encoder", **asdict(m), "leads": None} for m in encoders]
    for row in rows:
        if row["base_model_id"] is not None:
            row |= {"kind": "codec", "leads": f"{names[row['base_model_id']].name} → codes"}
    for a in adapters:
        target = names[a.target_model_id]
        rows.append(
            {
                "kind": "adapter",
                **asdict(a),
                "modality": target.modality,
                "architecture": a.manifest.get("architecture"),
                "dim": target.dim,
                "leads": f"{names[a.source_model_id].name} → {target.name}",
            }
        )
    return rows


def model(context: Context, name: str) -> Row:
    """A model or an adapter by name, with the certificates it takes part in."""
    for row in models(context):
        if row["name"] == name:
            break
    else:
        with transaction(context.engine) as connection:
            find_model(connection, name)  # raises, naming what there is
        raise NotFoundError(f"there is no model {name!r}.")
    return row | {"certificates": certificates(context, row["id"]) if row["kind"] != "adapter" else []}


def codecs(context: Context) -> list[Row]:
    """Registered codecs, oldest first, with what their codes look like."""
    with transaction(context.engine) as connection:
        found = {m.id: m for m in model_queries.list_models(connection)}
    rows = []
    for m in found.values():
        if (shape := m.code_shape) is None or m.base_model_id is None:
            continue
        base = found[m.base_model_id]
        float_bytes = RowFormat(base.dim).row_bytes
        rows.append(
            {
                "name": m.name,
                "base": base.name,
                "modality": m.modality,
                "method": m.architecture,
                "width": shape.width,
                "bits": shape.bits,
                "bytes_a_row": shape.row_bytes,
                "bytes_a_float_row": float_bytes,
                "smaller": float_bytes / shape.row_bytes,
                "fingerprint": m.fingerprint,
                "created_at": m.created_at,
            }
        )
    return rows


def codec(context: Context, name: str) -> Row:
    """A codec by name, with its manifest and the certificates it takes part in."""
    with transaction(context.engine) as connection:
        found = find_codec(connection, name)
    row = next(each for each in codecs(context) if each["name"] == name)
    return row | {"manifest": found.manifest, "certificates": certificates(context, found.id)}


def certificates(context: Context, model_id: int) -> list[Row]:
    """The certificates in which a model takes part, newest first, with names instead of ids."""
    with transaction(context.engine) as connection:
        found = model_queries.certificates_of_model(connection, model_id)
        names = {m.id: m.name for m in model_queries.list_models(connection)}
        adapters = {a.id: a.name for a in model_queries.list_adapters(connection)}
    return [
        {
            "id": c.id,
            "verdict": c.verdict,
            "query_model": names[c.query_model_id]
            + (f" for {names[c.tower_of_model_id]}" if c.tower_of_model_id is not None else ""),
            "gallery_model": names[c.gallery_model_id],
            "adapter": adapters[c.adapter_id] if c.adapter_id is not None else None,
            "reason": c.reason,
            "measured": c.measured,
            "created_at": c.created_at,
        }
        for c in found
    ]


def modules(context: Context) -> list[Row]:
    """Registered downstream modules, oldest first, with the name of the model that each was made for."""
    with transaction(context.engine) as connection:
        names = {m.id: m.name for m in model_queries.list_models(connection)}
        found = downstream_queries.list_modules(connection)
    return [{"model": names[row.model_id], **asdict(row)} for row in found]


def module(context: Context, name: str) -> Row:
    """A downstream module by name, whether its bytes are those that were registered, and its certificates, newest first."""
    with transaction(context.engine) as connection:
        found = find_module(connection, name)
        names = {m.id: m.name for m in model_queries.list_models(connection)}
        certificates = downstream_queries.certificates_of_module(connection, found.id)
    try:
        context.module(found)
        problem = None
    except ArtifactError as error:
        problem = str(error)
    return {
        "model": names[found.model_id],
        **asdict(found),
        "intact": problem is None,
        "problem": problem,
        "certificates": [{**asdict(row), "model": names[row.model_id]} for row in certificates],
    }


def galleries(context: Context) -> list[Row]:
    """All galleries with what serves them and their newest rollout."""
    with transaction(context.engine) as connection:
        rows = []
        for gallery in gallery_queries.list_galleries(connection):
            serving = rollout_queries.serving_now(connection, gallery.id)
            latest = rollout_queries.latest_rollout(connection, gallery.id)
            rows.append(
                asdict(gallery)
                | {
                    "model": model_queries.model_by_id(connection, serving.model_id).name
                    if serving
                    else None,
                    "rollout": latest.id if latest else None,
                    "state": latest.state if latest else None,
                }
            )
    return rows


def query_sets(context: Context, gallery_name: str | None) -> list[Row]:
    """The query sets of one gallery or of all."""
    with transaction(context.engine) as connection:
        wanted = (
            [find_gallery(connection, gallery_name)]
            if gallery_name is not None
            else gallery_queries.list_galleries(connection)
        )
        return [
            {"gallery": gallery.name, **asdict(row)}
            for gallery in wanted
            for row in gallery_queries.query_sets_of_gallery(connection, gallery.id)
        ]


def query_set(context: Context, gallery_name: str, name: str | None, first: int = 5) -> Row:
    """A query set with its counts and its first queries."""
    with transaction(context.engine) as connection:
        gallery = find_gallery(connection, gallery_name)
        row = find_query_set(connection, gallery, name)
        queries = gallery_queries.queries_of_set(connection, row.id)
        pairs = gallery_queries.relevant_pairs(connection, row.id)
    return {
        "gallery": gallery.name,
        **asdict(row),
        "answerable": len({no for no, _ in pairs}),
        "relevant_pairs": len(pairs),
        "first_queries": [{"key": q.key, "uri": q.uri, "label": q.label} for q in queries[:first]],
    }


def item_versions(context: Context, gallery_name: str, item: str | None, limit: int) -> list[Row]:
    """The version of a gallery's items, or of one, by `reporting.embedding_versions`, each with the attributes that its vector
    was made of; those of an item without a vector are its present ones."""
    with snapshot(context.engine) as connection:
        gallery = find_gallery(connection, gallery_name)
        found = read_view(connection, "embedding_versions", limit=limit, gallery=gallery_name, item=item)
        rows = gallery_queries.rows_of_keys(connection, gallery.id, [each["item"] for each in found])
        versions = {rows[each["item"]]: each["rollout"] for each in found}
        attributes = attributes_of(
            connection, gallery.id, versions, log_queries.last_seq(connection, gallery.id)
        )
    return [each | {"attributes": attributes[rows[each["item"]]]} for each in found]


def item_uri(context: Context, gallery_name: str, key: str) -> str:
    """Where an item of a gallery is read from.

    Raises:
        NotFoundError: no such gallery or item.
    """
    with transaction(context.engine) as connection:
        return find_item(connection, find_gallery(connection, gallery_name), key).uri


def rollout(context: Context, name: str) -> RolloutRow:
    """A rollout by its id, GALLERY or GALLERY@latest."""
    with transaction(context.engine) as connection:
        return find_rollout(connection, name)


def rollouts_query_set(context: Context, row: RolloutRow, name: str) -> QuerySetRow:
    """A query set of a rollout's gallery by name, or NotFoundError naming those there are."""
    with transaction(context.engine) as connection:
        return find_query_set(connection, gallery_queries.gallery_by_id(connection, row.gallery_id), name)


def newest_of_query_sets(
    context: Context, name: str, rollout_id: int, query_set: str | None = None, **filters: Any
) -> list[Row]:
    """The newest row of a reporting view for each query set of a rollout's gallery that has one, or for a single set."""
    with transaction(context.engine) as connection:
        row = find_rollout(connection, str(rollout_id))
        sets = gallery_queries.query_sets_of_gallery(connection, row.gallery_id)
        wanted = [each for each in sets if query_set in (None, each.name)]
        return newest_rows(connection, wanted, name, rollout=rollout_id, **filters)


def newest_rows(
    connection: Connection, query_sets: Sequence[QuerySetRow], name: str, **filters: Any
) -> list[Row]:
    """The newest row of a reporting view for each of these query sets that has one."""
    rows: list[Row] = []
    for each in query_sets:
        # A set that the view never holds would be looked for among all rows of the rollout.
        if RelevanceKind(each.relevance) in _COUNTED_IN.get(name, RelevanceKind):
            rows += read_view(connection, name, newest=True, queryset=each.name, **filters)
    return rows


def view(
    context: Context, name: str, *, limit: int = 1000, newest: bool = False, **filters: Any
) -> list[Row]:
    """Rows of a reporting view; filters that are None are left out."""
    with transaction(context.engine) as connection:
        return read_view(connection, name, limit=limit, newest=newest, **filters)


def held(context: Context) -> dict[str, int]:
    """What a downgrade would touch: how many of what; empty where there is no schema."""
    if current(context.engine) is None:
        return {}
    with transaction(context.engine) as connection:
        return {
            "models": len(model_queries.list_models(connection)),
            "galleries": len(gallery_queries.list_galleries(connection)),
            "rollouts": len(rollout_queries.list_rollouts(connection, None)),
        }


def load(context: Context, name: str) -> None:
    """Load an encoder or an adapter by name with all checks.

    Raises:
        ArtifactError: missing, tampered with, or not the one that was registered.
        NotFoundError: neither a model nor an adapter has this name.
    """
    with transaction(context.engine) as connection:
        adapter = model_queries.adapter_by_name(connection, name)
        encoder = None if adapter else find_model(connection, name)
    if adapter:
        context.adapter(adapter)
    elif encoder:
        context.encoder(encoder)


def gallery_exists(context: Context, name: str | None) -> None:
    """Raise NotFoundError, naming those there are, unless there is a gallery of this name (or none was asked for)."""
    if name is not None:
        with transaction(context.engine) as connection:
            find_gallery(connection, name)
