"""The one next command, from what the ledger holds."""

from __future__ import annotations

import shlex

from sqlalchemy import Connection

from orchestrator.context import Context
from orchestrator.core.relevance import RelevanceKind
from orchestrator.core.states import RolloutState
from orchestrator.ledger.database import transaction
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries import models as model_queries
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.rows import GalleryRow, ModelRow, RolloutRow
from orchestrator.service.contracts import first_broken

# What to do with a rollout in this state; {id} is the rollout's.
_BY_STATE = {
    RolloutState.PLANNED: "rollout status -w {id}",
    RolloutState.DEPLOYED: "rollout status -w {id}",
    RolloutState.BACKFILLING: "rollout status -w {id}",
    RolloutState.PAUSED: "rollout resume {id}",
    RolloutState.FINALIZABLE: "rollout finalize {id}",
    RolloutState.CANCELLING: "rollout status {id}",
    RolloutState.ROLLING_BACK: "rollout status {id}",
}

# Built-in galleries have built-in queries.
_QUERIES = {
    "glyphs:gallery": "glyphs --split queries",
    "moving-glyphs:gallery": "moving-glyphs --split queries",
    "atari:gallery": "atari --split queries",
    "verses:web": "verses:kjv",
    "verses:kjv": "verses:web",
}


def next_command(context: Context, gallery_name: str | None = None) -> str:
    """The arguments of the command that brings this gallery (or the newest one) one step on."""
    with transaction(context.engine) as connection:
        gallery = _gallery(connection, gallery_name)
        if gallery is None:
            return "gallery create NAME SOURCE"
        latest = rollout_queries.latest_rollout(connection, gallery.id)
        if latest is not None and RolloutState(latest.state) in _BY_STATE:
            return after_rollout(latest)
        models = [m for m in model_queries.list_models(connection) if m.modality == gallery.modality]
        serving = rollout_queries.serving_now(connection, gallery.id)
        if serving is None:
            return _before_embedding(gallery, models)
        sets = gallery_queries.query_sets_of_gallery(connection, gallery.id)
        if not any(RelevanceKind(each.relevance).known for each in sets):  # nothing could be certified
            name = "queries" if all(each.name != "queries" for each in sets) else "labelled"
            return f"queryset import {gallery.name} {name} {_QUERIES.get(gallery.source, 'SOURCE')}"
        holder = rollout_queries.newest_holder(connection, gallery.id)
        assert holder is not None, "a gallery that is served has vectors"
        return _towards_upgrade(connection, gallery, serving.model_id, holder.to_model_id, models)


def after_rollout(row: RolloutRow) -> str:
    """The command that follows a rollout in its state."""
    pattern = _BY_STATE.get(RolloutState(row.state), "rollout history {id}")
    return pattern.format(id=row.id)


def _gallery(connection: Connection, name: str | None) -> GalleryRow | None:
    if name is not None:
        return gallery_queries.gallery_by_name(connection, name)
    galleries = gallery_queries.list_galleries(connection)
    return galleries[-1] if galleries else None


def _before_embedding(gallery: GalleryRow, models: list[ModelRow]) -> str:
    if models:
        return f"gallery embed {gallery.name} --model {models[-1].name}"
    if gallery.modality == "text":
        return "model import small --wordllama 64"
    if plots := _plots(gallery):
        return f"model features old ENCODER --data {plots}"
    return f"model train old --data {_source(gallery)}"


def _towards_upgrade(
    connection: Connection, gallery: GalleryRow, serving_id: int, stored_id: int, models: list[ModelRow]
) -> str:
    old = model_queries.model_by_id(connection, stored_id)
    newer = [m for m in models if m.id > old.id]
    if not newer:
        if gallery.modality == "text":
            return "model import large --wordllama 256"
        if plots := _plots(gallery):
            into = f" --into {old.name} --split train" if old.architecture == "stored_features" else ""
            return f"model features new ENCODER --data {plots}{into}"
        return f"model train new --method ract --old {old.name} --data {_source(gallery)}"
    new = newer[-1]
    bare = model_queries.newest_certificate(connection, gallery.id, new.id, old.id, None)
    if bare is None and new.manifest["options"].get("space_fingerprint") == old.fingerprint:
        return f"model certify {old.name} {new.name} --gallery {gallery.name}"
    if bare is not None and bare.verdict == "certified":
        module = first_broken(connection, [serving_id, old.id], new)
        if module is not None:
            return f"downstream certify {module} {new.name} --gallery {gallery.name}"
        return f"rollout start {gallery.name} --to {new.name}"
    adapters = [
        a
        for a in model_queries.list_adapters(connection)
        if (a.source_model_id, a.target_model_id) == (old.id, new.id)
        or ((a.source_model_id, a.target_model_id) == (new.id, old.id) and serving_id != new.id)
    ]
    adapter = adapters[-1] if adapters else None
    if adapter is None:
        return f"model adapt {old.name} {new.name} --gallery {gallery.name}"
    through = f" --adapter {adapter.name}"
    certificate = model_queries.newest_certificate(connection, gallery.id, new.id, old.id, adapter.id)
    if certificate is None:
        return f"model certify {old.name} {new.name} --gallery {gallery.name}{through}"
    if certificate.verdict == "certified":
        return f"rollout start {gallery.name} --to {new.name}{through}"
    return f"model show {new.name}"


def _plots(gallery: GalleryRow) -> str | None:
    """PTVD as `--data` takes it, where that is the gallery's source: of it there are features, and nothing to train on."""
    name, _, place = gallery.source.partition(":")
    return shlex.quote(f"ptvd:{place.rpartition(':')[0] or place}") if name == "ptvd" else None


def _source(gallery: GalleryRow) -> str:
    """The gallery's source as `--data` takes it; a split was stored behind a colon."""
    source, colon, split = gallery.source.rpartition(":")
    if colon and source in ("glyphs", "moving-glyphs", "atari"):
        return f"{source} --split {shlex.quote('train' if split == 'gallery' else split)}"
    return shlex.quote(gallery.source)
