"""Statements about models, adapters and certificates."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import Connection

from orchestrator.ledger.queries.run import execute, fetch_all, fetch_one
from orchestrator.ledger.rows import AdapterRow, CertificateRow, ModelRow


def insert_model(
    connection: Connection,
    *,
    name: str,
    modality: str,
    architecture: str,
    dim: int,
    digest: str,
    fingerprint: str,
    uri: str,
    files: dict[str, int],
    manifest: dict[str, Any],
    base_model_id: int | None = None,
) -> int | None:
    """Register a model; None where the name is taken."""
    return execute(
        connection,
        "insert_model",
        """INSERT INTO model (name, modality, architecture, dim, digest, fingerprint, uri, files, manifest, base_model_id)
           VALUES (:name, :modality, :architecture, :dim, :digest, :fingerprint, :uri, CAST(:files AS jsonb),
                   CAST(:manifest AS jsonb), CAST(:base AS bigint))
           ON CONFLICT (name) DO NOTHING RETURNING id""",
        name=name,
        modality=modality,
        architecture=architecture,
        dim=dim,
        digest=digest,
        fingerprint=fingerprint,
        uri=uri,
        files=json.dumps(files),
        manifest=json.dumps(manifest),
        base=base_model_id,
    ).scalar_one_or_none()


def model_by_name(connection: Connection, name: str) -> ModelRow | None:
    """A model by its name."""
    return fetch_one(
        connection, ModelRow, "model_by_name", "SELECT * FROM model WHERE name = :name", name=name
    )


def model_by_id(connection: Connection, model_id: int) -> ModelRow:
    """A model that is known to exist."""
    row = fetch_one(connection, ModelRow, "model_by_id", "SELECT * FROM model WHERE id = :id", id=model_id)
    assert row is not None, f"the ledger references model {model_id}, which it does not hold"
    return row


def list_models(connection: Connection) -> list[ModelRow]:
    """All models, oldest first."""
    return fetch_all(connection, ModelRow, "list_models", "SELECT * FROM model ORDER BY id")


def insert_adapter(
    connection: Connection,
    *,
    name: str,
    source_model_id: int,
    target_model_id: int,
    digest: str,
    fingerprint: str,
    uri: str,
    files: dict[str, int],
    manifest: dict[str, Any],
) -> int | None:
    """Register an adapter; None where the name is taken."""
    return execute(
        connection,
        "insert_adapter",
        """INSERT INTO adapter (name, source_model_id, target_model_id, digest, fingerprint, uri, files, manifest)
           VALUES (:name, :source, :target, :digest, :fingerprint, :uri, CAST(:files AS jsonb), CAST(:manifest AS jsonb))
           ON CONFLICT (name) DO NOTHING RETURNING id""",
        name=name,
        source=source_model_id,
        target=target_model_id,
        digest=digest,
        fingerprint=fingerprint,
        uri=uri,
        files=json.dumps(files),
        manifest=json.dumps(manifest),
    ).scalar_one_or_none()


def adapter_by_name(connection: Connection, name: str) -> AdapterRow | None:
    """An adapter by its name."""
    return fetch_one(
        connection, AdapterRow, "adapter_by_name", "SELECT * FROM adapter WHERE name = :name", name=name
    )


def adapter_by_id(connection: Connection, adapter_id: int) -> AdapterRow:
    """An adapter that is known to exist."""
    row = fetch_one(
        connection, AdapterRow, "adapter_by_id", "SELECT * FROM adapter WHERE id = :id", id=adapter_id
    )
    assert row is not None, f"the ledger references adapter {adapter_id}, which it does not hold"
    return row


def list_adapters(connection: Connection) -> list[AdapterRow]:
    """All adapters, oldest first."""
    return fetch_all(connection, AdapterRow, "list_adapters", "SELECT * FROM adapter ORDER BY id")


def insert_certificate(
    connection: Connection,
    *,
    query_model_id: int,
    gallery_model_id: int,
    adapter_id: int | None,
    query_set_id: int,
    verdict: str,
    reason: str,
    measured: dict[str, Any],
    tower_of_model_id: int | None = None,
) -> int:
    """Store a measured certificate."""
    return int(
        execute(
            connection,
            "insert_certificate",
            """INSERT INTO certificate (query_model_id, gallery_model_id, adapter_id, query_set_id, verdict, reason, measured,
                                         tower_of_model_id)
               VALUES (:query_model, :gallery_model, :adapter, :query_set, :verdict, :reason, CAST(:measured AS jsonb), :tower_of)
               RETURNING id""",
            query_model=query_model_id,
            gallery_model=gallery_model_id,
            adapter=adapter_id,
            query_set=query_set_id,
            verdict=verdict,
            reason=reason,
            measured=json.dumps(measured),
            tower_of=tower_of_model_id,
        ).scalar_one()
    )


def newest_certificate(
    connection: Connection,
    gallery_id: int,
    query_model_id: int,
    gallery_model_id: int,
    adapter_id: int | None,
    *,
    decided: bool = False,
    tower_of_model_id: int | None = None,
) -> CertificateRow | None:
    """The newest certificate of a pair measured on one of this gallery's query sets; the adapter must be the same.

    Args:
        decided: without the inconclusive ones: too few queries say nothing against what was measured before.
        tower_of_model_id: where the query model is a tower, the model whose space it emits.
    """
    return fetch_one(
        connection,
        CertificateRow,
        "newest_certificate",
        """SELECT c.* FROM certificate c JOIN query_set s ON s.id = c.query_set_id
           WHERE c.query_model_id = :query_model AND c.gallery_model_id = :gallery_model
             AND c.adapter_id IS NOT DISTINCT FROM CAST(:adapter AS bigint) AND s.gallery_id = :gallery
             AND NOT (:decided AND c.verdict = 'inconclusive')
             AND c.tower_of_model_id IS NOT DISTINCT FROM CAST(:tower_of AS bigint)
           ORDER BY c.id DESC LIMIT 1""",
        query_model=query_model_id,
        gallery_model=gallery_model_id,
        adapter=adapter_id,
        gallery=gallery_id,
        decided=decided,
        tower_of=tower_of_model_id,
    )


def certificates_of_model(connection: Connection, model_id: int) -> list[CertificateRow]:
    """The certificates in which a model takes part, newest first."""
    return fetch_all(
        connection,
        CertificateRow,
        "certificates_of_model",
        """SELECT * FROM certificate WHERE query_model_id = :model OR gallery_model_id = :model ORDER BY id DESC""",
        model=model_id,
    )
