"""Query towers: registering who embeds queries of another modality, and making both out of PTVD's features."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sqlalchemy import Connection

from models.artifact import Manifest
from orchestrator.context import Context
from orchestrator.errors import ConflictError, NotFoundError, UsageError
from orchestrator.ledger.database import transaction
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.queries import towers as tower_queries
from orchestrator.ledger.rows import ModelRow, TowerRow
from orchestrator.service.galleries import check_name
from orchestrator.service.models import register, scratch
from orchestrator.service.names import find_model


def add_tower(context: Context, model_name: str, tower_name: str) -> TowerRow:
    """Let a model's queries of the tower's modality be embedded by it.

    Raises:
        ConflictError: both are of one modality, another dimension, a codec, or the model has a tower of that modality.
    """
    with transaction(context.engine) as connection:
        model, tower = find_model(connection, model_name), find_model(connection, tower_name)
        if model.base_model_id is not None or tower.base_model_id is not None:
            raise ConflictError("a codec has no tower, nor is one: name the model whose floats it encodes.")
        if model.modality == tower.modality:
            raise ConflictError(
                f"{model.name!r} and {tower.name!r} both embed {model.modality}s; a tower embeds what its model does not."
            )
        if model.dim != tower.dim:
            raise ConflictError(
                f"{tower.name!r} has {tower.dim} dimensions and {model.name!r} {model.dim}: it does not emit that space. Train "
                f"one with `hotrefresh model tower train NAME --model {model.name}`."
            )
        if not tower_queries.insert_tower(connection, model.id, tower.modality, tower.id):
            now = tower_queries.tower_of(connection, model.id, tower.modality)
            if now is not None and now.id == tower.id:
                return _listed(connection, model, tower.modality)
            raise ConflictError(
                f"{model.name!r} has a tower for {tower.modality}s: {now.name if now else 'another one'!r}. Remove it first with "
                f"`hotrefresh model tower remove {model.name} {tower.modality}`."
            )
        _audit(context, connection, "tower.added", model, tower.name)
        return _listed(connection, model, tower.modality)


def remove_tower(context: Context, model_name: str, modality: str) -> None:
    """Forget a model's tower.

    Raises:
        NotFoundError: there is none.
        ConflictError: query sets of a gallery need it: what they measured, and what replays it, would be of nothing.
    """
    with transaction(context.engine) as connection:
        model = find_model(connection, model_name)
        tower = tower_queries.tower_of(connection, model.id, modality)
        if tower is None:
            raise NotFoundError(f"{model.name!r} has no tower for {modality[:80]!r}.")
        needed = tower_queries.galleries_asked(connection, model.id, modality)
        if needed:
            raise ConflictError(
                f"query sets of {modality}s of gallery {needed[0]!r} are embedded by it while {model.name!r} serves or is "
                "refreshed from or to; roll that back first, or register another tower for the next model."
            )
        tower_queries.delete_tower(connection, model.id, modality)
        _audit(context, connection, "tower.removed", model, tower.name)


def list_towers(context: Context) -> list[TowerRow]:
    """All towers."""
    with transaction(context.engine) as connection:
        return tower_queries.list_towers(connection)


def import_features(
    context: Context,
    name: str,
    encoder: str,
    source: str,
    split: str | None,
    into: str | None,
) -> ModelRow:
    """Register PTVD's features of an encoder as a model.

    Args:
        source: `ptvd:FOLDER`. split: of the episodes that the map is fitted on.
        into: a model of stored features whose space the features are mapped into; None: they stay as they are.

    Raises:
        UsageError: no such features, or a split without a model to map into.
        ConflictError: `into` is no model of stored features.
    """
    from models.encoders import stored_features

    if (split is None) != (into is None):
        raise UsageError(
            "a split is what a map is fitted on: give --into MODEL and --split train, or none of both."
        )
    with transaction(context.engine) as connection:
        target = None if into is None else find_model(connection, into)
    if target is not None and target.architecture != "stored_features":
        raise ConflictError(
            f"{target.name!r} is no model of stored features; features cannot be mapped into its space."
        )

    def make(folder: Path) -> Manifest:
        old = None if target is None else context.encoder(target)
        return stored_features.create(folder, name, encoder, source, split, old)

    return _registered(context, name, make)


def train_tower(
    context: Context,
    name: str,
    model_name: str,
    source: str,
    split: str | None,
    *,
    steps: int,
    seed: int,
    progress: Callable[[int, int], None],
) -> ModelRow:
    """Train a text tower for a model on the plots of some episodes, and register both it and that it is the model's.

    Raises:
        UsageError: `source` is no PTVD, or holds too little.
        ConflictError: the model embeds texts, or has such a tower.
    """
    from models.datasets import list_items, read_item
    from models.encoders import text_tower
    from orchestrator.serving.embedding import encode_uris

    if not source.startswith("ptvd:"):
        raise UsageError(f"{source[:200]!r} has no pairs of segments and sentences; name ptvd:FOLDER.")
    with transaction(context.engine) as connection:
        model = find_model(connection, model_name)
        if model.modality == "text" or tower_queries.tower_of(connection, model.id, "text") is not None:
            raise ConflictError(f"{model.name!r} embeds texts, or has a tower that does.")
    items = list_items(source, split).items
    vectors, failed = encode_uris(context.encoder(model), [item.uri for item in items])
    kept = [at for at in range(len(items)) if at not in failed]
    texts = [read_item(items[at].uri).sentence for at in kept]  # type: ignore[union-attr]

    def make(folder: Path) -> Manifest:
        return text_tower.create(
            folder, name, vectors[kept], texts, steps=steps, seed=seed, progress=progress
        )

    row = _registered(context, name, make)
    add_tower(context, model_name, name)
    return row


def _registered(context: Context, name: str, make: Callable[[Path], Manifest]) -> ModelRow:
    check_name("model", name)
    with scratch(context) as folder:
        manifest = make(folder)
        return register(context, name, manifest, folder)


def _listed(connection: Connection, model: ModelRow, modality: str) -> TowerRow:
    return next(
        t for t in tower_queries.list_towers(connection) if (t.model, t.modality) == (model.name, modality)
    )


def _audit(context: Context, connection: Connection, action: str, model: ModelRow, tower: str) -> None:
    rollout_queries.write_audit(
        connection, actor=context.actor, action=action, target=model.name, after={"tower": tower}
    )
