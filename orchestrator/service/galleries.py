"""Galleries and query sets: from a source to rows of the ledger, and the first embedding."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import Connection

from orchestrator.context import Context
from orchestrator.core.relevance import RelevanceKind
from orchestrator.errors import ConflictError, UsageError
from orchestrator.ledger.database import transaction
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries import modalities as modality_queries
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.rows import GalleryRow, QuerySetRow
from orchestrator.service.askable import check_askable
from orchestrator.service.names import find_gallery
from orchestrator.service.relevance_files import PairsRead, read_clicks, read_pairs


@dataclass(frozen=True)
class Imported:
    """What an import took and what it refused, with the reasons counted."""

    name: str
    modality: str
    taken: int
    rejected: int
    reasons: dict[str, int]
    labelled: int
    unanswerable: int = 0
    too_few_clicks: int = 0
    also: dict[str, int] = field(default_factory=dict)
    """Other modality -> how many of the items have it too."""


def check_name(kind: str, name: str) -> None:
    """Names are words: they stand in commands, metrics and file names."""
    if not is_name(name):
        raise UsageError(
            f"{kind} name {name[:200]!r} cannot be used: letters, digits, '-', '_' and '.' only, at most 100, beginning with a "
            "letter or digit, not only digits."
        )


def is_name(name: str) -> bool:
    """Whether a name may be given: an option (`-h`), a folder (`..`) or a number would be taken for something else."""
    return (
        0 < len(name) <= 100
        and all(c.isalnum() or c in "-_." for c in name)
        and name[0].isalnum()
        and not name.isdigit()
    )


def create_gallery(
    context: Context, name: str, source: str, split: str | None = None, modality: str | None = None
) -> Imported:
    """Create a gallery from a folder, a CSV or Parquet manifest, or a built-in dataset, in one transaction.

    Bad items are left out, counted and stored with their reason; the rest goes on.

    Args:
        modality: of a source of several, the gallery's own, which every item has; None: the source's first.

    Raises:
        UsageError: a source that cannot be read at all, or holds no item, or nothing of that modality.
        ConflictError: the name is taken.
    """
    from models.datasets import list_items, modality_of, storable

    check_name("gallery", name)
    listing = list_items(source, split, modality)
    also = _counted(each for item in listing.items for each in item.other_uris)
    modality = modality or modality_of(source)
    if not listing.items:
        raise UsageError(
            f"{source!r} holds no usable item ({len(listing.rejected)} refused); a gallery needs at least one."
        )
    origin = storable(source if split is None else f"{source}:{split}")
    with transaction(context.engine) as connection:
        gallery_id = gallery_queries.insert_gallery(connection, name=name, modality=modality, source=origin)
        if gallery_id is None:
            raise ConflictError(
                f"there is a gallery {name!r} already; choose another name, or look at `hotrefresh gallery show {name}`."
            )
        taken = gallery_queries.copy_items(
            connection,
            gallery_id,
            ((row, i.key, i.uri, i.label, i.attributes, i.other_uris) for row, i in enumerate(listing.items)),
        )
        modality_queries.note_modalities(connection, gallery_id, also)
        rejected = [(r.key, r.uri, r.reason) for r in listing.rejected]
        gallery_queries.copy_rejected(connection, gallery_id, None, rejected)
        rollout_queries.write_audit(
            connection,
            actor=context.actor,
            action="gallery.created",
            target=name,
            after={"items": taken, "source": origin},
        )
    labelled = sum(item.label is not None for item in listing.items)
    reasons = _counted(r for _, _, r in rejected)
    return Imported(name, modality, taken, len(rejected), reasons, labelled, also=also)


def import_query_set(
    context: Context,
    gallery_name: str,
    name: str,
    source: str,
    *,
    split: str | None = None,
    modality: str | None = None,
    pairs: Path | None = None,
    clicks: Path | None = None,
    minimum_clicks: int = 1,
    unlabelled: bool = False,
    overlap: float | None = None,
) -> Imported:
    """Import queries with relevance by equal label, unless it is said otherwise.

    Args:
        modality: of a source of several, what the queries are; None: what the gallery is, else the source's first.
        pairs: a CSV file of (query key, item key) pairs that are right.
        clicks: a CSV file of pairs that were clicked: weak relevance, see `core.relevance`.
        minimum_clicks: pairs clicked fewer times are left out.
        overlap: of plot segments: right are those that overlap the query's own by this share of the union or more.
        unlabelled: nobody knows what is right; labels of the source are not looked at.

    Raises:
        UsageError: nothing usable in it, or no query has a relevant item.
        ConflictError: the gallery has a query set of that name; of another modality than the gallery's, and a model that
            serves, or that a rollout leads to, has no tower for it.
    """
    from models.datasets import list_items, modalities_of, storable

    check_name("query set", name)
    kind = _relevance_kind(pairs, clicks, unlabelled=unlabelled, overlap=overlap)
    with transaction(context.engine) as connection:
        gallery = find_gallery(connection, gallery_name)
        held = modalities_of(source)
        asked_in = modality or (gallery.modality if gallery.modality in held else held[0])
    listing = list_items(source, split, asked_in)
    if not listing.items:
        raise UsageError(f"{source!r} holds no usable query ({len(listing.rejected)} refused).")
    numbers = {item.key: no for no, item in enumerate(listing.items)}
    with transaction(context.engine) as connection:
        check_askable(connection, gallery, asked_in)
        read = PairsRead()
        if pairs is not None:
            read = read_pairs(connection, gallery, pairs, numbers)
        elif clicks is not None:
            read = read_clicks(connection, gallery, clicks, numbers, minimum_clicks)
        elif overlap is not None:
            read = _overlapping(connection, gallery, source, numbers, overlap)
        query_set_id = gallery_queries.insert_query_set(
            connection,
            gallery_id=gallery.id,
            name=name,
            relevance=kind.value,
            source=storable(source if split is None else f"{source}:{split}"),
            modality=asked_in,
        )
        if query_set_id is None:
            raise ConflictError(
                f"gallery {gallery.name!r} has a query set {name!r} already; choose another name."
            )
        taken = gallery_queries.copy_queries(
            connection,
            query_set_id,
            ((no, i.key, i.uri, i.label, i.attributes) for no, i in enumerate(listing.items)),
            read.pairs,
        )
        rejected = [(r.key, r.uri, r.reason) for r in listing.rejected] + read.bad
        gallery_queries.copy_rejected(connection, gallery.id, query_set_id, rejected)
        answerable = len({no for no, _ in gallery_queries.relevant_pairs(connection, query_set_id)})
        if answerable == 0 and kind is not RelevanceKind.NONE:
            raise UsageError(
                f"no query of {source!r} has a relevant item in gallery {gallery.name!r}: {_why_none(kind, read)}"
            )
        rollout_queries.write_audit(
            connection,
            actor=context.actor,
            action="queryset.imported",
            target=f"{gallery.name}/{name}",
            after={"queries": taken, "relevance": kind.value, "modality": asked_in},
        )
    labelled = sum(item.label is not None for item in listing.items)
    return Imported(
        name,
        asked_in,
        taken,
        len(rejected),
        _counted(r for _, _, r in rejected),
        labelled,
        0 if kind is RelevanceKind.NONE else taken - answerable,
        read.too_few,
    )


def _overlapping(
    connection: Connection, gallery: GalleryRow, source: str, numbers: dict[str, int], least: float
) -> PairsRead:
    from models.datasets.ptvd_source import overlapping_keys

    pairs = overlapping_keys(source, numbers.keys(), least)
    rows = gallery_queries.rows_of_keys(connection, gallery.id, sorted({item for _, item in pairs}))
    found = sorted((numbers[query], rows[item]) for query, item in pairs if item in rows)
    return PairsRead(pairs=found)


def _relevance_kind(
    pairs: Path | None, clicks: Path | None, *, unlabelled: bool, overlap: float | None
) -> RelevanceKind:
    if (pairs is not None) + (clicks is not None) + unlabelled + (overlap is not None) > 1:
        raise UsageError(
            "a query set has one kind of relevance: give --pairs, --clicks, --overlap or --unlabelled, and import another set "
            "for another."
        )
    if pairs is not None or overlap is not None:
        return RelevanceKind.PAIRS
    if clicks is not None:
        return RelevanceKind.CLICKS
    return RelevanceKind.NONE if unlabelled else RelevanceKind.LABEL


def _why_none(kind: RelevanceKind, read: PairsRead) -> str:
    if kind is RelevanceKind.LABEL:
        return (
            "no label is shared. Give explicit pairs with --pairs FILE.csv, clicks with --clicks FILE.csv, or say --unlabelled "
            "where nothing is known."
        )
    if read.too_few:
        return f"all {read.too_few} clicked pairs have fewer clicks than --minimum-clicks."
    return f"the {kind.value} name none."


def _counted(reasons: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for reason in reasons:
        counts[reason] = counts.get(reason, 0) + 1
    return counts


@dataclass(frozen=True)
class GalleryInfo:
    """A gallery with what serves it."""

    row: GalleryRow
    model: str | None
    rejected: dict[str, int]
    query_sets: tuple[QuerySetRow, ...]


def gallery_info(context: Context, name: str) -> GalleryInfo:
    """A gallery, its serving model, its query sets and what was refused at import."""
    from orchestrator.ledger.queries import models as model_queries

    with transaction(context.engine) as connection:
        row = find_gallery(connection, name)
        serving = rollout_queries.serving_now(connection, row.id)
        model = model_queries.model_by_id(connection, serving.model_id).name if serving else None
        return GalleryInfo(
            row,
            model,
            gallery_queries.count_rejected(connection, row.id),
            tuple(gallery_queries.query_sets_of_gallery(connection, row.id)),
        )
