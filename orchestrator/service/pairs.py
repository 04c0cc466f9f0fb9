"""The certificates that a start asks for: of the new model, and of its towers, against what the gallery holds."""

from __future__ import annotations

from sqlalchemy import Connection

from orchestrator.core.relevance import RelevanceKind
from orchestrator.errors import InconclusiveError, NotCertifiedError
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries import models as model_queries
from orchestrator.ledger.rows import AdapterRow, CertificateRow, GalleryRow, ModelRow
from orchestrator.serving.queries import query_path, towered


def require_certificate(
    connection: Connection,
    gallery: GalleryRow,
    new: ModelRow,
    old: ModelRow,
    adapter: AdapterRow | None,
    tower: ModelRow | None = None,
    queries: str = "",
) -> CertificateRow:
    """The newest certificate of the pair, if it allows mixing.

    `tower`: that of the new model, whose `queries` (the name of a query set) are asked about instead of the new model's own.
    """
    through = f" --adapter {adapter.name}" if adapter else ""
    asking = repr(new.name)
    if tower is not None:
        through += f" --queryset {queries}"
        asking = f"{tower.name!r}, the tower of {new.name!r} for {tower.modality}s,"
    certificate = model_queries.newest_certificate(
        connection,
        gallery.id,
        new.id if tower is None else tower.id,
        old.id,
        adapter.id if adapter else None,
        tower_of_model_id=None if tower is None else new.id,
    )
    if certificate is None:
        raise NotCertifiedError(
            f"{asking} was never measured against the stored embeddings of {old.name!r}: same dimension is not same "
            f"space. {_first(connection, gallery, new, tower)}Run `hotrefresh model certify {old.name} {new.name} "
            f"--gallery {gallery.name}{through}` first."
        )
    if certificate.verdict == "inconclusive":
        raise InconclusiveError(
            f"the certificate of {asking} against {old.name!r} is inconclusive: {certificate.reason.rstrip('.')}. "
            "Import a larger query set and certify again."
        )
    if certificate.verdict != "certified":
        raise NotCertifiedError(
            f"{asking} against the stored embeddings of {old.name!r} was refused: {certificate.reason.rstrip('.')}. "
            + (
                "Train it compatibly, or lift the gallery with a forward adapter (`hotrefresh model adapt`)."
                if not adapter
                else "Fit a better adapter, or train the model compatibly."
            )
        )
    return certificate


def _first(connection: Connection, gallery: GalleryRow, new: ModelRow, tower: ModelRow | None) -> str:
    """What must be imported before a model's own certificate can be had; empty where nothing must."""
    sets = gallery_queries.query_sets_of_gallery(connection, gallery.id)
    if tower is not None or any(
        each.modality == new.modality and RelevanceKind(each.relevance).known for each in sets
    ):
        return ""
    return (
        f"It is measured on queries that are {new.modality}s, and there are none whose right answers are known: "
        f"`hotrefresh queryset import {gallery.name} NAME SOURCE --modality {new.modality}`. "
    )


def require_towers(
    connection: Connection,
    gallery: GalleryRow,
    old: ModelRow,
    new: ModelRow,
    stored: ModelRow,
    adapter: AdapterRow | None,
) -> list[ModelRow]:
    """The new model's towers for the gallery's query sets of other modalities than its own, each with its certificate.

    Raises:
        ConflictError: the old or the new model has no tower for a query set that is not of its modality.
        NotCertifiedError, InconclusiveError: as `require_certificate`; where nobody knows what is right, nothing is asked for.
    """
    asked: dict[str, str] = {}
    for row in gallery_queries.query_sets_of_gallery(connection, gallery.id):
        # The evaluator asks both systems, whatever is known of the answers.
        for each in (old, new):
            towered(connection, query_path(connection, each.id, None), row.modality)
        if row.modality != new.modality and RelevanceKind(row.relevance).known:
            asked.setdefault(row.modality, row.name)
    towers = []
    for modality, name in sorted(asked.items()):
        tower = towered(connection, query_path(connection, new.id, None), modality).embedder
        require_certificate(connection, gallery, new, stored, adapter, tower, name)
        towers.append(tower)
    return towers


def simulated_curve(
    certificate: CertificateRow, calibration: str = "auto"
) -> list[tuple[str, str, float, float]]:
    """What the certificate saw of a refresh, as points (metric, order, coverage, value) to lay beside its own.

    None of a sample of the gallery: among fewer items recall is higher, and the two could not be compared.
    """
    measured = certificate.measured
    if not measured.get("whole_gallery"):
        return []
    raw = measured.get("uncalibrated")
    return [
        (measured["metric"], measured["simulated_order"], point["coverage"], point["value"])
        for point in (measured if raw is None or calibration == "auto" else raw)["curve"]
        if point["value"] is not None
    ]
