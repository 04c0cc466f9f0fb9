"""Statements about query towers: who embeds queries of another modality into a model's space."""

from __future__ import annotations

from sqlalchemy import Connection

from orchestrator.ledger.queries.run import execute, fetch_all, fetch_one
from orchestrator.ledger.rows import ModelRow, TowerRow


def insert_tower(connection: Connection, model_id: int, modality: str, tower_model_id: int) -> bool:
    """Register a tower; False where the model has one of this modality."""
    return (
        execute(
            connection,
            "insert_tower",
            """INSERT INTO query_tower (model_id, modality, tower_model_id) VALUES (:model, :modality, :tower)
               ON CONFLICT DO NOTHING""",
            model=model_id,
            modality=modality,
            tower=tower_model_id,
        ).rowcount
        == 1
    )


def delete_tower(connection: Connection, model_id: int, modality: str) -> bool:
    """Forget a tower; False where there was none."""
    return (
        execute(
            connection,
            "delete_tower",
            "DELETE FROM query_tower WHERE model_id = :model AND modality = :modality",
            model=model_id,
            modality=modality,
        ).rowcount
        == 1
    )


def tower_of(connection: Connection, model_id: int, modality: str) -> ModelRow | None:
    """The model that embeds queries of a modality into a model's space; None: there is none."""
    return fetch_one(
        connection,
        ModelRow,
        "tower_of",
        """SELECT m.* FROM query_tower t JOIN model m ON m.id = t.tower_model_id
           WHERE t.model_id = :model AND t.modality = :modality""",
        model=model_id,
        modality=modality,
    )


def list_towers(connection: Connection) -> list[TowerRow]:
    """All towers by the names of their models."""
    return fetch_all(
        connection,
        TowerRow,
        "list_towers",
        """SELECT m.name AS model, t.modality, w.name AS tower, t.created_at FROM query_tower t
           JOIN model m ON m.id = t.model_id JOIN model w ON w.id = t.tower_model_id ORDER BY m.name, t.modality""",
    )


def galleries_asked(connection: Connection, model_id: int, modality: str) -> list[str]:
    """Galleries with query sets of a modality that a model serves, or that an unfinished rollout leads to or from."""
    result = execute(
        connection,
        "galleries_asked",
        """SELECT DISTINCT g.name FROM gallery g
           JOIN query_set s ON s.gallery_id = g.id AND s.modality = :modality
           JOIN rollout r ON r.gallery_id = g.id AND :model IN (r.from_model_id, r.to_model_id)
           WHERE r.state NOT IN ('cancelled', 'rolled_back', 'failed', 'superseded') ORDER BY 1""",
        model=model_id,
        modality=modality,
    )
    return [str(name) for (name,) in result]
