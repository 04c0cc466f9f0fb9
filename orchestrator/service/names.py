"""From the names people type to rows, with an error that says what there is."""

from __future__ import annotations

from sqlalchemy import Connection

from orchestrator.errors import NotFoundError
from orchestrator.ledger.queries import downstream as downstream_queries
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries import models as model_queries
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.rows import (
    AdapterRow,
    GalleryRow,
    ItemRow,
    ModelRow,
    ModuleRow,
    QuerySetRow,
    RolloutRow,
)

_ID_DIGITS = 18


def find_model(connection: Connection, name: str) -> ModelRow:
    """A model by name, or NotFoundError naming those there are."""
    row = model_queries.model_by_name(connection, name)
    if row is None:
        raise NotFoundError(
            f"there is no model {name[:200]!r}; {_known([m.name for m in model_queries.list_models(connection)])}"
            " Make one with `hotrefresh model train` or `hotrefresh model import`."
        )
    return row


def find_codec(connection: Connection, name: str) -> ModelRow:
    """A codec by name, or NotFoundError naming those there are."""
    row = model_queries.model_by_name(connection, name)
    if row is not None and row.base_model_id is not None:
        return row
    codecs = [m.name for m in model_queries.list_models(connection) if m.base_model_id is not None]
    what = f"{name[:200]!r} is a model and no codec" if row else f"there is no codec {name[:200]!r}"
    raise NotFoundError(f"{what}; {_known(codecs)} Make one with `hotrefresh codec train`.")


def find_adapter(connection: Connection, name: str) -> AdapterRow:
    """An adapter by name, or NotFoundError naming those there are."""
    row = model_queries.adapter_by_name(connection, name)
    if row is None:
        raise NotFoundError(
            f"there is no adapter {name[:200]!r}; {_known([a.name for a in model_queries.list_adapters(connection)])}"
            " Fit one with `hotrefresh model adapt`."
        )
    return row


def find_module(connection: Connection, name: str) -> ModuleRow:
    """A downstream module by name, or NotFoundError naming those there are."""
    row = downstream_queries.module_by_name(connection, name)
    if row is None:
        raise NotFoundError(
            f"there is no downstream module {name[:200]!r}; "
            f"{_known([m.name for m in downstream_queries.list_modules(connection)])}"
            " Register one with `hotrefresh downstream register` or `hotrefresh downstream train`."
        )
    return row


def find_gallery(connection: Connection, name: str) -> GalleryRow:
    """A gallery by name, or NotFoundError naming those there are."""
    row = gallery_queries.gallery_by_name(connection, name)
    if row is None:
        raise NotFoundError(
            f"there is no gallery {name[:200]!r}; {_known([g.name for g in gallery_queries.list_galleries(connection)])}"
            " Make one with `hotrefresh gallery create`."
        )
    return row


def find_item(connection: Connection, gallery: GalleryRow, key: str) -> ItemRow:
    """An item of a gallery by its key, or NotFoundError that says where keys are listed."""
    item = gallery_queries.item_by_key(connection, gallery.id, key)
    if item is None:
        raise NotFoundError(
            f"gallery {gallery.name!r} has no item {key[:200]!r}; "
            f"`hotrefresh ledger versions {gallery.name} --items` lists its keys."
        )
    return item


def find_query_set(connection: Connection, gallery: GalleryRow, name: str | None) -> QuerySetRow:
    """A gallery's query set by name; None takes the only one."""
    sets = gallery_queries.query_sets_of_gallery(connection, gallery.id)
    wanted = [s for s in sets if name is None or s.name == name]
    if len(wanted) == 1:
        return wanted[0]
    if name is None and sets:
        raise NotFoundError(
            f"gallery {gallery.name!r} has {len(sets)} query sets: say which with --queryset. {_known([s.name for s in sets])}"
        )
    raise NotFoundError(
        f"gallery {gallery.name!r} has no query set{'' if name is None else f' {name[:200]!r}'}; {_known([s.name for s in sets])}"
        f" Import one with `hotrefresh queryset import {gallery.name} NAME SOURCE`."
    )


def find_rollout(connection: Connection, name: str) -> RolloutRow:
    """A rollout by its id, or by GALLERY or GALLERY@latest."""
    if name.isascii() and name.isdigit():
        # No id has more than 18 digits; a longer number is one that no column takes.
        row = rollout_queries.rollout_by_id(connection, int(name)) if len(name) <= _ID_DIGITS else None
        if row is None:
            raise NotFoundError(
                f"there is no rollout {name[:40]}; `hotrefresh rollout list` shows those there are."
            )
        return row
    gallery = find_gallery(connection, name.removesuffix("@latest"))
    row = rollout_queries.latest_rollout(connection, gallery.id)
    if row is None:
        raise NotFoundError(
            f"gallery {gallery.name!r} has had no rollout; begin with `hotrefresh gallery embed {gallery.name}`."
        )
    return row


def _known(names: list[str]) -> str:
    shown = ", ".join(sorted(names)[:8]) + (", …" if len(names) > 8 else "")
    return f"there are: {shown}." if names else "there is none yet."
