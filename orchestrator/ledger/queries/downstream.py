"""Statements about downstream modules and their certificates."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import Connection

from orchestrator.ledger.queries.run import execute, fetch_all, fetch_one
from orchestrator.ledger.rows import ContractRow, ModuleCertificateRow, ModuleRow


def insert_module(
    connection: Connection,
    *,
    name: str,
    model_id: int,
    architecture: str,
    metric: str,
    dim: int,
    digest: str,
    fingerprint: str,
    uri: str,
    files: dict[str, int],
    manifest: dict[str, Any],
) -> int | None:
    """Register a module; None where the name is taken."""
    return execute(
        connection,
        "insert_module",
        """INSERT INTO downstream_module (name, model_id, architecture, metric, dim, digest, fingerprint, uri, files, manifest)
           VALUES (:name, :model, :architecture, :metric, :dim, :digest, :fingerprint, :uri, CAST(:files AS jsonb),
                   CAST(:manifest AS jsonb))
           ON CONFLICT (name) DO NOTHING RETURNING id""",
        name=name,
        model=model_id,
        architecture=architecture,
        metric=metric,
        dim=dim,
        digest=digest,
        fingerprint=fingerprint,
        uri=uri,
        files=json.dumps(files),
        manifest=json.dumps(manifest),
    ).scalar_one_or_none()


def module_by_name(connection: Connection, name: str) -> ModuleRow | None:
    """A module by its name."""
    return fetch_one(
        connection,
        ModuleRow,
        "module_by_name",
        "SELECT * FROM downstream_module WHERE name = :name",
        name=name,
    )


def list_modules(connection: Connection) -> list[ModuleRow]:
    """All modules, oldest first, retired ones too."""
    return fetch_all(connection, ModuleRow, "list_modules", "SELECT * FROM downstream_module ORDER BY id")


def retire_module(connection: Connection, module_id: int) -> bool:
    """Nobody uses it any more; False where that was said before."""
    return (
        execute(
            connection,
            "retire_module",
            "UPDATE downstream_module SET retired_at = clock_timestamp() WHERE id = :id AND retired_at IS NULL RETURNING id",
            id=module_id,
        ).scalar_one_or_none()
        is not None
    )


def insert_module_certificate(
    connection: Connection,
    *,
    module_id: int,
    model_id: int,
    fingerprint: str,
    source: str,
    n: int,
    old_value: float | None,
    new_value: float | None,
    low: float | None,
    high: float | None,
    accepted_loss: float,
    verdict: str,
    reason: str,
    measured: dict[str, Any],
) -> ModuleCertificateRow:
    """Store what was measured of a module."""
    row = fetch_one(
        connection,
        ModuleCertificateRow,
        "insert_module_certificate",
        """INSERT INTO downstream_certificate (module_id, model_id, fingerprint, source, n, old_value, new_value, low, high,
                                               accepted_loss, verdict, reason, measured)
           VALUES (:module, :model, :fingerprint, :source, :n, CAST(:old AS double precision), CAST(:new AS double precision),
                   CAST(:low AS double precision), CAST(:high AS double precision), :loss, :verdict, :reason,
                   CAST(:measured AS jsonb))
           RETURNING *""",
        module=module_id,
        model=model_id,
        fingerprint=fingerprint,
        source=source,
        n=n,
        old=old_value,
        new=new_value,
        low=low,
        high=high,
        loss=accepted_loss,
        verdict=verdict,
        reason=reason,
        measured=json.dumps(measured),
    )
    assert row is not None
    return row


def certificates_of_module(connection: Connection, module_id: int) -> list[ModuleCertificateRow]:
    """A module's certificates, newest first."""
    return fetch_all(
        connection,
        ModuleCertificateRow,
        "certificates_of_module",
        "SELECT * FROM downstream_certificate WHERE module_id = :module ORDER BY id DESC",
        module=module_id,
    )


def contracts(connection: Connection, new_model_id: int, serving_ids: list[int]) -> list[ContractRow]:
    """Every module that is not retired, with its newest decided certificate for a new model, oldest module first.

    Args:
        serving_ids: the models that a gallery serves and holds now. A module is in use there if it was made for one of
            them, or is certified for one.
    """
    return fetch_all(
        connection,
        ContractRow,
        "contracts",
        """SELECT d.name AS module, m.name AS model, m.fingerprint AS space, d.dim, c.verdict, c.reason,
                  d.model_id = ANY(CAST(:serving AS bigint[])) OR EXISTS (
                      SELECT FROM (SELECT DISTINCT ON (s.model_id) s.verdict FROM downstream_certificate s
                                   WHERE s.module_id = d.id AND s.fingerprint = d.fingerprint AND s.verdict <> 'inconclusive'
                                         AND s.model_id = ANY(CAST(:serving AS bigint[]))
                                   ORDER BY s.model_id, s.id DESC) newest
                      WHERE newest.verdict = 'certified') AS serves
           FROM downstream_module d
           JOIN model m ON m.id = d.model_id
           LEFT JOIN LATERAL (
               SELECT n.verdict, n.reason FROM downstream_certificate n
               WHERE n.module_id = d.id AND n.model_id = :new AND n.fingerprint = d.fingerprint AND n.verdict <> 'inconclusive'
               ORDER BY n.id DESC LIMIT 1) c ON true
           WHERE d.retired_at IS NULL ORDER BY d.id""",
        new=new_model_id,
        serving=serving_ids,
    )
